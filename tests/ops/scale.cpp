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
    const double n = 8192.0 * 512;
    add({.op = "scale",
         .variant = "8192x512",
         .inputs = {{"x", {8192, 512}}},
         .run = by(0.5),
         .flops = n,
         .bytes = 8 * n,
         .backward_flops = n,
         .backward_bytes = 8 * n,
         .bench = true});
}

}  // namespace lc::testing
