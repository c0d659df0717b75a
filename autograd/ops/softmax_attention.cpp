#include "autograd/ops/softmax_attention.h"

#include "autograd/node.h"
#include "kernels/softmax_attention/softmax_attention.h"

namespace lc {
namespace {

struct SoftmaxAttentionNode final : Node {
    SavedTensor q{this, "q"}, k{this, "k"}, v{this, "v"}, y{this, "y"}, lse{this, "lse"};
    int64_t window = 0;
    std::string_view name() const override { return "softmax_attention"; }

    void backward(std::span<const Tensor> dout, GradSink& din) override {
        kernels::softmax_attention_backward(
            {.forward =
                 {.q = q.view(), .k = k.view(), .v = v.view(), .y = y.view(), .lse = lse.view(), .window = window},
             .dy = dout[0].view(),
             .dq = din.slot(0),
             .dk = din.slot(1),
             .dv = din.slot(2)},
            current_stream(dout[0].device()));
    }
};

}  // namespace

Tensor softmax_attention(const Tensor& q, const Tensor& k, const Tensor& v, int64_t window) {
    LC_CHECK(q.rank() == 4, "softmax_attention: q must be [B,H,T,D], got {}", q.shape());
    const int64_t batch = q.size(0), heads = q.size(1), t = q.size(2), d = q.size(3);
    Tensor y = Tensor::empty({batch, t, heads, d}, q.dtype(), q.device()).permuted({0, 2, 1, 3});
    const bool taped = should_record({&q, &k, &v});
    const Tensor lse = taped ? Tensor::empty({batch, heads, t}, statistics_dtype(q.dtype()), q.device()) : Tensor();
    kernels::softmax_attention_forward(
        {.q = q.view(), .k = k.view(), .v = v.view(), .y = y.view(), .lse = lse.view(), .window = window},
        current_stream(q.device()));
    if (taped) {
        auto node = std::make_shared<SoftmaxAttentionNode>();
        node->window = window;
        node->q.save(q), node->k.save(k), node->v.save(v), node->y.save(y), node->lse.save(lse);
        record(node, {&q, &k, &v}, {&y});
    }
    return y;
}

}  // namespace lc
