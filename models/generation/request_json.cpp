#include "models/generation/request_json.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>

#include "core/check.h"

namespace lc::models {
namespace {

constexpr double kAny = std::numeric_limits<double>::max();

constexpr std::array<std::string_view, 12> kKeys = {
    "max_new_tokens",   "temperature",       "top_k",      "top_p", "min_p", "repetition_penalty",
    "presence_penalty", "frequency_penalty", "logit_bias", "seed",  "stop",  "ignore_eos"};

std::vector<LogitBias> read_bias(const io::JsonObject& entries) {
    std::vector<LogitBias> bias;
    for (const auto& [id, value] : entries.json().items()) {
        const bool banned = value.is_string() && value.get_ref<const std::string&>() == "-inf";
        if (!banned && !value.is_number()) entries.fail_key(id, "a number or \"-inf\"");
        try {
            bias.push_back(parse_logit_bias(id + "=0"));
        } catch (const Error&) {
            entries.fail_key(id, "under a token's id");
        }
        bias.back().value = banned ? -INFINITY : value.get<double>();
    }
    return bias;
}

std::vector<std::string> read_stops(const io::JsonObject& object) {
    if (object.get("stop").is_string()) return {object.get_string("stop")};
    if (!object.get("stop").is_array()) object.fail_key("stop", "a string or an array of strings");
    return object.get_strings("stop");
}

}  // namespace

bool is_override(std::string_view key) {
    return std::find(kKeys.begin(), kKeys.end(), key) != kKeys.end();
}

void apply_overrides(const io::JsonObject& object, int64_t vocab_size, GenerateOptions& options) {
    SamplingOptions& s = options.sampling;
    const auto number = [&](std::string_view key, double low, double high, double& target) {
        if (const auto value = object.find_double(key, low, high)) target = *value;
    };
    options.max_new_tokens = object.find_int("max_new_tokens", 1, int64_t{1} << 40).value_or(options.max_new_tokens);
    number("temperature", 0, kAny, s.temperature);
    s.top_k = object.find_int("top_k", 0, int64_t{1} << 40).value_or(s.top_k);
    number("top_p", std::numeric_limits<double>::min(), 1, s.top_p);
    number("min_p", 0, 1, s.min_p);
    number("repetition_penalty", std::numeric_limits<double>::min(), kAny, s.repetition_penalty);
    number("presence_penalty", -kAny, kAny, s.presence_penalty);
    number("frequency_penalty", -kAny, kAny, s.frequency_penalty);
    if (const auto entries = object.find_object("logit_bias")) s.logit_bias = read_bias(*entries);
    if (const auto seed = object.find_int("seed", 0, std::numeric_limits<int64_t>::max()))
        s.seed = static_cast<uint64_t>(*seed);
    if (object.has("stop")) options.stop_strings = read_stops(object);
    if (object.find_bool("ignore_eos").value_or(false)) options.eos_ids.clear();
    try {
        validate(s, vocab_size);
        StopStrings{options.stop_strings};
    } catch (const Error& error) {
        fail(ErrorKind::BadInput, "{}: {}", object.source(), error.what());
    }
}

io::Json to_json(const GenerateOptions& options) {
    const SamplingOptions& s = options.sampling;
    io::Json bias = io::Json::array();
    for (const LogitBias& entry : s.logit_bias)  // JSON has no infinity
        bias.push_back({entry.id, std::isfinite(entry.value) ? io::Json(entry.value) : io::Json("-inf")});
    return {{"max_new_tokens", options.max_new_tokens},
            {"temperature", s.temperature},
            {"top_k", s.top_k},
            {"top_p", s.top_p},
            {"min_p", s.min_p},
            {"repetition_penalty", s.repetition_penalty},
            {"presence_penalty", s.presence_penalty},
            {"frequency_penalty", s.frequency_penalty},
            {"logit_bias", std::move(bias)},
            {"seed", s.seed},
            {"request", s.request},
            {"stop", options.stop_strings},
            {"eos", options.eos_ids}};
}

}  // namespace lc::models
