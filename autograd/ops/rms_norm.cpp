#include "autograd/ops/rms_norm.h"

#include "autograd/node.h"
#include "kernels/rms_norm/rms_norm.h"

namespace lc {
namespace {

struct RmsNormNode final : Node {
    SavedTensor s{this, "s"}, weight{this, "weight"}, rstd{this, "rstd"};
    double offset = 0;
    bool fused = false;  // inputs {x, residual, weight} and outputs {y, sum} instead of {x, weight} and {y}
    std::string_view name() const override { return fused ? "add_rms_norm" : "rms_norm"; }

    void backward(std::span<const Tensor> dout, GradSink& din) override {
        GradSlot dx, dresidual;  // equal: one tensor where that can be
        if (fused) dx = din.shared_slot(0, 1);
        if (!dx) {
            dx = din.slot(0);
            if (fused) dresidual = din.slot(1);
        }
        kernels::rms_norm_backward({.s = s.view(),
                                    .weight = weight.view(),
                                    .rstd = rstd.view(),
                                    .dy = dout[0].view(),
                                    .dsum = fused ? dout[1].view() : TensorView{},
                                    .dx = dx,
                                    .dresidual = dresidual,
                                    .dweight = din.slot(fused ? 2 : 1),
                                    .offset = offset},
                                   current_stream(rstd.get().device()));
    }
};

Tensor make_rstd(const Tensor& x, const Tensor& weight) {
    LC_CHECK(x.rank() >= 1 && weight.shape() == Shape{x.size(-1)},
             "rms_norm: x must be [...,D] and weight [D], got {} and {}", x.shape(), weight.shape());
    int64_t rows = 1;
    for (int axis = 0; axis + 1 < x.rank(); ++axis) rows *= x.size(axis);
    return Tensor::empty({rows}, statistics_dtype(x.dtype()), x.device());
}

}  // namespace

Tensor rms_norm(const Tensor& x, const Tensor& weight, double eps, double offset) {
    const Tensor rstd = make_rstd(x, weight);
    Tensor y = Tensor::empty_like(x.layout(), x.dtype(), x.device());
    kernels::rms_norm_forward(
        {.x = x.view(), .weight = weight.view(), .y = y.view(), .rstd = rstd.view(), .eps = eps, .offset = offset},
        current_stream(x.device()));
    if (should_record({&x, &weight})) {
        auto node = std::make_shared<RmsNormNode>();
        node->offset = offset;
        node->s.save(x), node->weight.save(weight), node->rstd.save(rstd);
        record(node, {&x, &weight}, {&y});
    }
    return y;
}

std::pair<Tensor, Tensor> add_rms_norm(const Tensor& x, const Tensor& residual, const Tensor& weight, double eps,
                                       double offset) {
    LC_CHECK(x.shape() == residual.shape(), "add_rms_norm: x {} and residual {} must have one shape", x.shape(),
             residual.shape());
    const Tensor rstd = make_rstd(x, weight);
    Tensor y = Tensor::empty_like(x.layout(), x.dtype(), x.device());
    Tensor sum = Tensor::empty_like(x.layout(), x.dtype(), x.device());
    kernels::rms_norm_forward({.x = x.view(),
                               .residual = residual.view(),
                               .weight = weight.view(),
                               .y = y.view(),
                               .sum = sum.view(),
                               .rstd = rstd.view(),
                               .eps = eps,
                               .offset = offset},
                              current_stream(x.device()));
    if (should_record({&x, &residual, &weight})) {
        auto node = std::make_shared<RmsNormNode>();
        node->fused = true, node->offset = offset;
        node->s.save(sum), node->weight.save(weight), node->rstd.save(rstd);
        record(node, {&x, &residual, &weight}, {&y, &sum});
    }
    return {y, sum};
}

}  // namespace lc
