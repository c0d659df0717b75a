// Picks the next token from logits. Order as in transformers: penalties, temperature, top-k, top-p, min-p, draw.
// Random numbers are Philox(seed, request) at the token's position: the same request gives the same tokens whatever else
// runs.
#pragma once
#include <cstdint>
#include <span>

namespace lc::models {

struct SamplingOptions {
    double temperature = 1.0;         // 0: greedy
    int64_t top_k = 0;                // 0: off
    double top_p = 1.0;               // smallest set of tokens with at least this probability
    double min_p = 0.0;               // drops tokens below min_p times the largest probability
    double repetition_penalty = 1.0;  // logits of seen ids: divided by it when positive, multiplied when negative
    uint64_t seed = 0;
    uint64_t request = 0;
};

// Throws Error(Usage) naming the option that is out of range.
void validate(const SamplingOptions& options);

// logits [V]; `history`: ids seen so far, for the repetition penalty; position: index of the token being drawn. Of equal
// logits the lowest id comes first. Throws Error(Numerics) when a logit is NaN or all are -infinity.
int32_t sample(std::span<const float> logits, std::span<const int32_t> history, const SamplingOptions& options,
               int64_t position);

}  // namespace lc::models
