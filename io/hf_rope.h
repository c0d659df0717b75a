// Rotary position embedding as config.json describes it, in both spellings: `rope_theta` + `rope_scaling`, or
// `rope_parameters`.
#pragma once
#include <cstdint>
#include <nlohmann/json_fwd.hpp>

namespace lc::io {

class JsonObject;

enum class RopeType : uint8_t {
    standard,  // "default": frequencies theta^(-2i/d)
    linear,    // all of them divided by `factor`
    dynamic,   // the default up to max_position_embeddings, which sequences here never exceed
    llama3,    // low frequencies divided by `factor`, those between the two wavelengths blended
    yarn,      // low frequencies divided by `factor`, those between two numbers of turns blended; cos and sin scaled
};

struct RopeConfig {
    RopeType type = RopeType::standard;
    double theta = 10000;
    double factor = 1;                                 // all but standard
    double low_freq_factor = 1, high_freq_factor = 4;  // llama3
    int64_t original_max_position_embeddings = 8192;   // llama3, yarn
    double beta_fast = 32, beta_slow = 1;  // yarn: turns over the original length, where blending begins and ends
    bool truncate = true;                  // yarn: to whole dimensions
    double attention_factor = 1;           // yarn: of cos and sin
    bool operator==(const RopeConfig&) const = default;
};

// `max_positions`: the config's max_position_embeddings, yarn's default for the original length. `newer` tells the spelling.
// Throws BadInput for unknown types and longrope, by name, and for spellings that contradict each other.
RopeConfig read_rope(const JsonObject& json, int64_t max_positions, bool& newer);

// The object under `rope_scaling` or, but for the theta, `rope_parameters`.
nlohmann::json rope_to_json(const RopeConfig& rope);

}  // namespace lc::io
