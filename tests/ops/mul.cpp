#include "autograd/ops/mul.h"

#include "autograd/ops/views.h"
#include "tests/ops/op_case.h"

namespace lc::testing {

LC_OP_CASES(mul) {
    const auto run = [](const Tensors& in) -> Tensors { return {lc::mul(in[0], in[1])}; };
    for (const auto& [variant, shape] :
         {std::pair{"one", Shape{1}}, {"odd", Shape{3, 5, 7}}, {"matrix", Shape{33, 65}}})
        add({.op = "mul", .variant = variant, .inputs = {{"a", shape}, {"b", shape}}, .run = run});
    add({.op = "mul", .variant = "same_tensor", .inputs = {{"a", {4, 5}}}, .run = [](const Tensors& in) -> Tensors {
             return {lc::mul(in[0], in[0])};
         }});
    for (const int64_t inner : {8, 5})  // in runs of eight on the GPU, and not
        add({.op = "mul",
             .variant = inner == 8 ? "permuted_runs" : "permuted",
             .inputs = {{"a", {2, 4, 3, inner}}, {"b", {2, 3, 4, inner}}},
             .run = [](const Tensors& in) -> Tensors { return {lc::mul(permute(in[0], {0, 2, 1, 3}), in[1])}; }});
    for (const auto& [variant, shape, bench] :
         {std::tuple{"8192x512", Shape{8192, 512}, Bench::cpu}, {"8192x4096", Shape{8192, 4096}, Bench::gpu}}) {
        const auto n = static_cast<double>(numel_of(shape));
        add({.op = "mul",
             .variant = variant,
             .inputs = {{"a", shape}, {"b", shape}},
             .run = run,
             .forward = {.flops = n, .numbers = 3 * n},
             .backward = {.flops = 2 * n, .numbers = 5 * n},
             .bench = bench});
    }
}

}  // namespace lc::testing
