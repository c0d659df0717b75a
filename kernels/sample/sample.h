// The next token of every sequence of a batch, from its logits. The order is fixed; every step may be off:
//
//   score_i = logit_i + bias_i;  penalties on ids seen before (sample_rules.h)
//   greedy: the largest score. Else with w_i = exp((score_i - max score) / temperature)
//   top-k   the k best;   top-p  the best that together reach the share p of what top-k left, at least one
//   min-p   of those no w_i below min_p (the best has 1);   draw one of the rest by w_i, in the order of ids
//
// Better is the larger score, of equal ones the lower id. Weights are fixed-point integers, so that sums of them are exact in any
// order: CPU and GPU draw the same token from the same logits, bit for bit.
//
// Settings, positions and what was seen lie in tensors and the result goes into one: on a GPU the op can be recorded together with
// the decode step that made the logits, and `ids` is the input of the next one.
#pragma once
#include <span>

#include "core/device.h"
#include "core/rng.h"
#include "core/tensor.h"

namespace lc::kernels {

// How one sequence draws; a tensor holds these as bytes.
struct SampleSettings {
    double top_p = 1, repetition = 1, presence = 0, frequency = 0;
    uint64_t min_weight = 0;  // see sample_min_weight
    Random random{0};         // numbers of this sequence, by the drawn token's position
    int32_t top_k = 0;        // 0: off
    float sharpness = 0;      // see sample_sharpness; not looked at when greedy
    int32_t greedy = 1;       // bool
    int32_t uses_bias = 0;    // bool: its row of `bias` counts
    int32_t uses_seen = 0;    // bool: its row of `seen` counts, and is kept up to date
    int32_t reserved = 0;     // every byte is defined
};

enum class SampleStatus : int32_t {
    drawn,      // id is the token
    idle,       // nothing was asked for
    nan_logit,  // id is the first token whose logit is NaN or +infinity; the first of either kind counts
    infinite_logit,
    no_logit,      // all are -infinity
    nothing_left,  // bias and penalties leave no finite score
};
struct SampleResult {
    int32_t id = 0;
    SampleStatus status = SampleStatus::idle;
};

// An element of `seen`: how often an id was generated, and whether it is part of the prompt.
inline constexpr int32_t kSeenInPrompt = 1 << 30, kSeenTimes = kSeenInPrompt - 1;

// Sums of this many weights fit into 63 bits.
inline constexpr int64_t kMostSampleIds = int64_t{1} << 20;

struct Sample {
    TensorView logits;    // [B,V]     in, V at most kMostSampleIds, every row dense
    TensorView bias;      // [B,V]     in, f32, rows dense; may be empty when no setting uses it
    TensorView seen;      // [B,V]     in/out, i32, rows dense; the same. A token that is drawn is counted
    TensorView settings;  // [B,N]     in, u8, contiguous: row b is a SampleSettings
    TensorView
        positions;  // [B]       in, i64, dense: of the token that the logits follow; the drawn one is the next. Below 0: idle
    TensorView ids;      // [B]       out, i32, dense: the token, 0 where there is none; an idle row's stays
    TensorView results;  // [B,2]     out, i32, contiguous: row b is a SampleResult
};
void sample(const Sample& args, Stream stream);
void sample_cuda(const Sample& args, Stream stream);

// The same for one sequence on the CPU. bias and seen [V] may be empty; position is that of the drawn token. Counts nothing.
SampleResult sample_row(std::span<const float> logits, std::span<const float> bias, std::span<const int32_t> seen,
                        const SampleSettings& settings, int64_t position);

}  // namespace lc::kernels
