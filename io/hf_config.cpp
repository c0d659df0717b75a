#include "io/hf_config.h"

#include <algorithm>
#include <array>
#include <limits>

#include "core/check.h"
#include "core/log.h"
#include "io/gguf_config.h"
#include "io/json.h"
#include "io/text.h"

namespace lc::io {
namespace {

namespace fs = std::filesystem;

constexpr int64_t kMaxTokenId = (int64_t{1} << 24) - 1;
constexpr double kLeast = 1e-12;  // "above 0" in words that a range can say

constexpr const char* kUsedKeys[] = {"architectures",
                                     "model_type",
                                     "hidden_size",
                                     "intermediate_size",
                                     "num_hidden_layers",
                                     "num_attention_heads",
                                     "num_key_value_heads",
                                     "head_dim",
                                     "vocab_size",
                                     "max_position_embeddings",
                                     "rms_norm_eps",
                                     "layer_norm_eps",
                                     "rope_theta",
                                     "rope_scaling",
                                     "rope_parameters",
                                     "tie_word_embeddings",
                                     "bos_token_id",
                                     "eos_token_id",
                                     "hidden_act",
                                     "hidden_activation",
                                     "attention_bias",
                                     "mlp_bias",
                                     "torch_dtype",
                                     "dtype",
                                     "sliding_window",
                                     "use_sliding_window",
                                     "max_window_layers",
                                     "layer_types",
                                     "quantization_config",
                                     "rope_interleaved",
                                     "partial_rotary_factor",
                                     "qk_layernorm",
                                     "use_bidirectional_attention",
                                     "use_mrope"};

void refuse_quantized(const JsonObject& json) {
    const auto quantization = json.find_object("quantization_config");
    if (!quantization) return;
    const Json* method = quantization->find("quant_method");
    fail(ErrorKind::BadInput, "{}: key 'quantization_config': quantised weights ({}) are not supported", json.source(),
         method ? describe(*method) : "unnamed");
}

void read_sizes(const JsonObject& json, const HfFamily& family, HfConfig& config) {
    config.hidden_size = json.get_int("hidden_size", 1, 1 << 20);
    config.intermediate_size = json.get_int("intermediate_size", 1, 1 << 22);
    config.num_hidden_layers = json.get_int("num_hidden_layers", 1, 1024);
    config.num_attention_heads = json.get_int("num_attention_heads", 1, 4096);
    config.num_key_value_heads =
        json.find_int("num_key_value_heads", 1, config.num_attention_heads).value_or(config.num_attention_heads);
    config.vocab_size = json.get_int("vocab_size", 1, kMaxTokenId + 1);
    config.max_position_embeddings = json.get_int("max_position_embeddings", 1, std::numeric_limits<int32_t>::max());
    if (config.num_attention_heads % config.num_key_value_heads != 0)
        json.fail_key("num_key_value_heads",
                      fmt::format("a divisor of num_attention_heads = {}", config.num_attention_heads));
    const auto given = json.find_int("head_dim", 2, 1024);
    if (given || family.default_head_dim > 0) {
        config.head_dim = given.value_or(family.default_head_dim);
        if (config.head_dim % 2 != 0) json.fail_key("head_dim", "even (rotary embeddings turn pairs)");
        return;
    }
    if (config.hidden_size % config.num_attention_heads != 0)
        json.fail_key("hidden_size", fmt::format("a multiple of num_attention_heads = {}", config.num_attention_heads));
    config.head_dim = config.hidden_size / config.num_attention_heads;
    LC_REQUIRE(BadInput, config.head_dim % 2 == 0 && config.head_dim <= 1024,
               "{}: key 'hidden_size': {} / {} heads gives head_dim {}, which must be even and at most 1024",
               json.source(), config.hidden_size, config.num_attention_heads, config.head_dim);
}

// Numbers of a head that are rotated: the family's share of them.
void check_rotated(const JsonObject& json, const HfConfig& config) {
    const auto rotated = static_cast<int64_t>(static_cast<double>(config.head_dim) * config.block.rotary_fraction);
    LC_REQUIRE(
        BadInput, rotated >= 2 && rotated % 2 == 0,
        "{}: key 'partial_rotary_factor': {} of head_dim {} rotates {} numbers, which must be even and at least 2",
        json.source(), config.block.rotary_fraction, config.head_dim, rotated);
}

void read_dtype(const JsonObject& json, HfConfig& config) {
    const auto older = json.find_string("torch_dtype"), newer = json.find_string("dtype");
    LC_REQUIRE(BadInput, !older || !newer || *older == *newer,
               "{}: keys 'torch_dtype' and 'dtype' differ: \"{}\" and \"{}\"", json.source(),
               printable(older.value_or("")), printable(newer.value_or("")));
    config.torch_dtype = older ? *older : newer.value_or("");
    constexpr std::array known = {"", "bfloat16", "float16", "float32", "float64"};
    if (std::ranges::find(known, config.torch_dtype) == known.end())
        json.fail_key(older ? "torch_dtype" : "dtype", "bfloat16, float16, float32 or float64");
}

// A token id, a list of them, or null.
std::vector<int64_t> read_token_ids(const JsonObject& json, const char* key, int64_t last) {
    const Json* value = json.find(key);
    if (value == nullptr) return {};
    if (!value->is_array()) return {json.get_int(key, 0, last)};
    std::vector<int64_t> ids;
    for (const Json& item : *value) {
        const std::optional<int64_t> id = as_int(item);
        LC_REQUIRE(BadInput, id && *id >= 0 && *id <= last, "{}: key '{}' must hold token ids in [0, {}], got {}",
                   json.source(), json.full_key(key), last, describe(item));
        ids.push_back(*id);
    }
    return ids;
}

void list_unused_keys(const JsonObject& json) {
    for (const auto& [key, value] : json.json().items())
        if (std::ranges::find(kUsedKeys, std::string_view(key)) == std::end(kUsedKeys))
            log_debug("{}: key '{}' is not used", json.source(), printable(key));
}

fs::path inside(const fs::path& path, const char* name) {
    std::error_code ignored;
    return fs::is_directory(path, ignored) ? path / name : path;
}

// In the family's way: Mistral names a window for all layers, Qwen's files say which.
void write_window(Json& json, const HfConfig& config) {
    const bool qwen = config.model_type.starts_with("qwen");
    if (config.model_type != "mistral" && !qwen) return;
    json["sliding_window"] = config.sliding_window > 0 ? Json(config.sliding_window) : Json(nullptr);
    if (!qwen) return;
    json["use_sliding_window"] = config.sliding_window > 0;
    if (config.sliding_window == 0) return;
    Json types = Json::array();
    for (const bool sliding : config.window_layers) types.push_back(sliding ? "sliding_attention" : "full_attention");
    json["layer_types"] = types;
    json["max_window_layers"] = std::ranges::find(config.window_layers, true) - config.window_layers.begin();
}

}  // namespace

HfConfig parse_hf_config(const nlohmann::json& object, const std::string& source) {
    const JsonObject json(object, source);
    HfConfig config;
    const HfFamily& family = family_of(json);
    config.architecture = family.architecture, config.model_type = family.model_type;
    refuse_quantized(json);
    read_sizes(json, family, config);
    config.norm_eps = json.get_double(family.norm_eps_key, kLeast, 0.1);
    config.block = read_block(json, family);
    check_rotated(json, config);
    config.rope = read_rope(json, config.max_position_embeddings, config.uses_rope_parameters);
    config.tie_word_embeddings = json.find_bool("tie_word_embeddings").value_or(family.ties_by_default);
    LC_REQUIRE(BadInput, !config.tie_word_embeddings || !config.block.head_bias,
               "{}: key 'tie_word_embeddings' must be false for {}, whose head has a bias", source,
               config.architecture);
    config.bos_token_ids = read_token_ids(json, "bos_token_id", config.vocab_size - 1);
    config.eos_token_ids = read_token_ids(json, "eos_token_id", config.vocab_size - 1);
    read_dtype(json, config);
    read_window(json, family, config);
    list_unused_keys(json);
    return config;
}

fs::path config_file_of(const fs::path& path) {
    const fs::path file = inside(path, "config.json");
    std::error_code ignored;
    LC_REQUIRE(
        BadInput, fs::exists(fs::symlink_status(file, ignored)) || !fs::exists(path / "adapter_config.json", ignored),
        "{}: holds an adapter and no model: name the model that it was trained on, and this as the run", path.string());
    return file;
}

HfConfig load_hf_config(const fs::path& path) {
    if (is_gguf(path)) return hf_config_of(GgufFile(path));
    const fs::path file = config_file_of(path);
    return parse_hf_config(read_json_file(file), file.string());
}

nlohmann::json HfConfig::to_json() const {
    const auto ids = [](const std::vector<int64_t>& list) {
        return list.empty() ? Json(nullptr) : list.size() == 1 ? Json(list[0]) : Json(list);
    };
    const HfFamily& family = family_named(architecture);
    Json json = {
        {"architectures", Json::array({architecture})},
        {"model_type", model_type},
        {"hidden_size", hidden_size},
        {"intermediate_size", intermediate_size},
        {"num_hidden_layers", num_hidden_layers},
        {"num_attention_heads", num_attention_heads},
        {"num_key_value_heads", num_key_value_heads},
        {"head_dim", head_dim},
        {"vocab_size", vocab_size},
        {"max_position_embeddings", max_position_embeddings},
        {family.norm_eps_key, norm_eps},
        {"tie_word_embeddings", tie_word_embeddings},
        {"bos_token_id", ids(bos_token_ids)},
        {"eos_token_id", ids(eos_token_ids)},
        {"hidden_act", block.activation == Activation::silu ? "silu" : "gelu_pytorch_tanh"},
    };
    if (family.may_bias_attention) json["attention_bias"] = block.o_bias;
    if (family.may_bias_mlp) json["mlp_bias"] = block.mlp_bias;
    write_window(json, *this);
    if (!torch_dtype.empty()) json[uses_rope_parameters ? "dtype" : "torch_dtype"] = torch_dtype;
    Json rope_object = rope_to_json(rope);
    const bool partial = family.block.rotary_fraction != 1;
    if (uses_rope_parameters) {
        rope_object["rope_theta"] = rope.theta;
        if (partial) rope_object["partial_rotary_factor"] = block.rotary_fraction;
        json["rope_parameters"] = rope_object;
    } else {
        json["rope_theta"] = rope.theta;
        if (partial) json["partial_rotary_factor"] = block.rotary_fraction;
        json["rope_scaling"] = rope.type == RopeType::standard ? Json(nullptr) : rope_object;
    }
    return json;
}

GenerationConfig load_generation_config(const fs::path& path) {
    if (is_gguf(path)) return {};
    const fs::path file = inside(path, "generation_config.json");
    std::error_code ignored;
    if (file != path && !fs::exists(fs::symlink_status(file, ignored))) return {};
    const Json tree = read_json_file(file);
    const JsonObject json(tree, file.string());
    constexpr int64_t kMany = std::numeric_limits<int32_t>::max();
    GenerationConfig config;
    config.bos_token_ids = read_token_ids(json, "bos_token_id", kMaxTokenId);
    config.eos_token_ids = read_token_ids(json, "eos_token_id", kMaxTokenId);
    config.do_sample = json.find_bool("do_sample");
    config.temperature = json.find_double("temperature", 0, 1e6);
    config.top_p = json.find_double("top_p", 0, 1);
    config.min_p = json.find_double("min_p", 0, 1);
    config.repetition_penalty = json.find_double("repetition_penalty", kLeast, 1e6);
    config.top_k = json.find_int("top_k", 0, kMany);
    config.max_new_tokens = json.find_int("max_new_tokens", 0, kMany);
    return config;
}

}  // namespace lc::io
