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
    const double n = 8192.0 * 512;
    add({.op = "mse",
         .variant = "8192x512",
         .inputs = {{"y", {8192, 512}}, {.name = "target", .shape = {8192, 512}, .differentiable = false}},
         .run = run,
         .flops = 3 * n,
         .bytes = 8 * n,
         .backward_flops = 2 * n,
         .backward_bytes = 12 * n,
         .bench = true});
}

}  // namespace lc::testing
