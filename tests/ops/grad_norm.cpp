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
    const auto add_bench = [&](std::string variant, const std::vector<Shape>& shapes, Bench bench) {
        OpCase c{.op = "grad_norm", .variant = std::move(variant), .run = run, .bench = bench, .differentiable = false};
        for (const Shape& shape : shapes) {
            const auto n = static_cast<double>(numel_of(shape));
            c.inputs.push_back({.name = "gradient", .shape = shape, .wide = true});
            c.forward.flops += 2 * n, c.forward.bytes += 4 * n;
        }
        add(c);
    };
    add_bench("8192x512", {{8192, 512}}, Bench::cpu);
    add_bench("maps_17M", llama8b::map_shapes(), Bench::gpu);
    add_bench("lora_7M", llama8b::lora_shapes(), Bench::gpu);
}

}  // namespace lc::testing
