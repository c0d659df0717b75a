#include "autograd/ops/embedding.h"

#include "autograd/node.h"
#include "kernels/embedding/embedding.h"

namespace lc {
namespace {

struct EmbeddingNode final : Node {
    SavedTensor ids{this, "ids"};
    std::string_view name() const override { return "embedding"; }

    void backward(std::span<const Tensor> dout, GradSink& din) override {
        kernels::embedding_backward({.ids = ids.view(), .dout = dout[0].view(), .dweight = din.slot(0)},
                                    current_stream(dout[0].device()));
    }
};

}  // namespace

Tensor embedding(const Tensor& weight, const Tensor& ids, std::optional<DType> dtype) {
    LC_CHECK(weight.rank() == 2, "embedding: weight must be [V,D], got {}", weight.shape());
    Shape shape = ids.shape();
    shape.push_back(weight.size(1));
    Tensor out = Tensor::empty(shape, dtype.value_or(weight.dtype()), weight.device());
    kernels::embedding_forward({.weight = weight.view(), .ids = ids.view(), .out = out.view()},
                               current_stream(weight.device()));
    if (should_record({&weight})) {
        auto node = std::make_shared<EmbeddingNode>();
        node->ids.save(ids);
        record(node, {&weight}, {&out});
    }
    return out;
}

}  // namespace lc
