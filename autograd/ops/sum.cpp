#include "autograd/ops/sum.h"

#include "autograd/node.h"
#include "kernels/sum/sum.h"

namespace lc {
namespace {

struct SumNode final : Node {
    std::string_view name() const override { return "sum"; }

    void backward(std::span<const Tensor> dout, GradSink& din) override {
        kernels::sum_backward({.dy = dout[0].view(), .dx = din.slot(0)}, current_stream(dout[0].device()));
    }
};

}  // namespace

Tensor sum(const Tensor& x) {
    Tensor y = Tensor::empty({}, statistics_dtype(x.dtype()), x.device());
    kernels::sum_forward({.x = x.view(), .y = y.view()}, current_stream(x.device()));
    if (should_record({&x})) record(std::make_shared<SumNode>(), {&x}, {&y});
    return y;
}

}  // namespace lc
