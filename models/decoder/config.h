// The shape of a decoder, and how its blocks differ from Llama's.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "core/dtype.h"
#include "io/hf_config.h"

namespace lc::models {

struct DecoderConfig {
    int64_t vocab_size = 0, hidden_size = 0, intermediate_size = 0, num_layers = 0;
    int64_t num_heads = 0, num_kv_heads = 0, head_dim = 0, max_positions = 0;
    double norm_eps = 1e-5;
    bool tie_embeddings = false;
    io::RopeConfig rope;
    io::BlockConfig block;
    int64_t sliding_window = 0;       // keys that softmax attention sees in window_layers; 0: all
    std::vector<bool> window_layers;  // empty without a window
    bool ignore_sliding_window = false;

    // Carried for the files that we write; the computation does not depend on these.
    std::string model_type = "llama", architecture = "LlamaForCausalLM";
    std::vector<int64_t> bos_token_ids, eos_token_ids;
    bool uses_rope_parameters = false;

    int64_t num_parameters() const;          // tied ones once
    int64_t rotary_dim() const;              // numbers of a head that are rotated
    int64_t window_of(int64_t layer) const;  // of softmax attention, of a layer of the whole model; 0: all keys
};

DecoderConfig decoder_config_from(const io::HfConfig& config);
// The reverse; `dtype` is that of the weights beside it: f64, f32, bf16 or f16.
io::HfConfig hf_config_from(const DecoderConfig& config, DType dtype);

// Throws Error(Usage) for sizes that no decoder can have (heads that KV heads do not divide, an odd head_dim, ...).
void validate(const DecoderConfig& config);

}  // namespace lc::models
