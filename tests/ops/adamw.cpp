#include "kernels/adamw/adamw.h"

#include "tests/ops/op_case.h"

namespace lc::testing {
namespace {

// Several tensors in one call; in[4i..4i+3] are parameter, gradient, m, v.
OpCase make(std::string variant, const std::vector<Shape>& shapes, kernels::AdamwStep step) {
    OpCase c{.op = "adamw", .variant = std::move(variant), .inputs = {}, .run = {}};
    for (const Shape& shape : shapes)
        for (const char* name : {"parameter", "grad", "m", "v"})
            c.inputs.push_back({.name = name, .shape = shape, .fill = *name == 'v' ? Fill::Positive : Fill::Normal, .wide = true});
    c.run = [step](const Tensors& in) -> Tensors {
        Tensors out;
        for (const Tensor& tensor : in) out.push_back(tensor.clone());
        std::vector<kernels::AdamwTensor> tensors;
        for (size_t i = 0; i < out.size(); i += 4)
            tensors.push_back({out[i].view(), out[i + 1].view(), out[i + 2].view(), out[i + 3].view()});
        kernels::AdamwStep args = step;
        args.tensors = tensors;
        kernels::adamw_step(args, current_stream(in[0].device()));
        return out;
    };
    c.differentiable = false;
    return c;
}

OpCase in_place(OpCase c, kernels::AdamwStep step, Bench bench) {
    c.run = [step](const Tensors& in) -> Tensors {
        std::vector<kernels::AdamwTensor> tensors;
        for (size_t i = 0; i < in.size(); i += 4)
            tensors.push_back({in[i].view(), in[i + 1].view(), in[i + 2].view(), in[i + 3].view()});
        kernels::AdamwStep args = step;
        args.tensors = tensors;
        kernels::adamw_step(args, current_stream(in[0].device()));
        return {};
    };
    double n = 0;
    for (const OpInput& input : c.inputs) n += static_cast<double>(numel_of(input.shape)) / 4;
    c.forward = {.flops = 15 * n, .bytes = 28 * n};
    c.bench = bench;
    return c;
}

}  // namespace

LC_OP_CASES(adamw) {
    add(make("first_step", {{1}, {3, 5}}, {.lr = 1e-2, .step = 1}));
    add(make("decay_and_clip", {{33, 65}, {7}}, {.lr = 1e-3, .weight_decay = 0.1, .grad_scale = 0.25, .step = 1000}));
    add(make("no_momentum", {{129}, {2, 2}}, {.lr = 1e-2, .beta1 = 0, .beta2 = 0.5, .eps = 1e-3, .step = 3}));
    add(make("chunks", {{0}, {97, 101}, {4096}}, {.lr = 1e-2, .step = 2}));
    add(make("many", std::vector<Shape>(130, Shape{5}), {.lr = 1e-2, .step = 2}));
    const kernels::AdamwStep step{.lr = 1e-6, .step = 10};
    add(in_place(make("4M", {{2048, 1024}, {2048, 1024}}, step), step, Bench::cpu));
    add(in_place(make("maps_17M", llama8b::map_shapes(), step), step, Bench::gpu));
    add(in_place(make("lora_7M", llama8b::lora_shapes(), step), step, Bench::gpu));
}

}  // namespace lc::testing
