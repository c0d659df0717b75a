#include "autograd/ops/gelu.h"

#include "autograd/node.h"
#include "kernels/gelu/gelu.h"

namespace lc {
namespace {

struct GeluNode final : Node {
    SavedTensor x{this, "x"}, up{this, "up"};
    bool gated = false;
    std::string_view name() const override { return gated ? "geglu" : "gelu"; }

    void backward(std::span<const Tensor> dout, GradSink& din) override {
        kernels::gelu_backward({.x = x.view(),
                                .up = gated ? up.view() : TensorView{},
                                .dy = dout[0].view(),
                                .dx = din.slot(0),
                                .dup = gated ? din.slot(1) : GradSlot{}},
                               current_stream(dout[0].device()));
    }
};

Tensor run(const Tensor& x, const Tensor& up) {
    Tensor y = Tensor::empty_like(x.layout(), x.dtype(), x.device());
    kernels::gelu_forward({.x = x.view(), .up = up.view(), .y = y.view()}, current_stream(x.device()));
    if (should_record({&x, &up})) {
        auto node = std::make_shared<GeluNode>();
        node->gated = up.defined();
        node->x.save(x), node->up.save(up);
        if (up.defined())
            record(node, {&x, &up}, {&y});
        else
            record(node, {&x}, {&y});
    }
    return y;
}

}  // namespace

Tensor gelu(const Tensor& x) {
    return run(x, {});
}

Tensor geglu(const Tensor& gate, const Tensor& up) {
    LC_CHECK(up.defined() && gate.shape() == up.shape(), "geglu: gate and up must have one shape, got {} and {}",
             gate.shape(), up.shape());
    return run(gate, up);
}

}  // namespace lc
