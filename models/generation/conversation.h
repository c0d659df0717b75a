// One sequence that goes on: each turn reads only what is new, because the state already holds everything said before.
#pragma once
#include <functional>
#include <span>
#include <vector>

#include "models/generation/continuation.h"
#include "models/generation/device_sampler.h"
#include "models/generation/generator.h"

namespace lc::models {

// How the layers of a decoder attend while it generates.
struct DecodeMode {
    AttentionMode mode = AttentionMode::Softmax;
    Terms terms = Terms::Both;
    StateStorage state = StateStorage::Wide;
};

class Conversation {
  public:
    // Keeps references to both. Prompts go through `prefill_chunk` tokens at a time.
    Conversation(const Decoder& decoder, const io::Tokenizer& tokenizer, DecodeMode mode, int64_t prefill_chunk = 512);

    // Reads `ids` and answers. `stop` is asked between chunks and tokens: when it says yes, the answer ends where it is
    // ("cancelled") and the conversation can go on. Throws Error(Usage), before anything is read, for nothing to read,
    // no room for a new token, and options out of range.
    Generation reply(std::span<const int32_t> ids, const GenerateOptions& options, const TextSink& on_text = {},
                     const std::function<bool()>& stop = {});

    // Everything that was said, answers included. The state has seen all of it but what the next turn reads first: the
    // last id of an answer, which nothing followed yet.
    const std::vector<int32_t>& ids() const { return ids_; }
    const DecodeState& state() const { return state_; }
    const Decoder& decoder() const { return decoder_; }
    DecodeMode mode() const { return mode_; }

    // Puts a conversation that has said nothing where another one was (state_file.h).
    void restore(std::vector<int32_t> ids, int64_t position, const DecodeState::TensorReader& read);

  private:
    Tensor read(const std::function<bool()>& stop);  // what the state has not seen; undefined when stopped
    int32_t first_id(const Continuation& answer, const Tensor& logits);
    int32_t next_id(const Continuation& answer);

    const Decoder& decoder_;
    const io::Tokenizer& tokenizer_;
    DecodeMode mode_;
    int64_t chunk_;
    Generator generator_;
    DecodeState state_;
    std::unique_ptr<DeviceSampler> sampler_;  // where the device draws
    std::vector<int32_t> ids_;
};

// A conversation of one turn.
Generation generate(const Decoder& decoder, const io::Tokenizer& tokenizer, DecodeMode mode,
                    std::span<const int32_t> prompt, const GenerateOptions& options, const TextSink& on_text = {});

}  // namespace lc::models
