#include "models/decoder/config.h"

#include "core/check.h"

namespace lc::models {

int64_t DecoderConfig::rotary_dim() const {
    return static_cast<int64_t>(static_cast<double>(head_dim) * block.rotary_fraction);
}

int64_t DecoderConfig::window_of(int64_t layer) const {
    const bool sliding = !window_layers.empty() && window_layers.at(static_cast<size_t>(layer));
    return sliding && !ignore_sliding_window ? sliding_window : 0;
}

DecoderConfig decoder_config_from(const io::HfConfig& c) {
    DecoderConfig config{.vocab_size = c.vocab_size,
                         .hidden_size = c.hidden_size,
                         .intermediate_size = c.intermediate_size,
                         .num_layers = c.num_hidden_layers,
                         .num_heads = c.num_attention_heads,
                         .num_kv_heads = c.num_key_value_heads,
                         .head_dim = c.head_dim,
                         .max_positions = c.max_position_embeddings,
                         .norm_eps = c.norm_eps,
                         .tie_embeddings = c.tie_word_embeddings,
                         .rope = c.rope,
                         .block = c.block,
                         .sliding_window = c.sliding_window,
                         .window_layers = c.window_layers,
                         .model_type = c.model_type,
                         .architecture = c.architecture,
                         .bos_token_ids = c.bos_token_ids,
                         .eos_token_ids = c.eos_token_ids,
                         .uses_rope_parameters = c.uses_rope_parameters};
    return config;
}

io::HfConfig hf_config_from(const DecoderConfig& c, DType dtype) {
    io::HfConfig config;
    config.model_type = c.model_type;
    config.architecture = c.architecture;
    config.hidden_size = c.hidden_size;
    config.intermediate_size = c.intermediate_size;
    config.num_hidden_layers = c.num_layers;
    config.num_attention_heads = c.num_heads;
    config.num_key_value_heads = c.num_kv_heads;
    config.head_dim = c.head_dim;
    config.vocab_size = c.vocab_size;
    config.max_position_embeddings = c.max_positions;
    config.norm_eps = c.norm_eps;
    config.rope = c.rope;
    config.block = c.block;
    config.tie_word_embeddings = c.tie_embeddings;
    config.bos_token_ids = c.bos_token_ids;
    config.eos_token_ids = c.eos_token_ids;
    config.sliding_window = c.sliding_window;
    config.window_layers = c.window_layers;
    config.uses_rope_parameters = c.uses_rope_parameters;
    switch (dtype) {
        case DType::f64:
            config.torch_dtype = "float64";
            break;
        case DType::f32:
            config.torch_dtype = "float32";
            break;
        case DType::bf16:
            config.torch_dtype = "bfloat16";
            break;
        case DType::f16:
            config.torch_dtype = "float16";
            break;
        default:
            fail(ErrorKind::Internal, "hf_config_from: weights cannot be {}", name_of(dtype));
    }
    return config;
}

void validate(const DecoderConfig& c) {
    const std::pair<const char*, int64_t> sizes[] = {{"vocab_size", c.vocab_size},
                                                     {"hidden_size", c.hidden_size},
                                                     {"intermediate_size", c.intermediate_size},
                                                     {"num_hidden_layers", c.num_layers},
                                                     {"num_attention_heads", c.num_heads},
                                                     {"num_key_value_heads", c.num_kv_heads},
                                                     {"head_dim", c.head_dim},
                                                     {"max_position_embeddings", c.max_positions}};
    for (const auto& [name, value] : sizes)
        LC_REQUIRE(Usage, value >= 1, "model config: {} must be at least 1, got {}", name, value);
    LC_REQUIRE(Usage, c.num_heads % c.num_kv_heads == 0,
               "model config: num_attention_heads ({}) must be a multiple of num_key_value_heads ({})", c.num_heads,
               c.num_kv_heads);
    LC_REQUIRE(Usage, c.head_dim % 2 == 0, "model config: head_dim must be even for rotary positions, got {}",
               c.head_dim);
    LC_REQUIRE(Usage, c.rotary_dim() >= 2 && c.rotary_dim() % 2 == 0,
               "model config: the rotated part of a head must be even and at least 2, got {} of {}", c.rotary_dim(),
               c.head_dim);
    LC_REQUIRE(Usage, c.block.gated || c.block.activation == io::Activation::gelu_tanh,
               "model config: an MLP without a gate must have GELU");
    LC_REQUIRE(Usage, !c.tie_embeddings || !c.block.head_bias, "model config: a tied head has no bias");
    LC_REQUIRE(
        Usage,
        c.window_layers.empty() ? c.sliding_window == 0
                                : std::ssize(c.window_layers) == c.num_layers && c.sliding_window >= 1,
        "model config: a window needs its size and must say of each of {} layers whether it has it, got {} for {}",
        c.num_layers, c.sliding_window, c.window_layers.size());
    LC_REQUIRE(Usage, c.norm_eps > 0, "model config: rms_norm_eps must be above 0, got {}", c.norm_eps);
    LC_REQUIRE(Usage, c.rope.theta > 0, "model config: rope_theta must be above 0, got {}", c.rope.theta);
}

}  // namespace lc::models
