// From a prompt's ids to text: the loop around Generator, sampler and tokenizer.
#pragma once
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "io/tokenizer/tokenizer.h"
#include "models/generation/generator.h"
#include "models/generation/sampler.h"

namespace lc::models {

struct GenerateOptions {
    AttentionMode mode = AttentionMode::Softmax;
    Terms terms = Terms::Both;
    int64_t max_new_tokens = 128;
    SamplingOptions sampling;
    std::vector<int64_t> eos_ids;           // any of them ends the text
    std::vector<std::string> stop_strings;  // as does any of these; the text ends before it
};

struct Generation {
    std::vector<int32_t> ids;    // the new ones, an end-of-text id included
    std::string text;            // of the new ids, without special tokens and stop string
    std::string finish_reason;   // "stop": end of text or stop string; "length": max_new_tokens or the model's limit
    double prefill_seconds = 0;  // the prompt
    double decode_seconds = 0;   // all new tokens but the first, whose logits the prompt gave
    int64_t state_bytes = 0;     // what attention keeps, at the end
};

// `on_text` gets the text as it becomes certain, whole code points only; together the pieces are `text`. Throws
// Error(Usage) for an empty prompt, one that leaves no room for a new token, and options out of range.
Generation generate(const Decoder& decoder, const io::Tokenizer& tokenizer, const std::vector<int32_t>& prompt,
                    const GenerateOptions& options, const std::function<void(std::string_view)>& on_text = {});

}  // namespace lc::models
