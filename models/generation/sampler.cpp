#include "models/generation/sampler.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <limits>

#include "core/check.h"
#include "core/rng.h"
#include "io/text.h"

namespace lc::models {
namespace {

struct Candidate {
    int32_t id;
    double weight;  // exp((logit - largest logit) / temperature)
};

bool better(const Candidate& a, const Candidate& b) {
    return a.weight != b.weight ? a.weight > b.weight : a.id < b.id;
}
bool worse(const Candidate& a, const Candidate& b) {
    return better(b, a);
}

double total(std::span<const Candidate> candidates) {
    double sum = 0;
    for (const Candidate& candidate : candidates) sum += candidate.weight;
    return sum;
}

// Every penalty works on the biased logit: an id seen twice is penalized once for repetition.
void penalize(std::vector<float>& scores, const TokenHistory& history, const SamplingOptions& options) {
    std::vector<int32_t> generated(scores.size());  // how often
    std::vector<bool> seen(scores.size());
    const auto inside = [&](int32_t id) { return id >= 0 && static_cast<size_t>(id) < scores.size(); };
    for (const int32_t id : history.prompt)
        if (inside(id)) seen[static_cast<size_t>(id)] = true;
    for (const int32_t id : history.generated)
        if (inside(id)) seen[static_cast<size_t>(id)] = true, ++generated[static_cast<size_t>(id)];
    for (size_t id = 0; id < scores.size(); ++id) {
        if (!seen[id]) continue;
        double score = scores[id];
        score = score > 0 ? score / options.repetition_penalty : score * options.repetition_penalty;
        if (generated[id] > 0) score -= options.presence_penalty + options.frequency_penalty * generated[id];
        scores[id] = static_cast<float>(score);
    }
}

bool penalizes(const SamplingOptions& o) {
    return o.repetition_penalty != 1 || o.presence_penalty != 0 || o.frequency_penalty != 0;
}

std::vector<float> scores_of(std::span<const float> logits, const TokenHistory& history, const SamplingOptions& options,
                             int64_t position) {
    bool any = false;
    for (size_t i = 0; i < logits.size(); ++i) {
        LC_REQUIRE(Numerics, !std::isnan(logits[i]) && logits[i] < std::numeric_limits<float>::infinity(),
                   "the logit of token {} is {} at position {}", i, std::isnan(logits[i]) ? "NaN" : "infinite",
                   position);
        any = any || std::isfinite(logits[i]);
    }
    LC_REQUIRE(Numerics, any, "all logits are -infinity at position {}", position);
    std::vector<float> scores(logits.begin(), logits.end());
    for (const LogitBias& bias : options.logit_bias)
        scores[static_cast<size_t>(bias.id)] += static_cast<float>(bias.value);
    if (penalizes(options)) penalize(scores, history, options);
    return scores;
}

// The likeliest tokens that together reach `share` of the weight; at least one.
void keep_top_p(std::vector<Candidate>& kept, double share) {
    const double enough = share * total(kept);
    std::make_heap(kept.begin(), kept.end(), worse);  // a few pops are far cheaper than sorting a vocabulary
    auto rest = kept.end();
    double sum = 0;
    do {
        std::pop_heap(kept.begin(), rest--, worse);
        sum += rest->weight;
    } while (sum < enough && rest != kept.begin());
    kept.erase(kept.begin(), rest);
}

// What may be drawn, by id, so that the draw does not depend on which filters were at work.
std::vector<Candidate> candidates_of(std::span<const float> scores, float best, const SamplingOptions& options) {
    std::vector<Candidate> kept(scores.size());
    for (size_t i = 0; i < scores.size(); ++i)
        kept[i] = {static_cast<int32_t>(i), std::exp((double{scores[i]} - double{best}) / options.temperature)};
    const bool cut = options.top_k > 0 && static_cast<size_t>(options.top_k) < kept.size();
    if (cut) {
        std::nth_element(kept.begin(), kept.begin() + (options.top_k - 1), kept.end(), better);
        kept.resize(static_cast<size_t>(options.top_k));
    }
    if (options.top_p < 1) keep_top_p(kept, options.top_p);
    if (options.min_p > 0)
        std::erase_if(kept, [&](const Candidate& c) { return c.weight < options.min_p; });  // the best has 1
    if (cut || options.top_p < 1)
        std::sort(kept.begin(), kept.end(), [](const Candidate& a, const Candidate& b) { return a.id < b.id; });
    return kept;
}

}  // namespace

void validate(const SamplingOptions& o, int64_t vocab_size) {
    LC_REQUIRE(Usage, std::isfinite(o.temperature) && o.temperature >= 0,
               "temperature must be 0 (greedy) or above, got {}", o.temperature);
    LC_REQUIRE(Usage, o.top_k >= 0, "top_k must be 0 (off) or above, got {}", o.top_k);
    LC_REQUIRE(Usage, o.top_p > 0 && o.top_p <= 1, "top_p must be above 0 and at most 1, got {}", o.top_p);
    LC_REQUIRE(Usage, o.min_p >= 0 && o.min_p <= 1, "min_p must be 0 to 1, got {}", o.min_p);
    LC_REQUIRE(Usage, std::isfinite(o.repetition_penalty) && o.repetition_penalty > 0,
               "repetition_penalty must be above 0, got {}", o.repetition_penalty);
    LC_REQUIRE(Usage, std::isfinite(o.presence_penalty), "presence_penalty must be a number, got {}",
               o.presence_penalty);
    LC_REQUIRE(Usage, std::isfinite(o.frequency_penalty), "frequency_penalty must be a number, got {}",
               o.frequency_penalty);
    for (const LogitBias& bias : o.logit_bias) {
        LC_REQUIRE(Usage, bias.id >= 0 && bias.id < vocab_size, "logit_bias: token {} is not in [0, {})", bias.id,
                   vocab_size);
        LC_REQUIRE(Usage, !std::isnan(bias.value) && bias.value < std::numeric_limits<float>::max(),
                   "logit_bias of token {} must be a number or -inf, got {}", bias.id, bias.value);
    }
}

int32_t sample(std::span<const float> logits, const TokenHistory& history, const SamplingOptions& options,
               int64_t position) {
    LC_CHECK(!logits.empty(), "sample: no logits");
    const std::vector<float> scores = scores_of(logits, history, options, position);
    const auto best = std::max_element(scores.begin(), scores.end());
    LC_REQUIRE(Usage, std::isfinite(*best), "logit_bias leaves no token to choose from at position {}", position);
    if (options.temperature == 0) return static_cast<int32_t>(best - scores.begin());

    const std::vector<Candidate> kept = candidates_of(scores, *best, options);
    double left = Random(options.seed, options.request).uniform(static_cast<uint64_t>(position)) * total(kept);
    for (const Candidate& candidate : kept)
        if ((left -= candidate.weight) < 0) return candidate.id;
    return std::min_element(kept.begin(), kept.end(), better)->id;  // rounding left a crumb
}

LogitBias parse_logit_bias(std::string_view text) {
    LogitBias bias;
    const size_t equals = std::min(text.find('='), text.size());
    const char *end = text.data() + text.size(), *id_end = text.data() + equals;
    const auto id = std::from_chars(text.data(), id_end, bias.id);
    const auto value = equals < text.size() ? std::from_chars(id_end + 1, end, bias.value)
                                            : std::from_chars_result{id_end, std::errc::invalid_argument};
    LC_REQUIRE(Usage, id.ec == std::errc() && id.ptr == id_end && value.ec == std::errc() && value.ptr == end,
               "logit bias must be ID=VALUE, VALUE a number or -inf, got '{}'", io::printable(text));
    return bias;
}

}  // namespace lc::models
