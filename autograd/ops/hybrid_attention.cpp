#include "autograd/ops/hybrid_attention.h"

#include "autograd/node.h"
#include "kernels/hybrid_attention/hybrid_attention.h"

namespace lc {
namespace {

struct HybridAttentionNode final : Node {
    SavedTensor q{this, "q"}, k{this, "k"}, v{this, "v"}, wq{this, "wq"}, bq{this, "bq"}, wk{this, "wk"},
        bk{this, "bk"}, mix_logit{this, "mix_logit"}, s{this, "s"}, z{this, "z"}, y{this, "y"};
    kernels::LinearizedSpec spec;
    int64_t first_key = 0;
    std::string_view name() const override { return "hybrid_attention"; }

    void backward(std::span<const Tensor> dout, GradSink& din) override {
        const bool has_state = num_outputs() > 1;
        const Tensor& out = y.get();
        const Tensor dy = dout[0].defined() ? dout[0] : Tensor::zeros(out.shape(), out.dtype(), out.device());
        kernels::hybrid_attention_backward({.forward = {.q = q.view(),
                                                        .k = k.view(),
                                                        .v = v.view(),
                                                        .wq = wq.view(),
                                                        .bq = bq.view(),
                                                        .wk = wk.view(),
                                                        .bk = bk.view(),
                                                        .mix_logit = mix_logit.view(),
                                                        .s_in = s.view(),
                                                        .z_in = z.view(),
                                                        .y = out.view(),
                                                        .first_key = first_key,
                                                        .spec = spec},
                                            .dy = dy.view(),
                                            .ds_out = has_state ? dout[1].view() : TensorView{},
                                            .dz_out = has_state ? dout[2].view() : TensorView{},
                                            .dq = din.slot(0),
                                            .dk = din.slot(1),
                                            .dv = din.slot(2),
                                            .dwq = din.slot(3),
                                            .dbq = din.slot(4),
                                            .dwk = din.slot(5),
                                            .dbk = din.slot(6),
                                            .dmix_logit = din.slot(7),
                                            .ds_in = din.slot(8),
                                            .dz_in = din.slot(9)},
                                           current_stream(q.get().device()));
    }
};

// [B,H,T,D] that lies in memory as [B,T,H,D]: the output projection then reads it as [B,T,H*D] without a copy.
Tensor empty_rows(const Tensor& q) {
    return Tensor::empty({q.size(0), q.size(2), q.size(1), q.size(3)}, q.dtype(), q.device()).permuted({0, 2, 1, 3});
}

}  // namespace

AttentionResult hybrid_attention(const Tensor& q, const Tensor& k, const Tensor& v, const FeatureMaps& maps,
                                 const Tensor& mix_logit, const kernels::LinearizedSpec& spec, const HybridPast& past,
                                 bool want_state) {
    LC_CHECK(spec.window != kernels::WindowKind::none,
             "hybrid_attention: needs a window; pure linear is linear_attention");
    LC_CHECK(q.rank() == 4 && maps.wq.rank() == 3 && maps.wk.rank() == 3,
             "hybrid_attention: q must be [B,H,T,D], wq and wk [H,D,F], got {}, {} and {}", q.shape(), maps.wq.shape(),
             maps.wk.shape());
    AttentionResult result{.y = empty_rows(q)};
    if (want_state) {
        const int64_t features = kernels::feature_size(spec.activation, maps.wq.size(2));
        result.state.s = Tensor::empty({q.size(0), maps.wk.size(0), features, q.size(3)}, statistics_dtype(q.dtype()), q.device());
        result.state.z = Tensor::empty({q.size(0), maps.wk.size(0), features}, statistics_dtype(q.dtype()), q.device());
    }
    kernels::hybrid_attention_forward({.q = q.view(),
                                       .k = k.view(),
                                       .v = v.view(),
                                       .wq = maps.wq.view(),
                                       .bq = maps.bq.view(),
                                       .wk = maps.wk.view(),
                                       .bk = maps.bk.view(),
                                       .mix_logit = mix_logit.view(),
                                       .s_in = past.state.s.view(),
                                       .z_in = past.state.z.view(),
                                       .y = result.y.view(),
                                       .s_out = result.state.s.view(),
                                       .z_out = result.state.z.view(),
                                       .first_key = past.first_key,
                                       .spec = spec},
                                      current_stream(q.device()));
    const Tensor inputs[] = {q, k, v, maps.wq, maps.bq, maps.wk, maps.bk, mix_logit, past.state.s, past.state.z};
    if (should_record(inputs)) {
        auto node = std::make_shared<HybridAttentionNode>();
        node->q.save(q), node->k.save(k), node->v.save(v), node->wq.save(maps.wq), node->bq.save(maps.bq);
        node->wk.save(maps.wk), node->bk.save(maps.bk), node->mix_logit.save(mix_logit);
        node->s.save(past.state.s), node->z.save(past.state.z), node->y.save(result.y);
        node->spec = spec, node->first_key = past.first_key;
        std::vector<Tensor> outputs{result.y};
        if (want_state) outputs.insert(outputs.end(), {result.state.s, result.state.z});
        record(node, inputs, outputs);
        result.y = outputs[0];
        if (want_state) result.state = {outputs[1], outputs[2]};
    }
    return result;
}

}  // namespace lc
