#include "kernels/adamw/adamw.h"

#include "tests/ops/op_case.h"

namespace lc::testing {
namespace {

// Several tensors in one call; in[4i..4i+3] are parameter, gradient, m, v. Each tensor has its own rates: those given for the
// first, other ones for the next.
void update(const Tensors& in, const kernels::AdamwTensor& rates, kernels::AdamwStep step) {
    std::vector<kernels::AdamwTensor> tensors;
    for (size_t i = 0; i < in.size(); i += 4) {
        const auto nth = static_cast<double>(i / 4);
        tensors.push_back({.parameter = in[i].view(),
                           .grad = in[i + 1].view(),
                           .m = in[i + 2].view(),
                           .v = in[i + 3].view(),
                           .lr = rates.lr * (1 + nth),
                           .weight_decay = rates.weight_decay / (1 + nth),
                           .grad_scale = rates.grad_scale / (1 + nth / 2)});
    }
    step.tensors = tensors;
    kernels::adamw_step(step, current_stream(in[0].device()));
}

OpCase make(std::string variant, const std::vector<Shape>& shapes, kernels::AdamwTensor rates,
            kernels::AdamwStep step) {
    OpCase c{.op = "adamw", .variant = std::move(variant), .inputs = {}, .run = {}};
    for (const Shape& shape : shapes)
        for (const char* name : {"parameter", "grad", "m", "v"})
            c.inputs.push_back(
                {.name = name, .shape = shape, .fill = *name == 'v' ? Fill::Positive : Fill::Normal, .wide = true});
    c.run = [rates, step](const Tensors& in) -> Tensors {
        Tensors out;
        for (const Tensor& tensor : in) out.push_back(tensor.clone());
        update(out, rates, step);
        return out;
    };
    c.differentiable = false;
    return c;
}

OpCase in_place(std::string variant, const std::vector<Shape>& shapes, Bench bench) {
    const kernels::AdamwTensor rates{.lr = 1e-6};
    const kernels::AdamwStep step{.step = 10};
    OpCase c = make(std::move(variant), shapes, rates, step);
    c.run = [rates, step](const Tensors& in) -> Tensors {
        update(in, rates, step);
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
    add(make("first_step", {{1}, {3, 5}}, {.lr = 1e-2}, {.step = 1}));
    add(make("decay_and_clip", {{33, 65}, {7}}, {.lr = 1e-3, .weight_decay = 0.1, .grad_scale = 0.25}, {.step = 1000}));
    add(make("no_momentum", {{129}, {2, 2}}, {.lr = 1e-2}, {.beta1 = 0, .beta2 = 0.5, .eps = 1e-3, .step = 3}));
    add(make("chunks", {{0}, {97, 101}, {4096}}, {.lr = 1e-2}, {.step = 2}));
    add(make("more_than_a_table", std::vector<Shape>(510, Shape{5}), {.lr = 1e-5, .weight_decay = 1}, {.step = 2}));
    add(in_place("4M", {{2048, 1024}, {2048, 1024}}, Bench::cpu));
    add(in_place("maps_17M", llama8b::map_shapes(), Bench::gpu));
    add(in_place("lora_7M", llama8b::lora_shapes(), Bench::gpu));
}

}  // namespace lc::testing
