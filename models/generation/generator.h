// Generation with constant memory: the prompt goes through in chunks that hand a state on, then one token at a time.
#pragma once
#include <cstdint>
#include <vector>

#include "models/decoder/decoder.h"

namespace lc::models {

// What attention keeps of the past, one entry a layer. Linearized layers: state and ring, constant size. Softmax layers:
// keys and values, growing.
//
// The ring holds the keys and values that a window can still see, position p in slot p mod R (R: kernels/hybrid_decode).
// After L tokens the state covers positions [0, state_end(spec, L)), the ring the rest.
struct LayerCache {
    Tensor s, z, ring_k, ring_v;  // linearized: [B,Hs,F',D], [B,Hs,F'], [B,H_kv,R,D]; no ring for pure linear attention
    Tensor keys, values;          // softmax: [B,H_kv,capacity,D], the first `position` are valid
};

class DecodeState {
  public:
    // Terms other than Both generate with one branch of the hybrid layers, for diagnosis.
    DecodeState(const Decoder& decoder, AttentionMode mode, int64_t batch = 1, Terms terms = Terms::Both);
    int64_t position() const { return position_; }  // tokens seen
    int64_t batch() const { return batch_; }
    int64_t bytes() const;  // of all caches

  private:
    friend class Generator;
    AttentionMode mode_;
    Terms terms_;
    int64_t batch_;
    std::vector<LayerCache> layers_;
    int64_t position_ = 0;
};

class Generator {
  public:
    // Keeps a reference to the decoder. Prompts go through `prefill_chunk` tokens at a time.
    explicit Generator(const Decoder& decoder, int64_t prefill_chunk = 512);

    // Feeds ids [B,T], on any device, and returns the logits after the last one, [B,V]. T = 1 takes the decode kernels; longer inputs go
    // through chunk by chunk. Call it again with more ids at any time. Throws Error(Usage) beyond max_position_embeddings.
    Tensor advance(DecodeState& state, const Tensor& ids) const;

  private:
    Tensor attend(DecodeState& state, int64_t layer, const Qkv& qkv, const Tensor& positions) const;

    const Decoder& decoder_;
    int64_t chunk_;
};

}  // namespace lc::models
