#include "autograd/ops/swiglu.h"

#include "tests/ops/op_case.h"

namespace lc::testing {

LC_OP_CASES(swiglu) {
    const auto run = [](const Tensors& in) -> Tensors { return {swiglu(in[0], in[1])}; };
    for (const auto& [variant, shape] :
         {std::pair{"one", Shape{1}}, {"odd", Shape{3, 5, 7}}, {"matrix", Shape{33, 65}}})
        add({.op = "swiglu", .variant = variant, .inputs = {{"gate", shape}, {"up", shape}}, .run = run});
    add({.op = "swiglu",
         .variant = "saturated",
         .inputs = {{"gate", {4, 33}, Fill::Normal, 40}, {"up", {4, 33}}},
         .run = run});
    const double n = 2048.0 * 1376;
    add({.op = "swiglu",
         .variant = "2048x1376",
         .inputs = {{"gate", {2048, 1376}}, {"up", {2048, 1376}}},
         .run = run,
         .flops = 5 * n,
         .bytes = 12 * n,
         .backward_flops = 12 * n,
         .backward_bytes = 20 * n,
         .bench = true});
}

}  // namespace lc::testing
