#include "autograd/ops/mul.h"

#include "autograd/node.h"
#include "kernels/mul/mul.h"

namespace lc {
namespace {

struct MulNode final : Node {
    SavedTensor a{this, "a"}, b{this, "b"};
    std::string_view name() const override { return "mul"; }

    void backward(std::span<const Tensor> dout, GradSink& din) override {
        kernels::mul_backward(
            {.a = a.view(), .b = b.view(), .dc = dout[0].view(), .da = din.slot(0), .db = din.slot(1)},
            current_stream(dout[0].device()));
    }
};

}  // namespace

Tensor mul(const Tensor& a, const Tensor& b) {
    LC_CHECK(a.shape() == b.shape() && a.dtype() == b.dtype(), "mul: shapes and dtypes must agree, got {} {} and {} {}",
             a.shape(), name_of(a.dtype()), b.shape(), name_of(b.dtype()));
    Tensor c = Tensor::empty_like(a.layout(), a.dtype(), a.device());
    kernels::mul_forward({.a = a.view(), .b = b.view(), .c = c.view()}, current_stream(a.device()));
    if (should_record({&a, &b})) {
        auto node = std::make_shared<MulNode>();
        node->a.save(a), node->b.save(b);
        record(node, {&a, &b}, {&c});
    }
    return c;
}

}  // namespace lc
