#include "autograd/ops/mse.h"

#include "autograd/ops/views.h"
#include "tests/ops/op_case.h"

namespace lc::testing {

LC_OP_CASES(mse) {
    const auto run = [](const Tensors& in) -> Tensors { return {mse(in[0], in[1])}; };
    for (const auto& [variant, shape] :
         {std::pair{"one", Shape{1}}, {"odd", Shape{3, 5, 7}}, {"two_blocks", Shape{67, 65}}, {"three_chunks", Shape{131, 257}}})
        add({.op = "mse", .variant = variant, .inputs = {{"y", shape}, {"target", shape}}, .run = run});
    add({.op = "mse",
         .variant = "permuted",
         .inputs = {{"y", {2, 5, 3, 4}}, {"target", {2, 5, 3, 4}}},
         .run = [](const Tensors& in) -> Tensors {
             return {mse(permute(in[0], {0, 2, 1, 3}), permute(in[1], {0, 2, 1, 3}))};
         }});
    for (const auto& [variant, shape, bench] :
         {std::tuple{"8192x512", Shape{8192, 512}, Bench::cpu}, {"8192x4096", Shape{8192, 4096}, Bench::gpu}}) {
        const auto n = static_cast<double>(numel_of(shape));
        add({.op = "mse",
             .variant = variant,
             .inputs = {{"y", shape}, {.name = "target", .shape = shape, .differentiable = false}},
             .run = run,
             .forward = {.flops = 3 * n, .numbers = 2 * n},
             .backward = {.flops = 2 * n, .numbers = 3 * n},
             .bench = bench});
    }
}

}  // namespace lc::testing
