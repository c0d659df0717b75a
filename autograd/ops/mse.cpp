#include "autograd/ops/mse.h"

#include "autograd/node.h"
#include "kernels/mse/mse.h"

namespace lc {
namespace {

struct MseNode final : Node {
    SavedTensor y{this, "y"}, target{this, "target"};
    std::string_view name() const override { return "mse"; }

    void backward(std::span<const Tensor> dout, GradSink& din) override {
        kernels::mse_backward({.y = y.view(),
                               .target = target.view(),
                               .dloss = dout[0].view(),
                               .dy = din.slot(0),
                               .dtarget = din.slot(1)},
                              current_stream(dout[0].device()));
    }
};

}  // namespace

Tensor mse(const Tensor& y, const Tensor& target) {
    Tensor loss = Tensor::empty({}, statistics_dtype(y.dtype()), y.device());
    kernels::mse_forward({.y = y.view(), .target = target.view(), .loss = loss.view()}, current_stream(y.device()));
    if (should_record({&y, &target})) {
        auto node = std::make_shared<MseNode>();
        node->y.save(y), node->target.save(target);
        record(node, {&y, &target}, {&loss});
    }
    return loss;
}

}  // namespace lc
