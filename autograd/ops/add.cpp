#include "autograd/ops/add.h"

#include "autograd/node.h"
#include "kernels/add/add.h"

namespace lc {
namespace {

struct AddNode final : Node {
    std::string_view name() const override { return "add"; }

    // One input takes the gradient itself; if both want it, the other gets a copy, made before the tensor is given
    // away.
    void backward(std::span<const Tensor> dout, GradSink& din) override {
        if (din.wants(0) && din.wants(1))
            kernels::add_backward({.dc = dout[0].view(), .da = din.slot(0)}, current_stream(dout[0].device()));
        din.pass(din.wants(1) ? 1 : 0, dout[0]);
    }
};

}  // namespace

Tensor add(const Tensor& a, const Tensor& b) {
    LC_CHECK(a.shape() == b.shape() && a.dtype() == b.dtype(), "add: shapes and dtypes must agree, got {} {} and {} {}",
             a.shape(), name_of(a.dtype()), b.shape(), name_of(b.dtype()));
    Tensor c = Tensor::empty_like(a.layout(), a.dtype(), a.device());
    kernels::add_forward({.a = a.view(), .b = b.view(), .c = c.view()}, current_stream(a.device()));
    if (should_record({&a, &b})) record(std::make_shared<AddNode>(), {&a, &b}, {&c});
    return c;
}

}  // namespace lc
