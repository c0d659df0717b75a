#include "autograd/ops/matmul.h"

#include "autograd/node.h"
#include "kernels/matmul/matmul.h"

namespace lc {
namespace {

struct MatmulNode final : Node {
    SavedTensor a{this, "a"}, b{this, "b"};
    std::string_view name() const override { return "matmul"; }

    void backward(std::span<const Tensor> dout, GradSink& din) override {
        kernels::matmul_backward(
            {.a = a.view(), .b = b.view(), .dc = dout[0].view(), .da = din.slot(0), .db = din.slot(1)},
            current_stream(dout[0].device()));
    }
};

}  // namespace

Tensor matmul(const Tensor& a, const Tensor& b) {
    LC_CHECK(a.rank() >= 2 && a.rank() <= 4 && a.rank() == b.rank(),
             "matmul: needs two tensors of rank 2 to 4, got {} and {}", a.shape(), b.shape());
    Shape shape = a.shape();
    shape[-1] = b.size(-1);
    Tensor c = Tensor::empty(shape, a.dtype(), a.device());
    kernels::matmul_forward({.a = a.view(), .b = b.view(), .c = c.view()}, current_stream(a.device()));
    if (should_record({&a, &b})) {
        auto node = std::make_shared<MatmulNode>();
        node->a.save(a), node->b.save(b);
        record(node, {&a, &b}, {&c});
    }
    return c;
}

}  // namespace lc
