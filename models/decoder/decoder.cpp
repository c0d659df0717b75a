// The forward pass; frozen_forward.cpp has its form for weights that are only read. Loading is in weights.cpp, parameter groups in parameters.cpp, conversion in linearize.cpp.
#include "models/decoder/decoder.h"

#include <cmath>
#include <limits>

#include "autograd/checkpoint.h"
#include "autograd/ops/add.h"
#include "autograd/ops/embedding.h"
#include "autograd/ops/gelu.h"
#include "autograd/ops/layer_norm.h"
#include "autograd/ops/linear.h"
#include "autograd/ops/lora_linear.h"
#include "autograd/ops/rms_norm.h"
#include "autograd/ops/rope.h"
#include "autograd/ops/scale.h"
#include "autograd/ops/softmax_attention.h"
#include "autograd/ops/swiglu.h"
#include "autograd/ops/views.h"
#include "models/attention/reference_attention.h"

namespace lc::models {

Tensor Projection::forward(const Tensor& x) const {
    return lora_a.defined() ? lora_linear(x, weight, lora_a, lora_b, lora_scale, bias) : linear(x, weight, bias);
}

namespace {

// Adapted layers of one input are one op.
std::array<Tensor, 3> project_together(const Tensor& x, const std::array<const Projection*, 3>& projections) {
    std::vector<LoraProjection> adapted;
    for (const Projection* p : projections)
        if (p->lora_a.defined()) adapted.push_back({p->weight, p->lora_a, p->lora_b, p->lora_scale, p->bias});
    const std::vector<Tensor> with_lora = adapted.empty() ? std::vector<Tensor>() : lora_linear(x, adapted);
    std::array<Tensor, 3> results;
    size_t next = 0;
    for (size_t i = 0; i < projections.size(); ++i)
        results[i] = projections[i]->lora_a.defined() ? with_lora[next++] : projections[i]->forward(x);
    return results;
}

bool is_adapted(const DecoderLayer& layer) {
    return layer.q.lora_a.defined() || layer.k.lora_a.defined() || layer.v.lora_a.defined();
}

}  // namespace

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
    const Tensor h = embedding(embedding_, ids, dtype());
    if (!config_.block.scaled_embedding) return h;
    // Rounded as the weights are: what the models were trained with.
    const double factor = std::sqrt(static_cast<double>(config_.hidden_size));
    return scale(h, Tensor::full({}, factor, dtype()).item());
}

Tensor Decoder::norm(const Tensor& x, const Norm& norm) const {
    if (config_.block.norm == io::NormKind::layer) return layer_norm(x, norm.weight, norm.bias, config_.norm_eps);
    return rms_norm(x, norm.weight, config_.norm_eps, config_.block.norm_offset);
}

std::pair<Tensor, Tensor> Decoder::add_norm(const Tensor& x, const Tensor& residual, const Norm& norm) const {
    if (config_.block.norm == io::NormKind::rms)
        return add_rms_norm(x, residual, norm.weight, config_.norm_eps, config_.block.norm_offset);
    const Tensor sum = add(x, residual);
    return {this->norm(sum, norm), sum};
}

Qkv Decoder::project(int64_t index, const Tensor& h, int64_t position) const {
    const int64_t length = h.rank() == 3 ? h.size(1) : 0;
    LC_REQUIRE(Usage, position >= 0 && position + length <= config_.max_positions,
               "sequence of {} tokens is longer than the model allows (max_position_embeddings {})", position + length,
               config_.max_positions);
    const Qkv x = project_only(index, h);
    return {rope(x.q, rope_cos_, rope_sin_, position), rope(x.k, rope_cos_, rope_sin_, position), x.v};
}

// Where q, k and v come from one product, q and k turn as the heads of one tensor.
Qkv Decoder::project(int64_t index, const Tensor& h, const Tensor& positions) const {
    const DecoderLayer& layer = checked_layer(index);
    if (layer.q_norm.defined() || is_adapted(layer) || !reads_frozen(h, layer.q.weight, h.numel())) {
        const Qkv x = project_only(index, h);
        return {rope(x.q, rope_cos_, rope_sin_, positions), rope(x.k, rope_cos_, rope_sin_, positions), x.v};
    }
    const int64_t q = config_.num_heads, kv = config_.num_kv_heads;
    const Tensor rows = reshape(frozen_qkv(layer, h), {h.size(0), h.size(1), q + 2 * kv, config_.head_dim});
    const Tensor heads = permute(rows, {0, 2, 1, 3});
    const Tensor turned = rope(slice(heads, 1, 0, q + kv), rope_cos_, rope_sin_, positions);
    return {slice(turned, 1, 0, q), slice(turned, 1, q, kv), slice(heads, 1, q + kv, kv)};
}

Qkv Decoder::project_only(int64_t index, const Tensor& h) const {
    const DecoderLayer& layer = checked_layer(index);
    LC_CHECK(h.rank() == 3 && h.size(2) == config_.hidden_size, "decoder: h must be [B,T,{}], got {}",
             config_.hidden_size, h.shape());
    const int64_t batch = h.size(0), length = h.size(1), d = config_.head_dim;
    const auto [q, k, v] = !is_adapted(layer) && reads_frozen(h, layer.q.weight)
                               ? frozen_qkv_apart(layer, h)
                               : project_together(norm(h, layer.input_norm), {&layer.q, &layer.k, &layer.v});
    const auto heads = [&](const Tensor& projected, int64_t count, const Tensor& head_norm) {
        Tensor rows = reshape(projected, {batch, length, count, d});
        if (head_norm.defined()) rows = rms_norm(rows, head_norm, config_.norm_eps, config_.block.norm_offset);
        return permute(rows, {0, 2, 1, 3});
    };
    return {heads(q, config_.num_heads, layer.q_norm), heads(k, config_.num_kv_heads, layer.k_norm),
            heads(v, config_.num_kv_heads, {})};
}

Tensor Decoder::attend(int64_t index, const Qkv& qkv, AttentionMode mode, Terms terms) const {
    const DecoderLayer& layer = checked_layer(index);
    if (mode == AttentionMode::Softmax || !layer.linearized)
        return softmax_attention(qkv.q, qkv.k, qkv.v, window_of(index));
    const kernels::LinearizedSpec spec = effective_spec(*attention_, terms);
    if (spec.window == kernels::WindowKind::none) return linear_attention(qkv.q, qkv.k, qkv.v, layer.maps, spec).y;
    if (attention_->reference && terms == Terms::Both)
        return reference_attention(qkv.q, qkv.k, qkv.v, layer.maps, layer.mix_logit, spec);
    return hybrid_attention(qkv.q, qkv.k, qkv.v, layer.maps, layer.mix_logit, spec).y;
}

Tensor Decoder::finish(int64_t index, const Tensor& h, const Tensor& y) const {
    const DecoderLayer& layer = checked_layer(index);
    const Tensor rows = reshape(permute(y, {0, 2, 1, 3}), {h.size(0), h.size(1), config_.num_heads * config_.head_dim});
    if (!layer.o.lora_a.defined() && reads_frozen(rows, layer.up)) return frozen_finish(layer, h, rows);
    if (config_.block.parallel) {
        const Tensor sum = add(layer.o.forward(rows), h);
        return linear(mlp_inner(layer, norm(h, layer.input_norm)), layer.down, layer.down_bias, sum);
    }
    const auto [x, sum] = add_norm(layer.o.forward(rows), h, layer.post_attention_norm);
    return linear(mlp_inner(layer, x), layer.down, layer.down_bias, sum);
}

Tensor Decoder::mlp_inner(const DecoderLayer& layer, const Tensor& x) const {
    const bool silu = config_.block.activation == io::Activation::silu;
    if (fuses_gates_ && config_.block.gated && silu && reads_frozen(x, layer.up, std::numeric_limits<int64_t>::max()))
        return frozen_products(
            x, nullptr, {{layer.gate, layer.gate_scale, layer.gate_bias}, {layer.up, layer.up_scale, layer.up_bias}},
            {}, true)[0];
    const Tensor up = linear(x, layer.up, layer.up_bias);
    if (!config_.block.gated) return gelu(up);
    return activate(linear(x, layer.gate, layer.gate_bias), up);
}

Tensor Decoder::activate(const Tensor& gate, const Tensor& up) const {
    return config_.block.activation == io::Activation::silu ? swiglu(gate, up) : geglu(gate, up);
}

Tensor Decoder::final_norm(const Tensor& h) const {
    LC_CHECK(final_norm_.weight.defined(), "decoder: layers up to {} of {} have no final norm",
             first_layer_ + num_layers(), config_.num_layers);
    return norm(h, final_norm_);
}

const Tensor& Decoder::lm_head() const {
    LC_CHECK(final_norm_.weight.defined(), "decoder: layers up to {} of {} have no head", first_layer_ + num_layers(),
             config_.num_layers);
    return config_.tie_embeddings ? embedding_ : lm_head_;
}

const Tensor& Decoder::head_bias() const {
    return head_bias_;
}

int64_t Decoder::window_of(int64_t layer) const {
    return config_.window_of(first_layer_ + layer);
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
    const Tensor logits = reads_frozen(h, lm_head())
                              ? frozen_products(h, &final_norm_, {{lm_head(), {}, head_bias()}})[0]
                              : linear(final_norm(h), lm_head(), head_bias());
    return reshape(logits, {h.size(0) * h.size(1), config_.vocab_size});
}

Tensor Decoder::logits(const Tensor& ids, const ForwardOptions& options) const {
    return linear(hidden(ids, options), lm_head(), head_bias());
}

}  // namespace lc::models
