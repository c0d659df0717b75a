#include "autograd/ops/swiglu.h"

#include "autograd/node.h"
#include "kernels/swiglu/swiglu.h"

namespace lc {
namespace {

struct SwigluNode final : Node {
    SavedTensor gate{this, "gate"}, up{this, "up"};
    std::string_view name() const override { return "swiglu"; }

    void backward(std::span<const Tensor> dout, GradSink& din) override {
        kernels::swiglu_backward(
            {.gate = gate.view(), .up = up.view(), .dy = dout[0].view(), .dgate = din.slot(0), .dup = din.slot(1)},
            current_stream(dout[0].device()));
    }
};

}  // namespace

Tensor swiglu(const Tensor& gate, const Tensor& up) {
    LC_CHECK(gate.shape() == up.shape(), "swiglu: gate and up must have one shape, got {} and {}", gate.shape(),
             up.shape());
    Tensor y = Tensor::empty_like(gate.layout(), gate.dtype(), gate.device());
    kernels::swiglu_forward({.gate = gate.view(), .up = up.view(), .y = y.view()}, current_stream(gate.device()));
    if (should_record({&gate, &up})) {
        auto node = std::make_shared<SwigluNode>();
        node->gate.save(gate), node->up.save(up);
        record(node, {&gate, &up}, {&y});
    }
    return y;
}

}  // namespace lc
