#include "autograd/ops/sum.h"

#include "tests/ops/op_case.h"

namespace lc::testing {

LC_OP_CASES(sum) {
    const auto run = [](const Tensors& in) -> Tensors { return {sum(in[0])}; };
    for (const auto& [variant, shape] :
         {std::pair{"one", Shape{1}}, {"odd", Shape{3, 5, 7}}, {"two_blocks", Shape{67, 65}}, {"three_chunks", Shape{131, 257}}})
        add({.op = "sum", .variant = variant, .inputs = {{"x", shape}}, .run = run});
    add({.op = "sum", .variant = "empty", .inputs = {{"x", {0}}}, .run = run, .differentiable = false});
    for (const auto& [variant, shape, bench] :
         {std::tuple{"8192x512", Shape{8192, 512}, Bench::cpu}, {"8192x4096", Shape{8192, 4096}, Bench::gpu}}) {
        const auto n = static_cast<double>(numel_of(shape));
        add({.op = "sum",
             .variant = variant,
             .inputs = {{"x", shape}},
             .run = run,
             .forward = {.flops = n, .numbers = n},
             .backward = {.numbers = n},
             .bench = bench});
    }
}

}  // namespace lc::testing
