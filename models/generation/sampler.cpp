#include "models/generation/sampler.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "core/check.h"
#include "core/rng.h"

namespace lc::models {
namespace {

struct Candidate {
    int32_t id;
    double value;  // a logit, later a weight exp(logit - max)
};

bool better(const Candidate& a, const Candidate& b) {
    return a.value != b.value ? a.value > b.value : a.id < b.id;
}

std::vector<float> penalized(std::span<const float> logits, std::span<const int32_t> history, double penalty) {
    std::vector<float> result(logits.begin(), logits.end());
    if (penalty == 1) return result;
    for (const int32_t id : history) {  // from the original value: an id seen twice is penalized once
        if (id < 0 || static_cast<size_t>(id) >= logits.size()) continue;
        const double logit = logits[static_cast<size_t>(id)];
        result[static_cast<size_t>(id)] = static_cast<float>(logit > 0 ? logit / penalty : logit * penalty);
    }
    return result;
}

double total(const std::vector<Candidate>& candidates) {
    return std::accumulate(candidates.begin(), candidates.end(), 0.0,
                           [](double sum, const Candidate& c) { return sum + c.value; });
}

}  // namespace

void validate(const SamplingOptions& o) {
    LC_REQUIRE(Usage, std::isfinite(o.temperature) && o.temperature >= 0,
               "temperature must be 0 (greedy) or above, got {}", o.temperature);
    LC_REQUIRE(Usage, o.top_k >= 0, "top_k must be 0 (off) or above, got {}", o.top_k);
    LC_REQUIRE(Usage, o.top_p > 0 && o.top_p <= 1, "top_p must be above 0 and at most 1, got {}", o.top_p);
    LC_REQUIRE(Usage, o.min_p >= 0 && o.min_p <= 1, "min_p must be 0 to 1, got {}", o.min_p);
    LC_REQUIRE(Usage, std::isfinite(o.repetition_penalty) && o.repetition_penalty > 0,
               "repetition_penalty must be above 0, got {}", o.repetition_penalty);
}

int32_t sample(std::span<const float> logits, std::span<const int32_t> history, const SamplingOptions& options,
               int64_t position) {
    LC_CHECK(!logits.empty(), "sample: no logits");
    const std::vector<float> scores = penalized(logits, history, options.repetition_penalty);
    for (size_t i = 0; i < scores.size(); ++i)
        LC_REQUIRE(Numerics, !std::isnan(scores[i]), "the logit of token {} is NaN at position {}", i, position);
    const auto best = std::max_element(scores.begin(), scores.end());
    LC_REQUIRE(Numerics, std::isfinite(*best), "the largest logit is {} at position {}", *best, position);
    if (options.temperature == 0) return static_cast<int32_t>(best - scores.begin());

    std::vector<Candidate> kept(scores.size());
    for (size_t i = 0; i < scores.size(); ++i)
        kept[i] = {static_cast<int32_t>(i), std::exp((double{scores[i]} - double{*best}) / options.temperature)};
    if (options.top_k > 0 && static_cast<size_t>(options.top_k) < kept.size()) {
        std::nth_element(kept.begin(), kept.begin() + (options.top_k - 1), kept.end(), better);
        kept.resize(static_cast<size_t>(options.top_k));
    }
    if (options.top_p < 1) {
        std::sort(kept.begin(), kept.end(), better);
        const double enough = options.top_p * total(kept);
        double sum = 0;
        size_t count = 0;
        while (count < kept.size() && (count == 0 || sum < enough)) sum += kept[count++].value;
        kept.resize(count);
    }
    if (options.min_p > 0)
        std::erase_if(kept, [&](const Candidate& c) { return c.value < options.min_p; });  // the best has 1

    // By id, so that the draw does not depend on which filters sorted.
    std::sort(kept.begin(), kept.end(), [](const Candidate& a, const Candidate& b) { return a.id < b.id; });
    double left = Random(options.seed, options.request).uniform(static_cast<uint64_t>(position)) * total(kept);
    for (const Candidate& candidate : kept)
        if ((left -= candidate.value) < 0) return candidate.id;
    return std::max_element(kept.begin(), kept.end(), [](auto& a, auto& b) { return better(b, a); })->id;  // rounding
}

}  // namespace lc::models
