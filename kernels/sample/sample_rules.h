// What the CPU's and the GPU's form of `sample` must agree on to the last bit: scores, their order, and weights.
//
// f32 and f64 operations here stand alone or are fused by name, so that no compiler has a choice. Weights are integers:
//
//   w(d) = 2^42 exp(d / temperature),  d = score - best <= 0
//
// with d * sharpness, one f32 product, as the distance from the best in octaves of 2^-25; a power of two from its fraction by
// integer arithmetic (relative error below 2^-27); and a shift. Below 2^-42 of the best a weight is 0: at 2^20 ids all that is cut off together
// is less than 3e-7 of the draw.
#pragma once
#include <bit>
#include <cmath>
#include <cstdint>

#include "kernels/sample/sample.h"

namespace lc::kernels {

inline constexpr int kSampleOctaves = 42, kSampleFraction = 25;
inline constexpr uint64_t kSampleOne = uint64_t{1} << kSampleOctaves;  // the weight of the best

// 2^25 log2(e) / temperature. Tiny temperatures give infinity (only ties of the best have a weight), huge ones 0 (all alike).
inline float sample_sharpness(double temperature) {
    return static_cast<float>(0x1p25 * 1.4426950408889634 / temperature);
}
// Weights below it are dropped.
inline uint64_t sample_min_weight(double min_p) {
    return static_cast<uint64_t>(std::ceil(min_p * static_cast<double>(kSampleOne)));
}

// Repetition first, then what was generated. NaN (of infinities) counts as impossible.
LC_HOST_DEVICE inline float sample_score(float logit, float bias, int32_t seen, const SampleSettings& s) {
    float score = logit + bias;
    if (seen != 0) {
        const int32_t times = seen & kSeenTimes;
        const double taken = times > 0 ? std::fma(s.frequency, static_cast<double>(times), s.presence) : 0.0;
        const double wide = score;
        score = static_cast<float>(score > 0 ? wide / s.repetition - taken : std::fma(wide, s.repetition, -taken));
    }
    return score == score ? score : -INFINITY;
}

// The smaller, the better the score; -0 and 0 are one.
LC_HOST_DEVICE inline uint32_t sample_rank(float score) {
    const uint32_t bits = std::bit_cast<uint32_t>(score + 0.0f);
    return bits & 0x80000000u ? bits : 0x7fffffffu - bits;
}

LC_HOST_DEVICE inline uint32_t multiply_high(uint32_t a, uint32_t b) {
    return static_cast<uint32_t>((uint64_t{a} * b) >> 32);
}
LC_HOST_DEVICE inline uint64_t multiply_high(uint64_t a, uint64_t b) {
    __extension__ using Wide = unsigned __int128;
    return static_cast<uint64_t>((static_cast<Wide>(a) * b) >> 64);
}

// 2^31 2^x for x in [0,1) given in units of 2^-32. Horner's scheme for (2^x - 1) / x: a polynomial through its values at the six
// Chebyshev nodes; coefficients and steps are positive, so that the result never falls as x grows.
LC_HOST_DEVICE inline uint32_t sample_exp2(uint32_t x) {
    uint32_t sum = 894123u;
    sum = 5451244u + multiply_high(sum, x);
    sum = 41455862u + multiply_high(sum, x);
    sum = 238353606u + multiply_high(sum, x);
    sum = 1031767986u + multiply_high(sum, x);
    sum = 2977044430u + multiply_high(sum, x);
    return 0x80000000u + (multiply_high(sum, x) >> 1);
}

LC_HOST_DEVICE inline uint64_t sample_weight(float score, float best, float sharpness) {
    constexpr uint32_t kEnd = uint32_t{kSampleOctaves} << kSampleFraction;
    const float d = best - score;
    if (d == 0) return kSampleOne;  // also at an infinite sharpness
    const float distance = d * sharpness;
    if (!(distance < static_cast<float>(kEnd))) return 0;  // infinities and 0 * infinity included
    const uint32_t height = kEnd - static_cast<uint32_t>(distance);
    const uint32_t fraction = height << (32 - kSampleFraction);
    return (uint64_t{sample_exp2(fraction)} << (kSampleOctaves - 31)) >> (kSampleOctaves - (height >> kSampleFraction));
}

// What the best must reach together to make up `top_p` of `total`.
LC_HOST_DEVICE inline uint64_t sample_enough(double top_p, uint64_t total) {
    const auto enough = static_cast<uint64_t>(std::ceil(top_p * static_cast<double>(total)));
    return enough < 1 ? 1 : enough < total ? enough : total;
}

// The draw: the first id, in their order, at which the sum of the weights kept exceeds this.
LC_HOST_DEVICE inline uint64_t sample_target(const Random& random, int64_t position, uint64_t total) {
    return multiply_high(static_cast<uint64_t>(random.uniform(static_cast<uint64_t>(position)) * 0x1p64), total);
}

}  // namespace lc::kernels
