#include "autograd/ops/dropout.h"

#include "tests/ops/op_case.h"

namespace lc::testing {

LC_OP_CASES(dropout) {
    const auto with = [](double p) { return [p](const Tensors& in) -> Tensors { return {dropout(in[0], p, 7, 3)}; }; };
    add({.op = "dropout", .variant = "one", .inputs = {{"x", {1}}}, .run = with(0.5)});
    add({.op = "dropout", .variant = "odd", .inputs = {{"x", {3, 5, 7}}}, .run = with(0.1)});
    add({.op = "dropout", .variant = "strong", .inputs = {{"x", {33, 65}}}, .run = with(0.9)});
    add({.op = "dropout", .variant = "blocks_and_a_rest", .inputs = {{"x", {3, 4099}}}, .run = with(0.3)});
    for (const auto& [variant, shape, bench] :
         {std::tuple{"2048x512", Shape{2048, 512}, Bench::cpu}, {"8192x4096", Shape{8192, 4096}, Bench::gpu}}) {
        const auto n = static_cast<double>(numel_of(shape));
        add({.op = "dropout",
             .variant = variant,
             .inputs = {{"x", shape}},
             .run = with(0.1),
             .forward = {.flops = 2 * n, .numbers = 2 * n},
             .backward = {.flops = 2 * n, .numbers = 2 * n},
             .bench = bench});
    }
}

}  // namespace lc::testing
