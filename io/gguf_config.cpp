#include "io/gguf_config.h"

#include <cmath>
#include <limits>
#include <numbers>

#include "core/check.h"
#include "io/json.h"

namespace lc::io {
namespace {

constexpr int64_t kMaxTokenId = (int64_t{1} << 24) - 1;

// Divisors of the frequencies theta^(-2i/D), i = 0..D/2-1. Those of Llama 3 follow from the last, which is the factor, and
// from constants that all its models share; others are refused.
void read_rope_divisors(const GgufFile& file, HfConfig& config) {
    const GgufTensor* tensor = file.find("rope_freqs.weight");
    if (tensor == nullptr) return;
    const std::string source = file.path().string();
    const std::vector<float> divisors = file.read(*tensor).to_vector<float>();
    LC_REQUIRE(BadInput, std::ssize(divisors) == config.head_dim / 2,
               "{}: tensor 'rope_freqs.weight' must be [{}], got {} numbers", source, config.head_dim / 2,
               divisors.size());
    RopeConfig& rope = config.rope;
    rope = {.type = RopeType::llama3,
            .theta = rope.theta,
            .factor = divisors.back(),
            .low_freq_factor = 1,
            .high_freq_factor = 4,
            .original_max_position_embeddings = 8192};
    for (size_t i = 0; i < divisors.size(); ++i) {
        const double frequency =
            std::pow(rope.theta, -2.0 * static_cast<double>(i) / static_cast<double>(config.head_dim));
        const double turns =
            static_cast<double>(rope.original_max_position_embeddings) * frequency / (2 * std::numbers::pi);
        const double share =
            std::clamp((turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor), 0.0, 1.0);
        const double wanted = 1 / ((1 - share) / rope.factor + share);
        LC_REQUIRE(BadInput, std::abs(divisors[i] - wanted) <= 1e-4 * wanted && rope.factor >= 1,
                   "{}: tensor 'rope_freqs.weight' holds {} at {}, but Llama 3's scaling by {} would be {}: other "
                   "scalings are not supported",
                   source, divisors[i], i, rope.factor, wanted);
    }
}

void read_rope(const GgufFile& file, const JsonObject& json, HfConfig& config) {
    config.rope.theta = json.find_double("llama.rope.freq_base", 1e-12, 1e15).value_or(10000);
    const std::string scaling = json.find_string("llama.rope.scaling.type").value_or("none");
    if (scaling != "none") json.fail_key("llama.rope.scaling.type", "\"none\" (nothing else is supported)");
    if (json.find_double("llama.rope.scale_linear", 0, 1e6).value_or(1) != 1)
        json.fail_key("llama.rope.scale_linear", "1 (nothing else is supported)");
    if (json.find_int("llama.rope.dimension_count", 1, 1 << 16).value_or(config.head_dim) != config.head_dim)
        json.fail_key("llama.rope.dimension_count", fmt::format("the size of a head, {}", config.head_dim));
    read_rope_divisors(file, config);
}

void read_heads(const JsonObject& json, HfConfig& config) {
    config.num_attention_heads = json.get_int("llama.attention.head_count", 1, 4096);
    const int64_t heads = config.num_attention_heads;
    config.num_key_value_heads = json.find_int("llama.attention.head_count_kv", 1, heads).value_or(heads);
    if (heads % config.num_key_value_heads != 0)
        json.fail_key("llama.attention.head_count_kv", fmt::format("a divisor of {} heads", heads));
    const auto given = json.find_int("llama.attention.key_length", 2, 1024);
    if (!given && config.hidden_size % heads != 0)
        json.fail_key("llama.embedding_length", fmt::format("a multiple of {} heads", heads));
    config.head_dim = given.value_or(config.hidden_size / heads);
    LC_REQUIRE(BadInput, config.head_dim >= 2 && config.head_dim % 2 == 0 && config.head_dim <= 1024,
               "{}: heads must have an even size of at most 1024, got {}", json.source(), config.head_dim);
    if (json.find_int("llama.attention.value_length", 1, 1024).value_or(config.head_dim) != config.head_dim)
        json.fail_key("llama.attention.value_length", fmt::format("that of keys, {}", config.head_dim));
}

}  // namespace

HfConfig hf_config_of(const GgufFile& file) {
    const JsonObject json(file.metadata(), file.path().string());
    if (json.get_string("general.architecture") != "llama")
        json.fail_key("general.architecture", "\"llama\" (nothing else is supported)");
    if (json.find_int("llama.expert_count", 0, 1 << 16).value_or(0) != 0)
        json.fail_key("llama.expert_count", "0 (mixtures of experts are not supported)");
    HfConfig config;
    config.hidden_size = json.get_int("llama.embedding_length", 1, 1 << 20);
    config.intermediate_size = json.get_int("llama.feed_forward_length", 1, 1 << 22);
    config.num_hidden_layers = json.get_int("llama.block_count", 1, 1024);
    read_heads(json, config);
    config.max_position_embeddings = json.get_int("llama.context_length", 1, std::numeric_limits<int32_t>::max());
    config.norm_eps = json.get_double("llama.attention.layer_norm_rms_epsilon", 1e-12, 0.1);
    read_rope(file, json, config);
    const GgufTensor* embedding = file.find("token_embd.weight");
    LC_REQUIRE(BadInput, embedding != nullptr && embedding->shape.size() == 2 && embedding->shape[0] <= kMaxTokenId + 1,
               "{}: tensor 'token_embd.weight' must be there and be [V,D] with at most {} rows", json.source(),
               kMaxTokenId + 1);
    config.vocab_size = embedding->shape[0];
    config.tie_word_embeddings = file.find("output.weight") == nullptr;
    const auto id = [&](const char* key) { return json.find_int(key, 0, config.vocab_size - 1); };
    if (const auto bos = id("tokenizer.ggml.bos_token_id")) config.bos_token_ids = {*bos};
    for (const char* key : {"tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id"})
        if (const auto end = id(key); end && (config.eos_token_ids.empty() || config.eos_token_ids[0] != *end))
            config.eos_token_ids.push_back(*end);
    return config;
}

}  // namespace lc::io
