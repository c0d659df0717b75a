// The forward pass. Loading is in weights.cpp, parameter groups in parameters.cpp, conversion in linearize.cpp.
#include "models/decoder/decoder.h"

#include "autograd/checkpoint.h"
#include "autograd/ops/embedding.h"
#include "autograd/ops/linear.h"
#include "autograd/ops/lora_linear.h"
#include "autograd/ops/rms_norm.h"
#include "autograd/ops/rope.h"
#include "autograd/ops/softmax_attention.h"
#include "autograd/ops/swiglu.h"
#include "autograd/ops/views.h"
#include "models/attention/reference_attention.h"

namespace lc::models {

Tensor Projection::forward(const Tensor& x) const {
    return lora_a.defined() ? lora_linear(x, weight, lora_a, lora_b, lora_scale) : linear(x, weight);
}

kernels::LinearizedSpec effective_spec(const AttentionSpec& spec, Terms terms) {
    kernels::LinearizedSpec effective = spec.kernel_spec();
    if (terms == Terms::WindowOnly) {
        LC_REQUIRE(Usage, effective.window != kernels::WindowKind::none,
                   "attention terms 'window': this model's attention is purely linear and has no window");
        effective.window_only = true;
    }
    if (terms == Terms::LinearOnly) effective.window = kernels::WindowKind::none, effective.affine = false;
    return effective;
}

const DecoderLayer& Decoder::checked_layer(int64_t index) const {
    LC_CHECK(index >= 0 && index < num_layers(), "decoder: layer {} of {}", index, num_layers());
    return layers_[static_cast<size_t>(index)];
}

Tensor Decoder::embed(const Tensor& ids) const {
    LC_CHECK(embedding_.defined() && first_layer_ == 0, "decoder: layers from {} on have no embedding", first_layer_);
    return embedding(embedding_, ids, dtype());
}

Qkv Decoder::project(int64_t index, const Tensor& h, int64_t position) const {
    const int64_t length = h.rank() == 3 ? h.size(1) : 0;
    LC_REQUIRE(Usage, position >= 0 && position + length <= config_.max_positions,
               "sequence of {} tokens is longer than the model allows (max_position_embeddings {})", position + length,
               config_.max_positions);
    const Qkv x = project_only(index, h);
    return {rope(x.q, rope_cos_, rope_sin_, position), rope(x.k, rope_cos_, rope_sin_, position), x.v};
}

Qkv Decoder::project(int64_t index, const Tensor& h, const Tensor& positions) const {
    const Qkv x = project_only(index, h);
    return {rope(x.q, rope_cos_, rope_sin_, positions), rope(x.k, rope_cos_, rope_sin_, positions), x.v};
}

Qkv Decoder::project_only(int64_t index, const Tensor& h) const {
    const DecoderLayer& layer = checked_layer(index);
    LC_CHECK(h.rank() == 3 && h.size(2) == config_.hidden_size, "decoder: h must be [B,T,{}], got {}",
             config_.hidden_size, h.shape());
    const int64_t batch = h.size(0), length = h.size(1), d = config_.head_dim;
    const Tensor x = rms_norm(h, layer.input_norm, config_.norm_eps);
    const auto heads = [&](const Projection& projection, int64_t count) {
        return permute(reshape(projection.forward(x), {batch, length, count, d}), {0, 2, 1, 3});
    };
    return {heads(layer.q, config_.num_heads), heads(layer.k, config_.num_kv_heads),
            heads(layer.v, config_.num_kv_heads)};
}

Tensor Decoder::attend(int64_t index, const Qkv& qkv, AttentionMode mode, Terms terms) const {
    const DecoderLayer& layer = checked_layer(index);
    if (mode == AttentionMode::Softmax || !layer.linearized) return softmax_attention(qkv.q, qkv.k, qkv.v);
    const kernels::LinearizedSpec spec = effective_spec(*attention_, terms);
    if (spec.window == kernels::WindowKind::none) return linear_attention(qkv.q, qkv.k, qkv.v, layer.maps, spec).y;
    if (attention_->reference && terms == Terms::Both)
        return reference_attention(qkv.q, qkv.k, qkv.v, layer.maps, layer.mix_logit, spec);
    return hybrid_attention(qkv.q, qkv.k, qkv.v, layer.maps, layer.mix_logit, spec).y;
}

Tensor Decoder::finish(int64_t index, const Tensor& h, const Tensor& y) const {
    const DecoderLayer& layer = checked_layer(index);
    const Tensor rows = reshape(permute(y, {0, 2, 1, 3}), {h.size(0), h.size(1), config_.num_heads * config_.head_dim});
    const auto [x, sum] = add_rms_norm(layer.o.forward(rows), h, layer.post_attention_norm, config_.norm_eps);
    const Tensor inner = swiglu(linear(x, layer.gate), linear(x, layer.up));
    return linear(inner, layer.down, {}, sum);
}

Tensor Decoder::final_norm(const Tensor& h) const {
    LC_CHECK(final_norm_.defined(), "decoder: layers up to {} of {} have no final norm", first_layer_ + num_layers(),
             config_.num_layers);
    return rms_norm(h, final_norm_, config_.norm_eps);
}

const Tensor& Decoder::lm_head() const {
    LC_CHECK(final_norm_.defined(), "decoder: layers up to {} of {} have no head", first_layer_ + num_layers(),
             config_.num_layers);
    return config_.tie_embeddings ? embedding_ : lm_head_;
}

Tensor Decoder::hidden(const Tensor& ids, const ForwardOptions& options) const {
    Tensor h = embed(ids);
    for (int64_t i = 0; i < num_layers(); ++i) {
        const auto block = [this, i, mode = options.mode, terms = options.terms](const std::vector<Tensor>& in) {
            return std::vector<Tensor>{finish(i, in[0], attend(i, project(i, in[0]), mode, terms))};
        };
        h = options.checkpoint_layers ? checkpoint(block, {h})[0] : block({h})[0];
    }
    return final_norm(h);
}

Tensor Decoder::logits_of(const Tensor& h) const {
    return reshape(linear(final_norm(h), lm_head()), {h.size(0) * h.size(1), config_.vocab_size});
}

Tensor Decoder::logits(const Tensor& ids, const ForwardOptions& options) const {
    return linear(hidden(ids, options), lm_head());
}

}  // namespace lc::models
