// One text growing token by token: draws ids from logits, turns them into text, and knows where it ends.
#pragma once
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "io/tokenizer/tokenizer.h"
#include "models/generation/sampler.h"
#include "models/generation/stop_strings.h"

namespace lc::models {

struct GenerateOptions {
    int64_t max_new_tokens = 128;
    SamplingOptions sampling;
    std::vector<int64_t> eos_ids;           // any of them ends the text
    std::vector<std::string> stop_strings;  // as does any of these; the text ends before it
};

struct Generation {
    std::vector<int32_t> ids;    // the new ones, an end-of-text id included
    std::string text;            // of the new ids, without special tokens and stop string
    std::string finish_reason;   // "stop": end of text or stop string; "length": max_new_tokens or the model's limit;
                                 // "cancelled": the caller wanted no more
    double prefill_seconds = 0;  // the prompt
    double decode_seconds = 0;   // all new tokens but the first, whose logits the prompt gave
    int64_t state_bytes = 0;     // what attention keeps, at the end
};

// Gets the text as it becomes certain, whole code points only; together the pieces are Generation::text.
using TextSink = std::function<void(std::string_view)>;

// How many new tokens a model with room for `limit` can add to `seen` of them, at most `wanted` (less is warned of).
// Throws Error(Usage) when there are none to continue, or no room for a single one.
int64_t room_for_new(int64_t seen, int64_t wanted, int64_t limit);

class Continuation {
  public:
    // `before`: all ids that the text follows on. Throws Error(Usage) for options out of range.
    Continuation(const io::Tokenizer& tokenizer, const GenerateOptions& options, std::vector<int32_t> before,
                 int64_t most, int64_t vocab_size, TextSink on_text);

    // The next id, from its logits [V]. Throws as sample() does.
    int32_t draw(std::span<const float> logits) const { return sample(logits, history(), sampling(), position()); }
    // Adds it; or one that was drawn elsewhere by sampling() and history() at position().
    void add(int32_t id);
    const SamplingOptions& sampling() const { return options_.sampling; }
    TokenHistory history() const { return {before_, ids_}; }
    int64_t position() const { return std::ssize(before_) + std::ssize(ids_); }  // of the next id
    int64_t left() const { return done() ? 0 : most_ - std::ssize(ids_); }       // how many more there can be
    bool done() const { return !finish_reason_.empty(); }
    void cancel();
    // Hands out what was held back, and the result; its times and bytes are the caller's to fill in.
    Generation finish();

  private:
    void show(const std::string& text);

    GenerateOptions options_;
    std::vector<int32_t> before_;
    int64_t most_;
    TextSink on_text_;
    io::StreamDecoder text_of_;
    StopStrings stops_;
    std::vector<int32_t> ids_;
    std::string text_, finish_reason_;
};

}  // namespace lc::models
