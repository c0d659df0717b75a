#include "autograd/ops/dropout.h"

#include "tests/ops/op_case.h"

namespace lc::testing {

LC_OP_CASES(dropout) {
    const auto with = [](double p) { return [p](const Tensors& in) -> Tensors { return {dropout(in[0], p, 7, 3)}; }; };
    add({.op = "dropout", .variant = "one", .inputs = {{"x", {1}}}, .run = with(0.5)});
    add({.op = "dropout", .variant = "odd", .inputs = {{"x", {3, 5, 7}}}, .run = with(0.1)});
    add({.op = "dropout", .variant = "strong", .inputs = {{"x", {33, 65}}}, .run = with(0.9)});
    const double n = 2048.0 * 512;
    add({.op = "dropout",
         .variant = "2048x512",
         .inputs = {{"x", {2048, 512}}},
         .run = with(0.1),
         .flops = 2 * n,
         .bytes = 8 * n,
         .backward_flops = 2 * n,
         .backward_bytes = 8 * n,
         .bench = true});
}

}  // namespace lc::testing
