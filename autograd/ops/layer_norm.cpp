#include "autograd/ops/layer_norm.h"

#include "autograd/node.h"
#include "kernels/layer_norm/layer_norm.h"

namespace lc {
namespace {

struct LayerNormNode final : Node {
    SavedTensor x{this, "x"}, weight{this, "weight"}, mean{this, "mean"}, rstd{this, "rstd"};
    std::string_view name() const override { return "layer_norm"; }

    void backward(std::span<const Tensor> dout, GradSink& din) override {
        kernels::layer_norm_backward({.x = x.view(),
                                      .weight = weight.view(),
                                      .mean = mean.view(),
                                      .rstd = rstd.view(),
                                      .dy = dout[0].view(),
                                      .dx = din.slot(0),
                                      .dweight = din.slot(1),
                                      .dbias = din.slot(2)},
                                     current_stream(dout[0].device()));
    }
};

}  // namespace

Tensor layer_norm(const Tensor& x, const Tensor& weight, const Tensor& bias, double eps) {
    LC_CHECK(x.rank() >= 1 && weight.shape() == Shape{x.size(-1)} && bias.shape() == weight.shape(),
             "layer_norm: x must be [...,D], weight and bias [D], got {}, {} and {}", x.shape(), weight.shape(),
             bias.shape());
    int64_t rows = 1;
    for (int axis = 0; axis + 1 < x.rank(); ++axis) rows *= x.size(axis);
    const Tensor mean = Tensor::empty({rows}, statistics_dtype(x.dtype()), x.device());
    const Tensor rstd = Tensor::empty({rows}, statistics_dtype(x.dtype()), x.device());
    Tensor y = Tensor::empty_like(x.layout(), x.dtype(), x.device());
    kernels::layer_norm_forward({.x = x.view(),
                                 .weight = weight.view(),
                                 .bias = bias.view(),
                                 .y = y.view(),
                                 .mean = mean.view(),
                                 .rstd = rstd.view(),
                                 .eps = eps},
                                current_stream(x.device()));
    if (should_record({&x, &weight, &bias})) {
        auto node = std::make_shared<LayerNormNode>();
        node->x.save(x), node->weight.save(weight), node->mean.save(mean), node->rstd.save(rstd);
        record(node, {&x, &weight, &bias}, {&y});
    }
    return y;
}

}  // namespace lc
