#include "autograd/ops/concat.h"

#include "autograd/node.h"
#include "kernels/concat/concat.h"

namespace lc {
namespace {

struct ConcatNode final : Node {
    int64_t a_size = 0;
    int axis = 0;
    std::string_view name() const override { return "concat"; }

    void backward(std::span<const Tensor> dout, GradSink& din) override {
        kernels::concat_backward(
            {.dout = dout[0].view(), .da = din.slot(0), .db = din.slot(1), .a_size = a_size, .axis = axis},
            current_stream(dout[0].device()));
    }
};

}  // namespace

Tensor concat(const Tensor& a, const Tensor& b, int axis) {
    if (!a.defined()) return b;
    if (axis < 0) axis += a.rank();
    LC_CHECK(a.rank() == b.rank() && axis >= 0 && axis < a.rank(), "concat of {} and {} along axis {}", a.shape(),
             b.shape(), axis);
    Layout layout = b.layout();  // b is what is new: the result keeps its order of axes in memory
    layout.shape[axis] += a.size(axis);
    Tensor out = Tensor::empty_like(layout, a.dtype(), a.device());
    kernels::concat_forward({.a = a.view(), .b = b.view(), .out = out.view(), .axis = axis}, current_stream(a.device()));
    if (should_record({&a, &b})) {
        auto node = std::make_shared<ConcatNode>();
        node->a_size = a.size(axis), node->axis = axis;
        record(node, {&a, &b}, {&out});
    }
    return out;
}

}  // namespace lc
