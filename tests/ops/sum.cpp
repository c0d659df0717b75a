#include "autograd/ops/sum.h"

#include "tests/ops/op_case.h"

namespace lc::testing {

LC_OP_CASES(sum) {
    const auto run = [](const Tensors& in) -> Tensors { return {sum(in[0])}; };
    for (const auto& [variant, shape] :
         {std::pair{"one", Shape{1}}, {"odd", Shape{3, 5, 7}}, {"two_blocks", Shape{67, 65}}, {"three_chunks", Shape{131, 257}}})
        add({.op = "sum", .variant = variant, .inputs = {{"x", shape}}, .run = run});
    add({.op = "sum", .variant = "empty", .inputs = {{"x", {0}}}, .run = run, .differentiable = false});
    const double n = 8192.0 * 512;
    add({.op = "sum",
         .variant = "8192x512",
         .inputs = {{"x", {8192, 512}}},
         .run = run,
         .flops = n,
         .bytes = 4 * n,
         .backward_bytes = 4 * n,
         .bench = true});
}

}  // namespace lc::testing
