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
    double n = 0;
    for (const Shape& shape : shapes) n += static_cast<double>(numel_of(shape));
    c.flops = 15 * n;
    c.bytes = 28 * n;
    c.differentiable = false;
    return c;
}

}  // namespace

LC_OP_CASES(adamw) {
    add(make("first_step", {{1}, {3, 5}}, {.lr = 1e-2, .step = 1}));
    add(make("decay_and_clip", {{33, 65}, {7}}, {.lr = 1e-3, .weight_decay = 0.1, .grad_scale = 0.25, .step = 1000}));
    add(make("no_momentum", {{129}, {2, 2}}, {.lr = 1e-2, .beta1 = 0, .beta2 = 0.5, .eps = 1e-3, .step = 3}));
    add(make("chunks", {{0}, {97, 101}, {4096}}, {.lr = 1e-2, .step = 2}));
    add(make("many", std::vector<Shape>(130, Shape{5}), {.lr = 1e-2, .step = 2}));
    OpCase bench = make("4M", {{2048, 1024}, {2048, 1024}}, {.step = 10});
    bench.bench = true;
    add(bench);
}

}  // namespace lc::testing
