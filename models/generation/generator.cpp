#include "models/generation/generator.h"

#include <algorithm>

#include "autograd/grad_mode.h"
#include "autograd/ops/softmax_attention.h"
#include "autograd/ops/views.h"
#include "core/parallel.h"
#include "models/generation/cached_attention.h"
#include "models/generation/decode_step.h"

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
    LinearState past;  // none where all keys are still kept
    if (kernels::state_end(spec, position) > 0)
        past = {cache.s.to(statistics_dtype(qkv.q.dtype())), cache.z.to(statistics_dtype(qkv.q.dtype()))};
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

// The same position for every row of q [B,H,1,D].
Tensor positions_of(int64_t position, const Tensor& q) {
    return Tensor::full({q.size(0)}, static_cast<double>(position), DType::i64, q.device());
}

}  // namespace

DecodeState::DecodeState(const Decoder& decoder, AttentionMode mode, int64_t batch, Terms terms, StateStorage storage)
    : mode_(mode), terms_(terms), batch_(batch), layers_(static_cast<size_t>(decoder.num_layers())) {
    LC_CHECK(batch >= 1, "decode state: batch {}", batch);
    const DecoderConfig& c = decoder.config();
    const bool linearized = mode == AttentionMode::Linearized && decoder.attention();
    KvMemory::Shape kept{.rows = batch, .kv_heads = c.num_kv_heads, .head_dim = c.head_dim, .most = c.max_positions};
    kept.dtype = decoder.dtype(), kept.device = decoder.device();
    for (int64_t i = 0; i < decoder.num_layers(); ++i)
        kept.layers.push_back(!linearized || !decoder.layer(i).linearized);
    kv_ = {std::make_shared<KvMemory>(std::move(kept)), 0, batch};
    if (!linearized) return;
    const LinearizedSpec spec = effective_spec(*decoder.attention(), terms);
    const bool narrow = storage == StateStorage::Bf16;
    LC_REQUIRE(Usage, !narrow || (spec.window == WindowKind::terraced && decoder.dtype() != DType::f64),
               "states in bf16 need a terraced window, which folds once a block{}",
               decoder.dtype() == DType::f64 ? ", and not f64" : "");
    const DType state_dtype = narrow ? DType::bf16 : decoder.placement().wide();
    for (int64_t i = 0; i < decoder.num_layers(); ++i) {
        const DecoderLayer& layer = decoder.layer(i);
        if (!layer.linearized) continue;
        LayerCache& cache = layers_[static_cast<size_t>(i)];
        const Tensor& wk = layer.maps.wk;
        const int64_t features = kernels::feature_size(spec.activation, wk.size(2));
        const Placement& place = decoder.placement();
        cache.s = Tensor::zeros({batch, wk.size(0), features, c.head_dim}, state_dtype, place.device);
        cache.z = Tensor::zeros({batch, wk.size(0), features}, state_dtype, place.device);
        if (spec.window == WindowKind::none) continue;
        const Shape ring{batch, c.num_kv_heads, ring_size(spec), c.head_dim};
        cache.ring_k = Tensor::zeros(ring, place.dtype, place.device);
        cache.ring_v = Tensor::zeros(ring, place.dtype, place.device);
    }
}

int64_t DecodeState::bytes() const {
    int64_t total = kv_.bytes();
    for (const LayerCache& cache : layers_)
        for (const Tensor* tensor : {&cache.s, &cache.z, &cache.ring_k, &cache.ring_v})
            if (tensor->defined()) total += tensor->nbytes();
    return total;
}

DecodeState DecodeState::row(int64_t index) const {
    LC_CHECK(position_ == 0 && index >= 0 && index < batch_, "decode state: row {} of {} at position {}", index, batch_,
             position_);
    DecodeState one = *this;
    one.batch_ = 1, one.step_ = nullptr;
    one.kv_.first += index, one.kv_.count = 1;
    for (LayerCache& cache : one.layers_)
        for (Tensor* tensor : {&cache.s, &cache.z, &cache.ring_k, &cache.ring_v})
            if (tensor->defined()) *tensor = tensor->sliced(0, index, 1);
    return one;
}

void DecodeState::reset() {
    position_ = 0;
    for (LayerCache& cache : layers_)  // what rings and keys hold is not looked at
        if (cache.s.defined()) cache.s.fill(0), cache.z.fill(0);
}

std::vector<NamedTensor> DecodeState::tensors() const {
    std::vector<NamedTensor> all;
    for (size_t i = 0; i < layers_.size(); ++i) {
        const LayerCache& cache = layers_[i];
        const auto add = [&](const char* name, const Tensor& tensor) {
            if (tensor.defined()) all.push_back({fmt::format("layers.{}.{}", i, name), tensor});
        };
        add("s", cache.s), add("z", cache.z), add("ring_k", cache.ring_k), add("ring_v", cache.ring_v);
        const auto layer = static_cast<int64_t>(i);
        if (!kv_.memory->holds(layer) || position_ == 0) continue;
        add("keys", kv_.keys(layer).sliced(2, 0, position_)), add("values", kv_.values(layer).sliced(2, 0, position_));
    }
    return all;
}

void DecodeState::restore(int64_t position, const TensorReader& read) {
    LC_CHECK(position_ == 0 && position >= 0, "decode state: restored to position {} at {}", position, position_);
    kv_.memory->grow(position);
    for (size_t i = 0; i < layers_.size(); ++i) {
        const auto take = [&](const char* name, Tensor tensor) {
            if (tensor.defined())
                tensor.copy_from(read(fmt::format("layers.{}.{}", i, name), tensor.shape(), tensor.dtype()));
        };
        const LayerCache& cache = layers_[i];
        take("s", cache.s), take("z", cache.z), take("ring_k", cache.ring_k), take("ring_v", cache.ring_v);
        const auto layer = static_cast<int64_t>(i);
        if (!kv_.memory->holds(layer) || position == 0) continue;
        take("keys", kv_.keys(layer).sliced(2, 0, position)), take("values", kv_.values(layer).sliced(2, 0, position));
    }
    position_ = position;
}

Generator::Generator(const Decoder& decoder, int64_t prefill_chunk) : decoder_(decoder), chunk_(prefill_chunk) {
    LC_CHECK(prefill_chunk >= 1, "generator: prefill chunk of {} tokens", prefill_chunk);
}

Tensor Generator::attend(DecodeState& state, int64_t index, const Qkv& qkv) const {
    LayerCache& cache = state.layers_[static_cast<size_t>(index)];
    const DecoderLayer& layer = decoder_.layer(index);
    if (cache.s.defined()) {
        const LinearizedSpec spec = effective_spec(*decoder_.attention(), state.terms_);
        if (qkv.q.size(2) > 1) {
            const Tensor y = prefill_linearized(layer, qkv, spec, state.position_, cache);
            // A prompt is a whole sequence for the authors' code; what it leaves behind is that of a sliding window.
            const bool whole = decoder_.attention()->reference && state.position_ == 0;
            return whole ? decoder_.attend(index, qkv, state.mode_, state.terms_) : y;
        }
        const Tensor y = attention_output(qkv.q);
        decode_linearized(layer, qkv, spec, positions_of(state.position_, qkv.q), cache, y);
        return y;
    }
    const int64_t fresh = qkv.k.size(2), length = state.position_ + fresh;
    state.kv_.memory->grow(length);
    const Tensor keys = state.kv_.keys(index), values = state.kv_.values(index);
    if (fresh == 1) {
        const Tensor y = attention_output(qkv.q);
        decode_softmax(qkv, positions_of(state.position_, qkv.q), keys, values, decoder_.window_of(index), y);
        return y;
    }
    keys.sliced(2, state.position_, fresh).copy_from(qkv.k), values.sliced(2, state.position_, fresh).copy_from(qkv.v);
    // The queries see all of it, or the end that their windows reach.
    const int64_t window = decoder_.window_of(index),
                  first = window > 0 ? std::max<int64_t>(0, length - fresh + 1 - window) : 0;
    return softmax_attention(qkv.q, keys.sliced(2, first, length - first), values.sliced(2, first, length - first),
                             window);
}

// Sequence i is row i of q, k and v [N,H,1,D]; rows beyond the sequences are padding and give zeros.
Tensor Generator::attend_each(std::span<DecodeState* const> states, int64_t index, const Qkv& qkv) const {
    Tensor y = attention_output(qkv.q);
    const auto count = static_cast<int64_t>(states.size());
    if (count < y.size(0)) y.sliced(0, count, y.size(0) - count).fill(0);
    const auto attend_one = [&](int64_t i) {
        DecodeState& state = *states[static_cast<size_t>(i)];
        LayerCache& cache = state.layers_[static_cast<size_t>(index)];
        const Qkv own{qkv.q.sliced(0, i, 1), qkv.k.sliced(0, i, 1), qkv.v.sliced(0, i, 1)};
        const Tensor y_own = y.sliced(0, i, 1), position = positions_of(state.position_, own.q);
        if (!cache.s.defined())
            return decode_softmax(own, position, state.kv_.keys(index), state.kv_.values(index),
                                  decoder_.window_of(index), y_own);
        decode_linearized(decoder_.layer(index), own, effective_spec(*decoder_.attention(), state.terms_), position,
                          cache, y_own);
    };
    if (y.device().is_cpu() && count > 1)
        parallel_for(count, 1, [&](int64_t begin, int64_t end) {
            for (int64_t i = begin; i < end; ++i) attend_one(i);
        });
    else
        for (int64_t i = 0; i < count; ++i) attend_one(i);
    return y;
}

void Generator::check_room(const DecodeState& state, int64_t tokens) const {
    LC_REQUIRE(Usage, state.position_ + tokens <= decoder_.config().max_positions,
               "{} tokens are more than the model allows (max_position_embeddings {})", state.position_ + tokens,
               decoder_.config().max_positions);
}

Tensor Generator::run(DecodeState& state, const Tensor& ids, bool want_logits) const {
    LC_CHECK(ids.rank() == 2 && ids.size(0) == state.batch_ && ids.size(1) >= 1,
             "generator: ids must be [{},T], got {}", state.batch_, ids.shape());
    check_room(state, ids.size(1));
    const NoGrad no_grad;
    Tensor h;
    for (int64_t start = 0; start < ids.size(1); start += chunk_) {
        const int64_t length = std::min(chunk_, ids.size(1) - start);
        const bool last_chunk = start + length == ids.size(1);
        h = decoder_.embed(ids.sliced(1, start, length));
        for (int64_t i = 0; i < decoder_.num_layers(); ++i) {
            Tensor y = attend(state, i, decoder_.project(i, h, state.position_));
            if (i + 1 == decoder_.num_layers()) {  // from here on only the last token's row matters
                if (!last_chunk || !want_logits) break;
                y = slice(y, 2, length - 1, 1), h = slice(h, 1, length - 1, 1);
            }
            h = decoder_.finish(i, h, y);
        }
        state.position_ += length;
    }
    return want_logits ? decoder_.logits_of(h) : Tensor();
}

Tensor Generator::advance(DecodeState& state, const Tensor& ids) const {
    if (ids.rank() != 2 || ids.size(1) != 1 || !decoder_.device().is_cuda()) return run(state, ids, true);
    const std::vector<int64_t> positions(static_cast<size_t>(state.batch_), state.position_);
    const Tensor logits = step_rows(state, ids, positions);
    ++state.position_;
    return logits;
}

DecodeStep& Generator::step_of(DecodeState& state) const {
    if (!state.step_) state.step_ = std::make_shared<DecodeStep>(decoder_, state.layers_, state.kv_, state.terms_);
    return *state.step_;
}

Tensor Generator::step_rows(DecodeState& state, const Tensor& ids, std::span<const int64_t> positions) const {
    return step_of(state).run(ids, positions);
}

void Generator::draw_rows(DecodeState& state, DeviceSampler& sampler, std::span<const int64_t> positions) const {
    step_of(state).draw(sampler, positions);
}

void Generator::feed(DecodeState& state, const Tensor& ids) const {
    run(state, ids, false);
}

Tensor Generator::step(std::span<DecodeState* const> states, std::span<const int32_t> ids, int64_t rows) const {
    const auto count = static_cast<int64_t>(states.size());
    LC_CHECK(count >= 1 && std::ssize(ids) == count && rows >= count,
             "generator: a step of {} sequences needs as many ids and at least as many rows, got {} and {}", count,
             ids.size(), rows);
    std::vector<int32_t> padded(ids.begin(), ids.end());
    std::vector<int64_t> positions;
    for (const DecodeState* state : states) {
        LC_CHECK(state->batch_ == 1, "generator: a step takes states of one row, got one of {}", state->batch_);
        check_room(*state, 1);
        state->kv_.memory->grow(state->position_ + 1);
        positions.push_back(state->position_);
    }
    padded.resize(static_cast<size_t>(rows)), positions.resize(static_cast<size_t>(rows), -1);
    const NoGrad no_grad;
    const Tensor at = Tensor::from(positions, {rows}).to(decoder_.device());
    Tensor h = decoder_.embed(Tensor::from(padded, {rows, 1}));
    for (int64_t i = 0; i < decoder_.num_layers(); ++i)
        h = decoder_.finish(i, h, attend_each(states, i, decoder_.project(i, h, at)));
    for (DecodeState* state : states) ++state->position_;
    return decoder_.logits_of(h).sliced(0, 0, count);
}

}  // namespace lc::models
