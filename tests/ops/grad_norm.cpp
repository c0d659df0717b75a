#include "kernels/grad_norm/grad_norm.h"

#include "tests/ops/op_case.h"

namespace lc::testing {

LC_OP_CASES(grad_norm) {
    const auto run = [](const Tensors& in) -> Tensors {
        std::vector<TensorView> views;
        for (const Tensor& tensor : in) views.push_back(tensor.view());
        return {Tensor::full({}, kernels::grad_norm({views}, current_stream(in[0].device())), in[0].dtype())};
    };
    add({.op = "grad_norm", .variant = "one", .inputs = {{"a", {1}}}, .run = run, .differentiable = false});
    add({.op = "grad_norm",
         .variant = "several",
         .inputs = {{"a", {3, 5}}, {"b", {67, 65}}, {"c", {0}}, {"d", {131, 257}}},
         .run = run,
         .differentiable = false});
    const double n = 8192.0 * 512;
    add({.op = "grad_norm",
         .variant = "8192x512",
         .inputs = {{"a", {8192, 512}}},
         .run = run,
         .flops = 2 * n,
         .bytes = 4 * n,
         .bench = true,
         .differentiable = false});
}

}  // namespace lc::testing
