#include "models/generation/sampler.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <limits>

#include "core/check.h"
#include "io/text.h"
#include "kernels/sample/sample_rules.h"

namespace lc::models {
namespace {

bool penalizes(const SamplingOptions& o) {
    return o.repetition_penalty != 1 || o.presence_penalty != 0 || o.frequency_penalty != 0;
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
    LC_REQUIRE(Usage, vocab_size <= kernels::kMostSampleIds, "a vocabulary of {} ids is more than {}", vocab_size,
               kernels::kMostSampleIds);
    for (const LogitBias& bias : o.logit_bias) {
        LC_REQUIRE(Usage, bias.id >= 0 && bias.id < vocab_size, "logit_bias: token {} is not in [0, {})", bias.id,
                   vocab_size);
        LC_REQUIRE(Usage, !std::isnan(bias.value) && bias.value < std::numeric_limits<float>::max(),
                   "logit_bias of token {} must be a number or -inf, got {}", bias.id, bias.value);
    }
}

kernels::SampleSettings settings_of(const SamplingOptions& o) {
    return {.top_p = o.top_p,
            .repetition = o.repetition_penalty,
            .presence = o.presence_penalty,
            .frequency = o.frequency_penalty,
            .min_weight = kernels::sample_min_weight(o.min_p),
            .random = Random(o.seed, o.request),
            .top_k = static_cast<int32_t>(std::min(o.top_k, kernels::kMostSampleIds)),
            .sharpness = o.temperature > 0 ? kernels::sample_sharpness(o.temperature) : 0.0f,
            .greedy = o.temperature == 0,
            .uses_bias = !o.logit_bias.empty(),
            .uses_seen = penalizes(o)};
}

std::vector<float> bias_of(const SamplingOptions& options, int64_t vocab_size) {
    std::vector<float> bias(static_cast<size_t>(vocab_size));
    for (const LogitBias& entry : options.logit_bias)
        bias[static_cast<size_t>(entry.id)] += static_cast<float>(entry.value);
    return bias;
}

std::vector<int32_t> seen_in(const TokenHistory& history, int64_t vocab_size) {
    std::vector<int32_t> seen(static_cast<size_t>(vocab_size));
    const auto inside = [&](int32_t id) { return id >= 0 && id < vocab_size; };
    for (const int32_t id : history.prompt)
        if (inside(id)) seen[static_cast<size_t>(id)] |= kernels::kSeenInPrompt;
    for (const int32_t id : history.generated)
        if (inside(id)) ++seen[static_cast<size_t>(id)];
    return seen;
}

int32_t id_of(const kernels::SampleResult& result, int64_t position) {
    using kernels::SampleStatus;
    const bool nan = result.status == SampleStatus::nan_logit;
    LC_REQUIRE(Numerics, !nan && result.status != SampleStatus::infinite_logit,
               "the logit of token {} is {} at position {}", result.id, nan ? "NaN" : "infinite", position);
    LC_REQUIRE(Numerics, result.status != SampleStatus::no_logit, "all logits are -infinity at position {}", position);
    LC_REQUIRE(Usage, result.status != SampleStatus::nothing_left,
               "logit_bias leaves no token to choose from at position {}", position);
    LC_CHECK(result.status == SampleStatus::drawn, "sample: no token was asked for at position {}", position);
    return result.id;
}

int32_t sample(std::span<const float> logits, const TokenHistory& history, const SamplingOptions& options,
               int64_t position) {
    const kernels::SampleSettings settings = settings_of(options);
    const auto vocab_size = std::ssize(logits);
    const std::vector<float> bias = settings.uses_bias ? bias_of(options, vocab_size) : std::vector<float>();
    const std::vector<int32_t> seen = settings.uses_seen ? seen_in(history, vocab_size) : std::vector<int32_t>();
    return id_of(kernels::sample_row(logits, bias, seen, settings, position), position);
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
