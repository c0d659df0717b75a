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
    // Groups of several tensors, of one and of none; more than a launch takes, and more than a block's chunk in one.
    const auto add_groups = [](std::string variant, const std::vector<Shape>& shapes, std::vector<int64_t> groups,
                               int64_t count) {
        OpCase c{.op = "grad_norm", .variant = std::move(variant), .differentiable = false};
        for (const Shape& shape : shapes) c.inputs.push_back({"gradient", shape});
        c.run = [groups, count](const Tensors& in) -> Tensors {
            std::vector<TensorView> views;
            for (const Tensor& tensor : in) views.push_back(tensor.view());
            const std::vector<double> norms = kernels::grad_norms({.tensors = views, .groups = groups, .count = count},
                                                                  current_stream(in[0].device()));
            return {Tensor::from(norms, {count}).to(in[0].dtype())};
        };
        add(c);
    };
    add_groups("groups", {{3, 5}, {130, 127}, {8192}, {0}, {9, 4}, {2, 8192}}, {0, 0, 1, 1, 3, 5}, 7);
    std::vector<int64_t> thirds(1010);
    for (size_t i = 0; i < thirds.size(); ++i) thirds[i] = static_cast<int64_t>(i) / 3;
    add_groups("more_than_a_table", std::vector<Shape>(thirds.size(), Shape{7}), thirds, 337);
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
