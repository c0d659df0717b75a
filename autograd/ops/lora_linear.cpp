#include "autograd/ops/lora_linear.h"

#include "autograd/node.h"
#include "kernels/lora_linear/lora_linear.h"

namespace lc {
namespace {

struct LoraLinearNode final : Node {
    SavedTensor x{this, "x"}, w{this, "w"}, a{this, "a"}, b{this, "b"}, p{this, "p"};
    double s = 1;
    std::string_view name() const override { return "lora_linear"; }

    void backward(std::span<const Tensor> dout, GradSink& din) override {
        kernels::lora_linear_backward({.x = x.view(),
                                       .w = w.view(),
                                       .a = a.view(),
                                       .b = b.view(),
                                       .p = p.view(),
                                       .dy = dout[0].view(),
                                       .dx = din.slot(0),
                                       .dw = din.slot(1),
                                       .da = din.slot(2),
                                       .db = din.slot(3),
                                       .dbias = din.slot(4),
                                       .s = s},
                                      current_stream(dout[0].device()));
    }
};

}  // namespace

Tensor lora_linear(const Tensor& x, const Tensor& w, const Tensor& a, const Tensor& b, double s, const Tensor& bias) {
    LC_CHECK(x.rank() >= 1 && x.size(-1) > 0 && w.rank() == 2 && a.rank() == 2,
             "lora_linear: x must be [...,In], w [Out,In], a [R,In], got {}, {}, {}", x.shape(), w.shape(), a.shape());
    Shape shape = x.shape();
    shape[-1] = w.size(0);
    Tensor y = Tensor::empty(shape, x.dtype(), x.device());
    const Tensor p = Tensor::empty({x.numel() / x.size(-1), a.size(0)}, x.dtype(), x.device());
    kernels::lora_linear_forward({.x = x.view(),
                                  .w = w.view(),
                                  .a = a.view(),
                                  .b = b.view(),
                                  .bias = bias.view(),
                                  .p = p.view(),
                                  .y = y.view(),
                                  .s = s},
                                 current_stream(x.device()));
    if (should_record({&x, &w, &a, &b, &bias})) {
        auto node = std::make_shared<LoraLinearNode>();
        node->x.save(x), node->w.save(w), node->a.save(a), node->b.save(b), node->p.save(p);
        node->s = s;
        record(node, {&x, &w, &a, &b, &bias}, {&y});
    }
    return y;
}

}  // namespace lc
