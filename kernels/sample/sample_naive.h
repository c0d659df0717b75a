// The oracle, and the CPU's form: the steps of sample.h one after the other.
#pragma once
#include <algorithm>
#include <limits>
#include <vector>

#include "kernels/sample/sample_rules.h"

namespace lc::kernels {

struct SampleCandidate {
    int32_t id;
    float score;
    uint64_t weight;
};

inline bool sample_better(const SampleCandidate& a, const SampleCandidate& b) {
    return a.score != b.score ? a.score > b.score : a.id < b.id;
}

inline uint64_t sample_total(const std::vector<SampleCandidate>& candidates) {
    uint64_t sum = 0;
    for (const SampleCandidate& candidate : candidates) sum += candidate.weight;
    return sum;
}

// The first logit that no distribution can come from, or that there is none at all; `drawn` where all is well.
inline SampleResult sample_check(std::span<const float> logits) {
    bool any = false;
    for (size_t i = 0; i < logits.size(); ++i) {
        if (std::isnan(logits[i])) return {static_cast<int32_t>(i), SampleStatus::nan_logit};
        if (logits[i] == std::numeric_limits<float>::infinity())
            return {static_cast<int32_t>(i), SampleStatus::infinite_logit};
        any = any || std::isfinite(logits[i]);
    }
    return {0, any ? SampleStatus::drawn : SampleStatus::no_logit};
}

// Keeps the best that together reach the share; at least one.
inline void sample_keep_top_p(std::vector<SampleCandidate>& kept, double share) {
    const auto worse = [](const SampleCandidate& a, const SampleCandidate& b) { return sample_better(b, a); };
    const uint64_t enough = sample_enough(share, sample_total(kept));
    std::make_heap(kept.begin(), kept.end(), worse);  // a few pops are far cheaper than sorting a vocabulary
    auto rest = kept.end();
    uint64_t sum = 0;
    while (sum < enough) {
        std::pop_heap(kept.begin(), rest--, worse);
        sum += rest->weight;
    }
    kept.erase(kept.begin(), rest);
}

// What may be drawn, by id, so that the draw does not depend on which filters were at work.
inline std::vector<SampleCandidate> sample_candidates(const std::vector<float>& scores, float best,
                                                      const SampleSettings& settings) {
    std::vector<SampleCandidate> kept(scores.size());
    for (size_t i = 0; i < scores.size(); ++i)
        kept[i] = {static_cast<int32_t>(i), scores[i], sample_weight(scores[i], best, settings.sharpness)};
    const bool cut = settings.top_k > 0 && static_cast<size_t>(settings.top_k) < kept.size();
    if (cut) {
        std::nth_element(kept.begin(), kept.begin() + (settings.top_k - 1), kept.end(), sample_better);
        kept.resize(static_cast<size_t>(settings.top_k));
    }
    if (settings.top_p < 1) sample_keep_top_p(kept, settings.top_p);
    std::erase_if(kept, [&](const SampleCandidate& c) { return c.weight < settings.min_weight; });
    if (cut || settings.top_p < 1)
        std::sort(kept.begin(), kept.end(),
                  [](const SampleCandidate& a, const SampleCandidate& b) { return a.id < b.id; });
    return kept;
}

inline SampleResult sample_row_naive(std::span<const float> logits, const float* bias, const int32_t* seen,
                                     const SampleSettings& settings, int64_t position) {
    if (const SampleResult checked = sample_check(logits); checked.status != SampleStatus::drawn) return checked;
    std::vector<float> scores(logits.size());
    for (size_t i = 0; i < scores.size(); ++i)
        scores[i] = sample_score(logits[i], settings.uses_bias && bias ? bias[i] : 0.0f,
                                 settings.uses_seen && seen ? seen[i] : 0, settings);
    const auto best = std::max_element(scores.begin(), scores.end());
    if (!std::isfinite(*best)) return {0, SampleStatus::nothing_left};
    if (settings.greedy) return {static_cast<int32_t>(best - scores.begin()), SampleStatus::drawn};
    const std::vector<SampleCandidate> kept = sample_candidates(scores, *best, settings);
    const uint64_t target = sample_target(settings.random, position, sample_total(kept));
    uint64_t sum = 0;
    for (const SampleCandidate& candidate : kept)
        if ((sum += candidate.weight) > target) return {candidate.id, SampleStatus::drawn};
    return {0, SampleStatus::nothing_left};  // not reached: the best has a weight, and target is below the total
}

template <class T>
void sample_naive(const Sample& a) {
    const auto positions = a.positions.as<const int64_t, 1>();
    const auto ids = a.ids.as<int32_t, 1>();
    const auto results = a.results.as<int32_t, 2>();
    for (int64_t b = 0; b < a.logits.size(0); ++b) {
        SampleResult result;
        if (positions(b) >= 0) {
            SampleSettings settings;
            std::copy_n(&a.settings.as<const uint8_t, 2>()(b, 0), sizeof settings,
                        reinterpret_cast<uint8_t*>(&settings));
            const T* row = &a.logits.as<const T, 2>()(b, 0);
            const std::vector<float> logits(row, row + a.logits.size(1));
            int32_t* seen = a.seen ? &a.seen.as<int32_t, 2>()(b, 0) : nullptr;
            result = sample_row_naive(logits, a.bias ? &a.bias.as<const float, 2>()(b, 0) : nullptr, seen, settings,
                                      positions(b) + 1);
            const bool drawn = result.status == SampleStatus::drawn;
            ids(b) = drawn ? result.id : 0;
            if (drawn && settings.uses_seen && seen) ++seen[result.id];
        }
        results(b, 0) = result.id, results(b, 1) = static_cast<int32_t>(result.status);
    }
}

}  // namespace lc::kernels
