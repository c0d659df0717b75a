#include "autograd/ops/add.h"

#include "tests/ops/op_case.h"

namespace lc::testing {

LC_OP_CASES(add) {
    const auto run = [](const Tensors& in) -> Tensors { return {lc::add(in[0], in[1])}; };
    for (const auto& [variant, shape] :
         {std::pair{"one", Shape{1}}, {"odd", Shape{3, 5, 7}}, {"matrix", Shape{33, 65}}})
        add({.op = "add", .variant = variant, .inputs = {{"a", shape}, {"b", shape}}, .run = run});
    add({.op = "add", .variant = "same_tensor", .inputs = {{"a", {4, 5}}}, .run = [](const Tensors& in) -> Tensors {
             return {lc::add(in[0], in[0])};
         }});
    for (const auto& [variant, shape, bench] :
         {std::tuple{"8192x512", Shape{8192, 512}, Bench::cpu}, {"8192x4096", Shape{8192, 4096}, Bench::gpu}}) {
        const auto n = static_cast<double>(numel_of(shape));
        add({.op = "add",
             .variant = variant,
             .inputs = {{"a", shape}, {"b", shape}},
             .run = run,
             .forward = {.flops = n, .numbers = 3 * n},
             .backward = {.numbers = 2 * n},
             .bench = bench});
    }
}

}  // namespace lc::testing
