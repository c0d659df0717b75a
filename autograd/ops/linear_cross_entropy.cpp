#include "autograd/ops/linear_cross_entropy.h"

#include "autograd/node.h"
#include "kernels/linear_cross_entropy/linear_cross_entropy.h"

namespace lc {
namespace {

// The forward has the logits in hand, so it makes the gradients for dloss = 1; the backward only scales them.
struct LinearCrossEntropyNode final : Node {
    SavedTensor unit_dhidden{this, "unit_dhidden"}, unit_dweight{this, "unit_dweight"}, unit_dbias{this, "unit_dbias"};
    std::string_view name() const override { return "linear_cross_entropy"; }

    void backward(std::span<const Tensor> dout, GradSink& din) override {
        kernels::linear_cross_entropy_backward({.unit_dhidden = unit_dhidden.view(),
                                                .unit_dweight = unit_dweight.view(),
                                                .unit_dbias = unit_dbias.view(),
                                                .dloss = dout[0].view(),
                                                .dhidden = din.slot(0),
                                                .dweight = din.slot(1),
                                                .dbias = din.slot(2)},
                                               current_stream(dout[0].device()));
    }
};

Tensor gradient_buffer(const Tensor& input, DType dtype) {
    return grad_enabled() && requires_grad(input) ? Tensor::empty_like(input.layout(), dtype, input.device())
                                                  : Tensor();
}

}  // namespace

Tensor linear_cross_entropy(const Tensor& hidden, const Tensor& weight, const Tensor& labels, const Tensor& bias) {
    Tensor loss = Tensor::empty({}, statistics_dtype(hidden.dtype()), hidden.device());
    const Tensor dhidden = gradient_buffer(hidden, hidden.dtype());
    const Tensor dweight = gradient_buffer(weight, statistics_dtype(weight.dtype()));  // summed over blocks of rows
    const Tensor dbias = bias.defined() ? gradient_buffer(bias, statistics_dtype(bias.dtype())) : Tensor();
    kernels::linear_cross_entropy_forward({.hidden = hidden.view(),
                                           .weight = weight.view(),
                                           .bias = bias.view(),
                                           .labels = labels.view(),
                                           .loss = loss.view(),
                                           .dhidden = dhidden.view(),
                                           .dweight = dweight.view(),
                                           .dbias = dbias.view()},
                                          current_stream(hidden.device()));
    if (should_record({&hidden, &weight, &bias})) {
        auto node = std::make_shared<LinearCrossEntropyNode>();
        node->unit_dhidden.save(dhidden), node->unit_dweight.save(dweight), node->unit_dbias.save(dbias);
        record(node, {&hidden, &weight, &bias}, {&loss});
    }
    return loss;
}

Tensor token_nll(const Tensor& hidden, const Tensor& weight, const Tensor& labels, const Tensor& bias) {
    const Tensor nll = Tensor::empty(labels.shape(), statistics_dtype(hidden.dtype()), hidden.device());
    kernels::linear_cross_entropy_forward({.hidden = hidden.view(),
                                           .weight = weight.view(),
                                           .bias = bias.view(),
                                           .labels = labels.view(),
                                           .nll = nll.view()},
                                          current_stream(hidden.device()));
    return nll;
}

}  // namespace lc
