// How a request picks its tokens, in the words of users, and what kernels/sample makes of it: there is the rule, for both devices.
// Random numbers are Philox(seed, request) at the token's position: the same request gives the same tokens whatever
// else runs.
#pragma once
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/sample/sample.h"

namespace lc::models {

struct LogitBias {
    int32_t id = 0;
    double value = 0;  // added to the id's logit; -infinity bans it
    bool operator==(const LogitBias&) const = default;
};

struct SamplingOptions {
    double temperature = 1.0;         // 0: greedy. However small, it is defined: at last the likeliest tokens, evenly
    int64_t top_k = 0;                // 0: off; more than the vocabulary has: all
    double top_p = 1.0;               // smallest set of tokens with at least this probability
    double min_p = 0.0;               // drops tokens below min_p times the largest probability
    double repetition_penalty = 1.0;  // logits of seen ids: divided by it when positive, multiplied when negative
    double presence_penalty = 0.0;    // taken from the logit of every id that was generated
    double frequency_penalty = 0.0;   // the same times how often it was
    std::vector<LogitBias> logit_bias;
    uint64_t seed = 0;
    uint64_t request = 0;
};

// What came before the token: repetition_penalty looks at all of it, presence and frequency at what was generated.
struct TokenHistory {
    std::span<const int32_t> prompt, generated;
};

// Throws Error(Usage) naming the option that is out of range, bias for an id outside [0, vocab_size) included.
void validate(const SamplingOptions& options, int64_t vocab_size);

// The same for the kernel, and its tables of one sequence: [vocab_size] each, ids beyond it are nobody's.
kernels::SampleSettings settings_of(const SamplingOptions& options);
std::vector<float> bias_of(const SamplingOptions& options, int64_t vocab_size);
std::vector<int32_t> seen_in(const TokenHistory& history, int64_t vocab_size);
// The drawn id. Throws as sample() does for a result that is none.
int32_t id_of(const kernels::SampleResult& result, int64_t position);

// logits [V]; position: index of the token being drawn. Of equal logits the lowest id comes first. Throws
// Error(Numerics) when a logit is NaN or all are -infinity, Error(Usage) when it is logit_bias that leaves none.
int32_t sample(std::span<const float> logits, const TokenHistory& history, const SamplingOptions& options,
               int64_t position);

// "ID=VALUE", VALUE a number or -inf. Throws Error(Usage) for anything else.
LogitBias parse_logit_bias(std::string_view text);

}  // namespace lc::models
