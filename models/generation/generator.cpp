#include "models/generation/generator.h"

#include <algorithm>

#include "autograd/grad_mode.h"
#include "autograd/ops/linear.h"
#include "autograd/ops/softmax_attention.h"
#include "autograd/ops/views.h"
#include "kernels/hybrid_decode/hybrid_decode.h"

namespace lc::models {
namespace {

using kernels::LinearizedSpec;
using kernels::WindowKind;

int64_t ring_size(const LinearizedSpec& spec) {
    switch (spec.window) {
        case WindowKind::terraced:
            return 2 * spec.window_size;
        case WindowKind::sliding:
            return spec.window_size;
        case WindowKind::none:
            return 0;
    }
    return 0;
}

// Positions [first, first + count) of a ring, to or from rows [row, row + count) of a flat buffer [B,H,T,D].
enum class Copy : bool { ToRing, FromRing };
void copy_ring(Copy direction, const Tensor& ring, int64_t first, int64_t count, const Tensor& flat, int64_t row) {
    while (count > 0) {
        const int64_t slot = first % ring.size(2), run = std::min(count, ring.size(2) - slot);
        Tensor in_ring = ring.sliced(2, slot, run), in_flat = flat.sliced(2, row, run);
        if (direction == Copy::ToRing)
            in_ring.copy_from(in_flat);
        else
            in_flat.copy_from(in_ring);
        first += run, row += run, count -= run;
    }
}

// [kept keys in front | new ones]
Tensor with_kept(const Tensor& ring, int64_t first, int64_t count, const Tensor& fresh) {
    if (count == 0) return fresh;
    const Tensor all = Tensor::empty({fresh.size(0), fresh.size(1), count + fresh.size(2), fresh.size(3)},
                                     fresh.dtype(), fresh.device());
    copy_ring(Copy::FromRing, ring, first, count, all, 0);
    all.sliced(2, count, fresh.size(2)).copy_from(fresh);
    return all;
}

// Several tokens at once: the kept keys go in front, the state comes in and is handed on.
Tensor prefill_linearized(const DecoderLayer& layer, const Qkv& qkv, const LinearizedSpec& spec, int64_t position,
                          LayerCache& cache) {
    const LinearState past = position > 0 ? LinearState{cache.s, cache.z} : LinearState{};
    AttentionResult result;
    if (spec.window == WindowKind::none) {
        result = linear_attention(qkv.q, qkv.k, qkv.v, layer.maps, spec, past, true);
    } else {
        const int64_t length = position + qkv.k.size(2);
        const int64_t first = kernels::state_end(spec, position), kept = position - first;
        const int64_t next_first = kernels::state_end(spec, length);
        const Tensor k = with_kept(cache.ring_k, first, kept, qkv.k), v = with_kept(cache.ring_v, first, kept, qkv.v);
        result = hybrid_attention(qkv.q, k, v, layer.maps, layer.mix_logit, spec, {past, first}, true);
        copy_ring(Copy::ToRing, cache.ring_k, next_first, length - next_first, k, next_first - first);
        copy_ring(Copy::ToRing, cache.ring_v, next_first, length - next_first, v, next_first - first);
    }
    cache.s.copy_from(result.state.s), cache.z.copy_from(result.state.z);
    return result.y;
}

Tensor decode_linearized(const DecoderLayer& layer, const Qkv& qkv, const LinearizedSpec& spec, const Tensor& positions,
                         const LayerCache& cache) {
    const int64_t batch = qkv.q.size(0), heads = qkv.q.size(1), d = qkv.q.size(3);
    const Tensor y = Tensor::empty({batch, 1, heads, d}, qkv.q.dtype(), qkv.q.device()).permuted({0, 2, 1, 3});
    const bool window = spec.window != WindowKind::none;
    kernels::hybrid_decode({.q = qkv.q.view(),
                            .k = qkv.k.view(),
                            .v = qkv.v.view(),
                            .wq = layer.maps.wq.view(),
                            .bq = layer.maps.bq.view(),
                            .wk = layer.maps.wk.view(),
                            .bk = layer.maps.bk.view(),
                            .mix_logit = window ? layer.mix_logit.view() : TensorView{},
                            .ring_k = cache.ring_k.view(),
                            .ring_v = cache.ring_v.view(),
                            .s = cache.s.view(),
                            .z = cache.z.view(),
                            .y = y.view(),
                            .positions = positions.view(),
                            .spec = spec},
                           current_stream(qkv.q.device()));
    return y;
}

// Appends the new keys and values, with room for twice as many when it is used up.
void append(Tensor& buffer, int64_t position, const Tensor& fresh, int64_t limit) {
    const int64_t length = position + fresh.size(2);
    if (!buffer.defined() || buffer.size(2) < length) {
        const int64_t capacity = std::min(std::max<int64_t>(64, 2 * length), std::max(limit, length));
        const Tensor larger =
            Tensor::empty({fresh.size(0), fresh.size(1), capacity, fresh.size(3)}, fresh.dtype(), fresh.device());
        if (position > 0) larger.sliced(2, 0, position).copy_from(buffer.sliced(2, 0, position));
        buffer = larger;
    }
    buffer.sliced(2, position, fresh.size(2)).copy_from(fresh);
}

}  // namespace

DecodeState::DecodeState(const Decoder& decoder, AttentionMode mode, int64_t batch, Terms terms)
    : mode_(mode), terms_(terms), batch_(batch), layers_(static_cast<size_t>(decoder.num_layers())) {
    LC_CHECK(batch >= 1, "decode state: batch {}", batch);
    if (mode == AttentionMode::Softmax || !decoder.attention()) return;
    const LinearizedSpec spec = effective_spec(*decoder.attention(), terms);
    const DecoderConfig& c = decoder.config();
    for (int64_t i = 0; i < decoder.num_layers(); ++i) {
        const DecoderLayer& layer = decoder.layer(i);
        if (!layer.linearized) continue;
        LayerCache& cache = layers_[static_cast<size_t>(i)];
        const Tensor& wk = layer.maps.wk;
        const int64_t features = kernels::feature_size(spec.activation, wk.size(2));
        const Placement& place = decoder.placement();
        cache.s = Tensor::zeros({batch, wk.size(0), features, c.head_dim}, place.wide(), place.device);
        cache.z = Tensor::zeros({batch, wk.size(0), features}, place.wide(), place.device);
        if (spec.window == WindowKind::none) continue;
        const Shape ring{batch, c.num_kv_heads, ring_size(spec), c.head_dim};
        cache.ring_k = Tensor::zeros(ring, place.dtype, place.device);
        cache.ring_v = Tensor::zeros(ring, place.dtype, place.device);
    }
}

int64_t DecodeState::bytes() const {
    int64_t total = 0;
    for (const LayerCache& cache : layers_)
        for (const Tensor* tensor : {&cache.s, &cache.z, &cache.ring_k, &cache.ring_v, &cache.keys, &cache.values})
            if (tensor->defined()) total += tensor->nbytes();
    return total;
}

Generator::Generator(const Decoder& decoder, int64_t prefill_chunk) : decoder_(decoder), chunk_(prefill_chunk) {
    LC_CHECK(prefill_chunk >= 1, "generator: prefill chunk of {} tokens", prefill_chunk);
}

Tensor Generator::attend(DecodeState& state, int64_t index, const Qkv& qkv, const Tensor& positions) const {
    LayerCache& cache = state.layers_[static_cast<size_t>(index)];
    const DecoderLayer& layer = decoder_.layer(index);
    if (cache.s.defined()) {
        const LinearizedSpec spec = effective_spec(*decoder_.attention(), state.terms_);
        return qkv.q.size(2) == 1 ? decode_linearized(layer, qkv, spec, positions, cache)
                                  : prefill_linearized(layer, qkv, spec, state.position_, cache);
    }
    const int64_t length = state.position_ + qkv.k.size(2);
    append(cache.keys, state.position_, qkv.k, decoder_.config().max_positions);
    append(cache.values, state.position_, qkv.v, decoder_.config().max_positions);
    return softmax_attention(qkv.q, cache.keys.sliced(2, 0, length), cache.values.sliced(2, 0, length));
}

Tensor Generator::advance(DecodeState& state, const Tensor& ids) const {
    LC_CHECK(ids.rank() == 2 && ids.size(0) == state.batch_ && ids.size(1) >= 1,
             "generator: ids must be [{},T], got {}", state.batch_, ids.shape());
    LC_REQUIRE(Usage, state.position_ + ids.size(1) <= decoder_.config().max_positions,
               "{} tokens are more than the model allows (max_position_embeddings {})", state.position_ + ids.size(1),
               decoder_.config().max_positions);
    const NoGrad no_grad;
    Tensor h;
    for (int64_t start = 0; start < ids.size(1); start += chunk_) {
        const int64_t length = std::min(chunk_, ids.size(1) - start);
        const bool last_chunk = start + length == ids.size(1);
        h = decoder_.embed(ids.sliced(1, start, length));
        const Tensor positions = Tensor::full({state.batch_}, static_cast<double>(state.position_), DType::i64, h.device());
        for (int64_t i = 0; i < decoder_.num_layers(); ++i) {
            Tensor y = attend(state, i, decoder_.project(i, h, state.position_), positions);
            if (i + 1 == decoder_.num_layers()) {  // from here on only the last token's row matters
                if (!last_chunk) break;
                y = slice(y, 2, length - 1, 1), h = slice(h, 1, length - 1, 1);
            }
            h = decoder_.finish(i, h, y);
        }
        state.position_ += length;
    }
    return reshape(linear(decoder_.final_norm(h), decoder_.lm_head()), {state.batch_, decoder_.config().vocab_size});
}

}  // namespace lc::models
