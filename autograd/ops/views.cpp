#include "autograd/ops/views.h"

#include <vector>

#include "autograd/node.h"
#include "kernels/accumulate/accumulate.h"

namespace lc {
namespace {

struct ReshapeNode final : Node {
    Shape from;
    std::string_view name() const override { return "reshape"; }
    void backward(std::span<const Tensor> dout, GradSink& din) override { din.pass(0, dout[0].reshaped(from)); }
};

struct PermuteNode final : Node {
    std::vector<int> axes;
    std::string_view name() const override { return "permute"; }

    void backward(std::span<const Tensor> dout, GradSink& din) override {
        Layout layout = dout[0].layout();
        for (size_t i = 0; i < axes.size(); ++i) {  // new axis i was old axis axes[i]
            layout.shape[axes[i]] = dout[0].layout().shape[static_cast<int>(i)];
            layout.strides[axes[i]] = dout[0].layout().strides[static_cast<int>(i)];
        }
        din.pass(0, dout[0].with_layout(layout));
    }
};

struct SliceNode final : Node {
    int axis = 0;
    int64_t start = 0, length = 0;
    std::string_view name() const override { return "slice"; }

    void backward(std::span<const Tensor> dout, GradSink& din) override {
        const GradSlot dx = din.slot(0);
        const auto part = [&](int64_t first, int64_t count) {
            TensorView view = dx.view;
            view.layout = view.layout.slice(axis, first, count);
            return view;
        };
        const TensorView inside = part(start, length), grad = dout[0].view();
        if (dx.accumulate())
            return kernels::accumulate({.source = grad, .target = inside}, current_stream(dx.view.device));
        fill_strided(part(0, start), 0);
        fill_strided(part(start + length, dx.view.size(axis) - start - length), 0);
        copy_strided(grad, inside);
    }
};

}  // namespace

Tensor reshape(const Tensor& x, const Shape& shape) {
    Tensor y = x.reshaped(shape);
    if (should_record({&x})) {
        auto node = std::make_shared<ReshapeNode>();
        node->from = x.shape();
        record(node, {&x}, {&y});
    }
    return y;
}

Tensor permute(const Tensor& x, std::initializer_list<int> axes) {
    Tensor y = x.permuted(axes);
    if (should_record({&x})) {
        auto node = std::make_shared<PermuteNode>();
        node->axes = axes;
        record(node, {&x}, {&y});
    }
    return y;
}

Tensor slice(const Tensor& x, int axis, int64_t start, int64_t length) {
    Tensor y = x.sliced(axis, start, length);
    if (should_record({&x})) {
        auto node = std::make_shared<SliceNode>();
        node->axis = axis < 0 ? axis + x.rank() : axis;
        node->start = start, node->length = length;
        record(node, {&x}, {&y});
    }
    return y;
}

}  // namespace lc
