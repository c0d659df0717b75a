// Generation with constant memory: the prompt goes through in chunks that hand a state on, then one token at a time, of
// one sequence or of several that are each at a position of their own.
#pragma once
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "models/decoder/decoder.h"
#include "models/generation/kv_memory.h"

namespace lc::models {

class DecodeStep;
class DeviceSampler;

// What linearized attention keeps of the past, one entry a layer: state and ring, of constant size. (Softmax layers keep keys and
// values, which grow: kv_memory.h.)
//
// The ring holds the keys and values that a window can still see, position p in slot p mod R (R:
// kernels/hybrid_decode). After L tokens the state covers positions [0, state_end(spec, L)), the ring the rest.
struct LayerCache {
    Tensor s, z, ring_k,
        ring_v;  // [B,Hs,F',D], [B,Hs,F'], [B,H_kv,R,D]; no ring for pure linear attention, none for softmax
};

// In what S and z lie between steps: as wide as they are computed, or in bf16, half the memory and half of what a step reads.
enum class StateStorage : uint8_t { Wide, Bf16 };

class DecodeState {
  public:
    // Terms other than Both generate with one branch of the hybrid layers, for diagnosis. Throws Error(Usage) for states in bf16
    // beside windows that are not terraced, where every token would round them (kernels/hybrid_decode), and in f64.
    DecodeState(const Decoder& decoder, AttentionMode mode, int64_t batch = 1, Terms terms = Terms::Both,
                StateStorage storage = StateStorage::Wide);
    int64_t position() const { return position_; }  // tokens seen
    int64_t batch() const { return batch_; }
    int64_t bytes() const;  // of all caches

    // Row `index` as a state of one sequence: a slot of a running batch. It shares this state's memory. Only of a state that has
    // seen nothing.
    DecodeState row(int64_t index) const;
    void reset();                        // as new: a slot for the next sequence
    void count_token() { ++position_; }  // for a row that Generator::step_rows served
    // Room for keys and values of so many tokens in all rows, where it is known; else they grow by doubling.
    void reserve(int64_t tokens) { kv_.memory->reserve(tokens); }
    void expect(int64_t tokens) { kv_.memory->expect(tokens); }  // the most of any row: KvMemory::expect
    void release_keys() { kv_.memory->release(); }               // when no row is in use
    int64_t key_bytes(int64_t tokens) const { return kv_.memory->bytes_for(tokens); }  // of so many tokens in all rows

    // What a file must hold to go on from here: "layers.3.s", ... ; of keys and values the part in use.
    std::vector<NamedTensor> tensors() const;
    // The reverse, in a state that has seen nothing: `read` gives each tensor, of that shape and dtype, on any device.
    using TensorReader = std::function<Tensor(const std::string& name, const Shape& shape, DType dtype)>;
    void restore(int64_t position, const TensorReader& read);

  private:
    friend class Generator;
    AttentionMode mode_;
    Terms terms_;
    int64_t batch_;
    std::vector<LayerCache> layers_;
    KvRows kv_;
    int64_t position_ = 0;
    std::shared_ptr<DecodeStep> step_;  // made when first needed
};

class Generator {
  public:
    // Keeps a reference to the decoder. Inputs of advance and feed go through `prefill_chunk` tokens at a time.
    explicit Generator(const Decoder& decoder, int64_t prefill_chunk = 512);

    // Feeds ids [B,T], on any device, and returns the logits after the last one, [B,V]. T = 1 takes the decode kernels, on a GPU as
    // a recorded step; longer inputs go through chunk by chunk. Call it again with more ids at any time; on a GPU that may
    // overwrite the logits of the call before. Throws Error(Usage) beyond max_position_embeddings.
    Tensor advance(DecodeState& state, const Tensor& ids) const;
    // The same for prompts: never by a recorded step, which costs more to record than a single token is worth.
    Tensor read(DecodeState& state, const Tensor& ids) const { return run(state, ids, true); }
    void feed(DecodeState& state, const Tensor& ids) const;  // the same without logits: more of the prompt will follow

    // One token each for several sequences: ids[i] joins states[i], of one row each and at any position -> logits
    // [n,V]. The products get `rows` rows, n of them in use. A row of a product has the same bits whichever row it is
    // and whatever the others hold, but not in products of other heights; so with `rows` fixed nobody's logits depend
    // on who else is there.
    Tensor step(std::span<DecodeState* const> states, std::span<const int32_t> ids, int64_t rows) const;

    // One token for the rows of one state, wherever each is: DecodeStep::run. The state's own position stays as it is.
    Tensor step_rows(DecodeState& state, const Tensor& ids, std::span<const int64_t> positions) const;
    // The same for the ids that the sampler drew last, and draws the next ones: DecodeStep::draw.
    void draw_rows(DecodeState& state, DeviceSampler& sampler, std::span<const int64_t> positions) const;

  private:
    DecodeStep& step_of(DecodeState& state) const;
    Tensor run(DecodeState& state, const Tensor& ids, bool want_logits) const;
    Tensor attend(DecodeState& state, int64_t layer, const Qkv& qkv) const;
    Tensor attend_each(std::span<DecodeState* const> states, int64_t layer, const Qkv& qkv) const;
    void check_room(const DecodeState& state, int64_t tokens) const;

    const Decoder& decoder_;
    int64_t chunk_;
};

}  // namespace lc::models
