#include "autograd/ops/feature_map.h"

#include "autograd/node.h"

namespace lc {
namespace {

struct FeatureMapNode final : Node {
    SavedTensor x{this, "x"}, w{this, "w"}, b{this, "b"}, phi{this, "phi"};
    kernels::FeatureActivation activation{};
    bool skip = false;
    std::string_view name() const override { return "feature_map"; }

    void backward(std::span<const Tensor> dout, GradSink& din) override {
        kernels::feature_map_backward({.forward = {.x = x.view(), .w = w.view(), .b = b.view(), .phi = phi.view(),
                                                   .activation = activation, .skip = skip},
                                       .dphi = dout[0].view(), .dx = din.slot(0), .dw = din.slot(1), .db = din.slot(2)},
                                      current_stream(dout[0].device()));
    }
};

}  // namespace

Tensor feature_map(const Tensor& x, const Tensor& w, const Tensor& b, kernels::FeatureActivation activation, bool skip) {
    LC_CHECK(x.rank() == 4 && w.rank() == 3, "feature_map: x must be [B,H,T,D] and w [H,D,F], got {} and {}", x.shape(),
             w.shape());
    Tensor phi = Tensor::empty({x.size(0), w.size(0), x.size(2), kernels::feature_size(activation, w.size(2))}, x.dtype(),
                               x.device());
    kernels::feature_map_forward({.x = x.view(), .w = w.view(), .b = b.view(), .phi = phi.view(), .activation = activation,
                                  .skip = skip}, current_stream(x.device()));
    if (should_record({&x, &w, &b})) {
        auto node = std::make_shared<FeatureMapNode>();
        node->x.save(x), node->w.save(w), node->b.save(b), node->phi.save(phi);
        node->activation = activation, node->skip = skip;
        record(node, {&x, &w, &b}, {&phi});
    }
    return phi;
}

}  // namespace lc
