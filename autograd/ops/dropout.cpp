#include "autograd/ops/dropout.h"

#include "autograd/node.h"
#include "kernels/dropout/dropout.h"

namespace lc {
namespace {

struct DropoutNode final : Node {
    kernels::DropoutMask mask;
    std::string_view name() const override { return "dropout"; }

    void backward(std::span<const Tensor> dout, GradSink& din) override {
        kernels::dropout_backward({.dy = dout[0].view(), .dx = din.slot(0), .mask = mask}, current_stream(dout[0].device()));
    }
};

}  // namespace

Tensor dropout(const Tensor& x, double p, uint64_t seed, uint64_t stream) {
    if (p == 0) return x;
    const kernels::DropoutMask mask{p, seed, stream};
    Tensor y = Tensor::empty_like(x.layout(), x.dtype(), x.device());
    kernels::dropout_forward({.x = x.view(), .y = y.view(), .mask = mask}, current_stream(x.device()));
    if (should_record({&x})) {
        auto node = std::make_shared<DropoutNode>();
        node->mask = mask;
        record(node, {&x}, {&y});
    }
    return y;
}

}  // namespace lc
