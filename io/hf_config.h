// config.json and generation_config.json of a Hugging Face model directory.
//
// Read: Llama, Mistral, Qwen2, Qwen3, Phi (1, 1.5, 2) and Gemma (1), which differ by what BlockConfig says (io/hf_family.h).
// Everything that would make it a different model is refused by name: other families, biases where a family has none, other
// activations, quantised weights, rope types that are not computed.
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

#include "io/hf_family.h"
#include "io/hf_rope.h"

namespace lc::io {

struct HfConfig {
    std::string model_type = "llama";  // llama, mistral, qwen2, qwen3, phi, gemma
    std::string architecture = "LlamaForCausalLM";
    int64_t hidden_size = 0;
    int64_t intermediate_size = 0;
    int64_t num_hidden_layers = 0;
    int64_t num_attention_heads = 0;
    int64_t num_key_value_heads = 0;  // divides num_attention_heads; equal to it when the file has none
    int64_t head_dim = 0;  // even; where the file has none, the family's, else hidden_size / num_attention_heads
    int64_t vocab_size = 0;
    int64_t max_position_embeddings = 0;
    double norm_eps = 1e-5;  // `rms_norm_eps` or `layer_norm_eps`
    BlockConfig block;
    RopeConfig rope;
    bool tie_word_embeddings = false;
    std::vector<int64_t> bos_token_ids;  // empty: none
    std::vector<int64_t> eos_token_ids;  // any of them ends a text
    std::string torch_dtype;             // "bfloat16", "float16", "float32", "float64"; empty: not said
    int64_t sliding_window = 0;          // keys that softmax attention sees in some layers; 0: all
    std::vector<bool> window_layers;     // which they are; empty without a window
    bool uses_rope_parameters = false;   // the newer spelling; to_json keeps it

    // As transformers reads it, in the spelling of `uses_rope_parameters`.
    nlohmann::json to_json() const;
};

// The config.json of a model directory, or `path` itself where that is none. Throws BadInput for a directory with an adapter and no
// model; whether the file is there is for its reader to say.
std::filesystem::path config_file_of(const std::filesystem::path& path);

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
