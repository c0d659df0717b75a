#include "autograd/ops/linear_attention.h"

#include "autograd/node.h"
#include "kernels/linear_attention/linear_attention.h"

namespace lc {
namespace {

struct LinearAttentionNode final : Node {
    SavedTensor q{this, "q"}, k{this, "k"}, v{this, "v"}, wq{this, "wq"}, bq{this, "bq"}, wk{this, "wk"},
        bk{this, "bk"}, s{this, "s"}, z{this, "z"}, y{this, "y"};
    kernels::FeatureActivation activation{};
    bool skip = false;
    std::string_view name() const override { return "linear_attention"; }

    void backward(std::span<const Tensor> dout, GradSink& din) override {
        const Tensor& out = y.get();
        const Tensor dy = dout[0].defined() ? dout[0] : Tensor::zeros(out.shape(), out.dtype(), out.device());
        const bool has_state = num_outputs() > 1;
        kernels::linear_attention_backward({.forward = {.q = q.view(),
                                                        .k = k.view(),
                                                        .v = v.view(),
                                                        .wq = wq.view(),
                                                        .bq = bq.view(),
                                                        .wk = wk.view(),
                                                        .bk = bk.view(),
                                                        .s_in = s.view(),
                                                        .z_in = z.view(),
                                                        .y = out.view(),
                                                        .activation = activation,
                                                        .skip = skip},
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
                                            .ds_in = din.slot(7),
                                            .dz_in = din.slot(8)},
                                           current_stream(q.get().device()));
    }
};

AttentionResult empty_result(const Tensor& q, const FeatureMaps& maps, const kernels::LinearizedSpec& spec,
                             bool want_state) {
    const int64_t batch = q.size(0), heads = q.size(1), length = q.size(2), d = q.size(3);
    AttentionResult result;
    result.y = Tensor::empty({batch, length, heads, d}, q.dtype(), q.device()).permuted({0, 2, 1, 3});
    if (want_state) {
        const int64_t states = maps.wk.size(0), features = kernels::feature_size(spec.activation, maps.wq.size(2));
        result.state.s = Tensor::empty({batch, states, features, d}, statistics_dtype(q.dtype()), q.device());
        result.state.z = Tensor::empty({batch, states, features}, statistics_dtype(q.dtype()), q.device());
    }
    return result;
}

}  // namespace

AttentionResult linear_attention(const Tensor& q, const Tensor& k, const Tensor& v, const FeatureMaps& maps,
                                 const kernels::LinearizedSpec& spec, const LinearState& state, bool want_state) {
    LC_CHECK(spec.window == kernels::WindowKind::none && !spec.window_only,
             "linear_attention: has no window; spec.window must be none and window_only off");
    LC_CHECK(q.rank() == 4 && maps.wq.rank() == 3 && maps.wk.rank() == 3,
             "linear_attention: q must be [B,H,T,D], wq and wk [H,D,F], got {}, {} and {}", q.shape(), maps.wq.shape(),
             maps.wk.shape());
    AttentionResult result = empty_result(q, maps, spec, want_state);
    kernels::linear_attention_forward({.q = q.view(),
                                       .k = k.view(),
                                       .v = v.view(),
                                       .wq = maps.wq.view(),
                                       .bq = maps.bq.view(),
                                       .wk = maps.wk.view(),
                                       .bk = maps.bk.view(),
                                       .s_in = state.s.view(),
                                       .z_in = state.z.view(),
                                       .y = result.y.view(),
                                       .s_out = result.state.s.view(),
                                       .z_out = result.state.z.view(),
                                       .activation = spec.activation,
                                       .skip = spec.skip},
                                      current_stream(q.device()));
    const Tensor inputs[] = {q, k, v, maps.wq, maps.bq, maps.wk, maps.bk, state.s, state.z};
    if (!should_record(inputs)) return result;
    auto node = std::make_shared<LinearAttentionNode>();
    node->q.save(q), node->k.save(k), node->v.save(v), node->wq.save(maps.wq), node->bq.save(maps.bq);
    node->wk.save(maps.wk), node->bk.save(maps.bk), node->s.save(state.s), node->z.save(state.z),
        node->y.save(result.y);
    node->activation = spec.activation, node->skip = spec.skip;
    std::vector<Tensor> outputs{result.y};
    if (want_state) outputs.insert(outputs.end(), {result.state.s, result.state.z});
    record(node, inputs, outputs);
    result.y = outputs[0];
    if (want_state) result.state = {outputs[1], outputs[2]};
    return result;
}

}  // namespace lc
