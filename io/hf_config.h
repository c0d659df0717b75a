// config.json and generation_config.json of a Hugging Face model directory.
//
// Read: the families `llama` and `mistral`. A sliding window (Mistral 7B v0.1) is parsed but not applied: attention is
// full, which is the same model up to that many tokens. Everything that would make it a different model is refused by
// name: other families, projection biases, other activations, quantised weights, rope types that are not computed.
//
// Both generations of the format are read: `rope_theta` + `rope_scaling` + `torch_dtype`, and `rope_parameters` +
// `dtype`. Both at once are fine when they agree.
#pragma once
#include <cstdint>
#include <filesystem>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <vector>

namespace lc::io {

enum class RopeType : uint8_t {
    standard,  // "default": frequencies theta^(-2i/d)
    llama3,    // low frequencies divided by `factor`, those between the two wavelengths blended
};

struct RopeConfig {
    RopeType type = RopeType::standard;
    double theta = 10000;
    // llama3 only:
    double factor = 1, low_freq_factor = 1, high_freq_factor = 4;
    int64_t original_max_position_embeddings = 8192;
    bool operator==(const RopeConfig&) const = default;
};

struct HfConfig {
    std::string model_type = "llama";  // llama, mistral
    std::string architecture = "LlamaForCausalLM";
    int64_t hidden_size = 0;
    int64_t intermediate_size = 0;
    int64_t num_hidden_layers = 0;
    int64_t num_attention_heads = 0;
    int64_t num_key_value_heads = 0;  // divides num_attention_heads; equal to it when the file has none
    int64_t head_dim = 0;             // even; hidden_size / num_attention_heads when the file has none
    int64_t vocab_size = 0;
    int64_t max_position_embeddings = 0;
    double rms_norm_eps = 1e-5;
    RopeConfig rope;
    bool tie_word_embeddings = false;
    std::vector<int64_t> bos_token_ids;  // empty: none
    std::vector<int64_t> eos_token_ids;  // any of them ends a text
    std::string hidden_act = "silu";
    std::string torch_dtype;            // "bfloat16", "float16", "float32", "float64"; empty: not said
    int64_t sliding_window = 0;         // 0: none
    bool uses_rope_parameters = false;  // the newer spelling; to_json keeps it

    // As transformers reads it. For llama and mistral, in the spelling of `uses_rope_parameters`.
    nlohmann::json to_json() const;
};

// `path`: the file, or the directory that holds a config.json; or a GGUF file (io/gguf_config.h). Throws BadInput naming the key, what is wanted and what
// is there. Keys that we do not use are ignored, and listed at log level Debug.
HfConfig load_hf_config(const std::filesystem::path& path);
HfConfig parse_hf_config(const nlohmann::json& json, const std::string& source);

// Defaults for sampling; what the file does not say is nullopt or empty.
struct GenerationConfig {
    std::vector<int64_t> bos_token_ids, eos_token_ids;
    std::optional<bool> do_sample;
    std::optional<double> temperature, top_p, min_p, repetition_penalty;
    std::optional<int64_t> top_k, max_new_tokens;
};

// The file itself, or a directory: without a generation_config.json, and for a GGUF file, all is unset. Throws BadInput as above.
GenerationConfig load_generation_config(const std::filesystem::path& path);

}  // namespace lc::io
