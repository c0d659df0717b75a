#include "autograd/ops/scale.h"

#include "autograd/node.h"
#include "kernels/scale/scale.h"

namespace lc {
namespace {

struct ScaleNode final : Node {
    double factor = 1;
    std::string_view name() const override { return "scale"; }

    void backward(std::span<const Tensor> dout, GradSink& din) override {
        kernels::scale_backward({.dy = dout[0].view(), .dx = din.slot(0), .factor = factor}, current_stream(dout[0].device()));
    }
};

}  // namespace

Tensor scale(const Tensor& x, double factor) {
    Tensor y = Tensor::empty_like(x.layout(), x.dtype(), x.device());
    kernels::scale_forward({.x = x.view(), .y = y.view(), .factor = factor}, current_stream(x.device()));
    if (should_record({&x})) {
        auto node = std::make_shared<ScaleNode>();
        node->factor = factor;
        record(node, {&x}, {&y});
    }
    return y;
}

}  // namespace lc
