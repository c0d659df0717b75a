#include "autograd/ops/scale.h"

#include "tests/ops/op_case.h"

namespace lc::testing {

LC_OP_CASES(scale) {
    const auto by = [](double factor) {
        return [factor](const Tensors& in) -> Tensors { return {scale(in[0], factor)}; };
    };
    add({.op = "scale", .variant = "one", .inputs = {{"x", {1}}}, .run = by(-0.3)});
    add({.op = "scale", .variant = "odd", .inputs = {{"x", {3, 5, 7}}}, .run = by(1.7)});
    add({.op = "scale", .variant = "zero", .inputs = {{"x", {9, 17}}}, .run = by(0)});
    for (const auto& [variant, shape, bench] :
         {std::tuple{"8192x512", Shape{8192, 512}, Bench::cpu}, {"8192x4096", Shape{8192, 4096}, Bench::gpu}}) {
        const auto n = static_cast<double>(numel_of(shape));
        add({.op = "scale",
             .variant = variant,
             .inputs = {{"x", shape}},
             .run = by(0.5),
             .forward = {.flops = n, .numbers = 2 * n},
             .backward = {.flops = n, .numbers = 2 * n},
             .bench = bench});
    }
}

}  // namespace lc::testing
