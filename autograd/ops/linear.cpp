#include "autograd/ops/linear.h"

#include "autograd/node.h"
#include "kernels/linear/linear.h"

namespace lc {
namespace {

struct LinearNode final : Node {
    SavedTensor x{this, "x"}, w{this, "w"};
    std::string_view name() const override { return "linear"; }

    void backward(std::span<const Tensor> dout, GradSink& din) override {
        kernels::linear_backward({.x = x.view(),
                                  .w = w.view(),
                                  .dy = dout[0].view(),
                                  .dx = din.slot(0),
                                  .dw = din.slot(1),
                                  .db = din.slot(2)},
                                 current_stream(dout[0].device()));
        din.pass(3, dout[0]);  // last: from here on it is the residual's
    }
};

}  // namespace

Tensor linear(const Tensor& x, const Tensor& w, const Tensor& b, const Tensor& residual) {
    LC_CHECK(x.rank() >= 1 && w.rank() == 2 && x.size(-1) == w.size(1),
             "linear: x must be [...,In] and w [Out,In], got {} and {}", x.shape(), w.shape());
    Shape shape = x.shape();
    shape[-1] = w.size(0);
    Tensor y = Tensor::empty(shape, x.dtype(), x.device());
    kernels::linear_forward(
        {.x = x.view(), .w = w.view(), .b = b.view(), .residual = residual.view(), .y = y.view()},
        current_stream(x.device()));
    if (should_record({&x, &w, &b, &residual})) {
        auto node = std::make_shared<LinearNode>();
        if (requires_grad(w)) node->x.save(x);  // a frozen weight keeps no activations
        node->w.save(w);
        record(node, {&x, &w, &b, &residual}, {&y});
    }
    return y;
}

}  // namespace lc
