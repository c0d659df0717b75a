#include "autograd/ops/rope.h"

#include "autograd/node.h"
#include "kernels/rope/rope.h"

namespace lc {
namespace {

struct RopeNode final : Node {
    SavedTensor cos{this, "cos"}, sin{this, "sin"}, positions{this, "positions"};
    int64_t first = 0;
    std::string_view name() const override { return "rope"; }

    void backward(std::span<const Tensor> dout, GradSink& din) override {
        kernels::rope_backward({.dy = dout[0].view(),
                                .cos = cos.view(),
                                .sin = sin.view(),
                                .dx = din.slot(0),
                                .first = first,
                                .positions = positions.view()},
                               current_stream(dout[0].device()));
    }
};

Tensor rotate(const Tensor& x, const Tensor& cos, const Tensor& sin, int64_t first, const Tensor& positions) {
    Tensor y = Tensor::empty_like(x.layout(), x.dtype(), x.device());
    kernels::rope_forward({.x = x.view(),
                           .cos = cos.view(),
                           .sin = sin.view(),
                           .y = y.view(),
                           .first = first,
                           .positions = positions.view()},
                          current_stream(x.device()));
    if (should_record({&x})) {
        auto node = std::make_shared<RopeNode>();
        node->cos.save(cos), node->sin.save(sin);
        if (positions.defined()) node->positions.save(positions);
        node->first = first;
        record(node, {&x}, {&y});
    }
    return y;
}

}  // namespace

Tensor rope(const Tensor& x, const Tensor& cos, const Tensor& sin, int64_t first) {
    return rotate(x, cos, sin, first, {});
}

Tensor rope(const Tensor& x, const Tensor& cos, const Tensor& sin, const Tensor& positions) {
    LC_CHECK(positions.defined(), "rope: positions are missing");
    return rotate(x, cos, sin, 0, positions);
}

}  // namespace lc
