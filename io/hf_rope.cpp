#include "io/hf_rope.h"

#include <cmath>
#include <limits>

#include "core/check.h"
#include "io/json.h"
#include "io/text.h"

namespace lc::io {
namespace {

constexpr double kLeast = 1e-12;  // "above 0" in words that a range can say
constexpr int64_t kMost = std::numeric_limits<int32_t>::max();

struct Name {
    const char* name;
    RopeType type;
};
constexpr Name kNames[] = {{"default", RopeType::standard},
                           {"linear", RopeType::linear},
                           {"dynamic", RopeType::dynamic},
                           {"llama3", RopeType::llama3},
                           {"yarn", RopeType::yarn}};

RopeType read_type(const JsonObject& json) {
    const auto type = json.find_string("rope_type"), legacy = json.find_string("type");
    LC_REQUIRE(BadInput, !type || !legacy || *type == *legacy, "{}: keys '{}' and '{}' differ: \"{}\" and \"{}\"",
               json.source(), json.full_key("rope_type"), json.full_key("type"), printable(type.value_or("")),
               printable(legacy.value_or("")));
    const char* key = legacy && !type ? "type" : "rope_type";
    const std::string name = json.get_string(key);
    for (const char* known : {"longrope", "su", "proportional", "mrope"})
        LC_REQUIRE(BadInput, name != known, "{}: key '{}': rope type '{}' is not supported", json.source(),
                   json.full_key(key), known);
    for (const Name& known : kNames)
        if (name == known.name) return known.type;
    json.fail_key(key, "default, linear, dynamic, llama3 or yarn");
}

void read_llama3(const JsonObject& json, RopeConfig& rope) {
    rope.low_freq_factor = json.get_double("low_freq_factor", kLeast, 1e6);
    rope.high_freq_factor = json.get_double("high_freq_factor", kLeast, 1e6);
    if (rope.high_freq_factor <= rope.low_freq_factor)
        json.fail_key("high_freq_factor", fmt::format("above low_freq_factor = {}", rope.low_freq_factor));
    rope.original_max_position_embeddings = json.get_int("original_max_position_embeddings", 1, kMost);
}

// How much larger logits get for a context `factor` times as long (arXiv 2309.00071, section 3.4).
double attention_scale(double factor, double weight = 1) {
    return factor <= 1 ? 1 : 0.1 * weight * std::log(factor) + 1;
}

void read_yarn(const JsonObject& json, int64_t max_positions, RopeConfig& rope) {
    rope.original_max_position_embeddings =
        json.find_int("original_max_position_embeddings", 1, kMost).value_or(max_positions);
    rope.beta_fast = json.find_double("beta_fast", kLeast, 1e6).value_or(32);
    rope.beta_slow = json.find_double("beta_slow", kLeast, 1e6).value_or(1);
    if (rope.beta_fast <= rope.beta_slow)
        json.fail_key("beta_fast", fmt::format("above beta_slow = {}", rope.beta_slow));
    rope.truncate = json.find_bool("truncate").value_or(true);
    const double mscale = json.find_double("mscale", 0, 1e6).value_or(0);
    const double mscale_all = json.find_double("mscale_all_dim", 0, 1e6).value_or(0);
    const double inferred = mscale > 0 && mscale_all > 0
                                ? attention_scale(rope.factor, mscale) / attention_scale(rope.factor, mscale_all)
                                : attention_scale(rope.factor);
    rope.attention_factor = json.find_double("attention_factor", kLeast, 1e6).value_or(inferred);
    LC_REQUIRE(BadInput, rope.theta > 1, "{}: yarn needs a rope_theta above 1, got {}", json.source(), rope.theta);
}

// One of the two spellings: a `rope_scaling` or a `rope_parameters` object.
RopeConfig read_rope_object(const JsonObject& json, double theta, int64_t max_positions) {
    RopeConfig rope;
    rope.theta = json.find_double("rope_theta", kLeast, 1e15).value_or(theta);
    rope.type = read_type(json);
    if (rope.type != RopeType::standard) rope.factor = json.get_double("factor", 1, 1e6);
    if (rope.type == RopeType::llama3) read_llama3(json, rope);
    if (rope.type == RopeType::yarn) read_yarn(json, max_positions, rope);
    return rope;
}

}  // namespace

RopeConfig read_rope(const JsonObject& json, int64_t max_positions, bool& newer) {
    const auto top = json.find_double("rope_theta", kLeast, 1e15);
    const double theta = top.value_or(RopeConfig{}.theta);
    const auto scaling = json.find_object("rope_scaling"), parameters = json.find_object("rope_parameters");
    newer = parameters.has_value();
    RopeConfig older;
    older.theta = theta;
    if (scaling) older = read_rope_object(*scaling, theta, max_positions);
    if (!parameters) return older;
    const RopeConfig rope = read_rope_object(*parameters, theta, max_positions);
    LC_REQUIRE(BadInput, !top || *top == rope.theta,
               "{}: keys 'rope_theta' and 'rope_parameters.rope_theta' differ: {} and {}", json.source(), theta,
               rope.theta);
    if (scaling && !top) older.theta = rope.theta;
    LC_REQUIRE(BadInput, !scaling || older == rope, "{}: keys 'rope_scaling' and 'rope_parameters' differ",
               json.source());
    return rope;
}

nlohmann::json rope_to_json(const RopeConfig& rope) {
    Json json;
    for (const Name& known : kNames)
        if (known.type == rope.type) json["rope_type"] = known.name;
    if (rope.type != RopeType::standard) json["factor"] = rope.factor;
    if (rope.type == RopeType::llama3 || rope.type == RopeType::yarn)
        json["original_max_position_embeddings"] = rope.original_max_position_embeddings;
    if (rope.type == RopeType::llama3) {
        json["low_freq_factor"] = rope.low_freq_factor;
        json["high_freq_factor"] = rope.high_freq_factor;
    }
    if (rope.type == RopeType::yarn) {
        json["beta_fast"] = rope.beta_fast, json["beta_slow"] = rope.beta_slow;
        json["truncate"] = rope.truncate, json["attention_factor"] = rope.attention_factor;
    }
    return json;
}

}  // namespace lc::io
