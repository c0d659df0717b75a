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

// Families that people will try, and what in them we do not compute.
struct Unsupported {
    const char* architecture;
    const char* reason;
};
constexpr Unsupported kUnsupported[] = {
    {"Qwen2ForCausalLM", "biases of the q, k and v projections"},
    {"Qwen3ForCausalLM", "normalized queries and keys"},
    {"PhiForCausalLM", "layer norms with biases, parallel blocks and partial rotary embeddings"},
    {"Phi3ForCausalLM", "fused projections and longrope"},
    {"GemmaForCausalLM", "scaled embeddings and offset norms"},
    {"Gemma2ForCausalLM", "soft-capped logits and post-norms"},
    {"MixtralForCausalLM", "mixtures of experts"},
    {"GPT2LMHeadModel", "learned positions and layer norms"},
};

constexpr const char* kUsedKeys[] = {
    "architectures",       "model_type",
    "hidden_size",         "intermediate_size",
    "num_hidden_layers",   "num_attention_heads",
    "num_key_value_heads", "head_dim",
    "vocab_size",          "max_position_embeddings",
    "rms_norm_eps",        "rope_theta",
    "rope_scaling",        "rope_parameters",
    "tie_word_embeddings", "bos_token_id",
    "eos_token_id",        "hidden_act",
    "attention_bias",      "mlp_bias",
    "torch_dtype",         "dtype",
    "sliding_window",      "quantization_config",
    "rope_interleaved",    "partial_rotary_factor",
};

void read_family(const JsonObject& json, HfConfig& config) {
    const std::vector<std::string> architectures = json.get_strings("architectures");
    LC_REQUIRE(BadInput, architectures.size() == 1, "{}: key 'architectures' must name one architecture, got {}",
               json.source(), architectures.size());
    config.architecture = architectures[0];
    for (const Unsupported& family : kUnsupported)
        LC_REQUIRE(BadInput, config.architecture != family.architecture,
                   "{}: key 'architectures': {} is not supported: it has {}", json.source(), family.architecture,
                   family.reason);
    const bool llama = config.architecture == "LlamaForCausalLM";
    LC_REQUIRE(BadInput, llama || config.architecture == "MistralForCausalLM",
               "{}: key 'architectures' must be LlamaForCausalLM or MistralForCausalLM, got {}", json.source(),
               printable(config.architecture));
    config.model_type = json.get_string("model_type");
    if (config.model_type != (llama ? "llama" : "mistral"))
        json.fail_key("model_type", llama ? "\"llama\"" : "\"mistral\"");
}

// What would make another model of it.
void refuse_features(const JsonObject& json) {
    if (const auto quantization = json.find_object("quantization_config")) {
        const Json* method = quantization->find("quant_method");
        fail(ErrorKind::BadInput, "{}: key 'quantization_config': quantised weights ({}) are not supported",
             json.source(), method ? describe(*method) : "unnamed");
    }
    for (const char* key : {"attention_bias", "mlp_bias", "rope_interleaved"})
        if (json.find_bool(key).value_or(false)) json.fail_key(key, "false (nothing else is supported)");
    if (json.find_double("partial_rotary_factor", 0, 1).value_or(1) != 1)
        json.fail_key("partial_rotary_factor", "1 (nothing else is supported)");
}

void read_sizes(const JsonObject& json, HfConfig& config) {
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
    if (const auto given = json.find_int("head_dim", 2, 1024)) {
        config.head_dim = *given;
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

// One of the two spellings: a `rope_scaling` or a `rope_parameters` object.
RopeConfig read_rope_object(const JsonObject& json, double theta) {
    RopeConfig rope;
    rope.theta = json.find_double("rope_theta", kLeast, 1e15).value_or(theta);
    const auto type = json.find_string("rope_type"), legacy = json.find_string("type");
    LC_REQUIRE(BadInput, !type || !legacy || *type == *legacy, "{}: keys '{}' and '{}' differ: \"{}\" and \"{}\"",
               json.source(), json.full_key("rope_type"), json.full_key("type"), printable(type.value_or("")),
               printable(legacy.value_or("")));
    const char* key = legacy && !type ? "type" : "rope_type";
    const std::string name = json.get_string(key);
    for (const char* known : {"linear", "dynamic", "yarn", "longrope", "su"})
        LC_REQUIRE(BadInput, name != known, "{}: key '{}': rope type '{}' is not supported", json.source(),
                   json.full_key(key), known);
    if (name != "default" && name != "llama3") json.fail_key(key, "\"default\" or \"llama3\"");
    if (json.find_double("partial_rotary_factor", 0, 1).value_or(1) != 1)
        json.fail_key("partial_rotary_factor", "1 (nothing else is supported)");
    if (name == "default") return rope;
    rope.type = RopeType::llama3;
    rope.factor = json.get_double("factor", 1, 1e6);
    rope.low_freq_factor = json.get_double("low_freq_factor", kLeast, 1e6);
    rope.high_freq_factor = json.get_double("high_freq_factor", kLeast, 1e6);
    if (rope.high_freq_factor <= rope.low_freq_factor)
        json.fail_key("high_freq_factor", fmt::format("above low_freq_factor = {}", rope.low_freq_factor));
    rope.original_max_position_embeddings =
        json.get_int("original_max_position_embeddings", 1, std::numeric_limits<int32_t>::max());
    return rope;
}

void read_rope(const JsonObject& json, HfConfig& config) {
    const auto top = json.find_double("rope_theta", kLeast, 1e15);
    const double theta = top.value_or(RopeConfig{}.theta);
    const auto scaling = json.find_object("rope_scaling"), parameters = json.find_object("rope_parameters");
    RopeConfig older;
    older.theta = theta;
    if (scaling) older = read_rope_object(*scaling, theta);
    config.rope = older;
    if (!parameters) return;
    config.rope = read_rope_object(*parameters, theta);
    config.uses_rope_parameters = true;
    LC_REQUIRE(BadInput, !top || *top == config.rope.theta,
               "{}: keys 'rope_theta' and 'rope_parameters.rope_theta' differ: {} and {}", json.source(), theta,
               config.rope.theta);
    if (scaling && !top) older.theta = config.rope.theta;
    LC_REQUIRE(BadInput, !scaling || older == config.rope, "{}: keys 'rope_scaling' and 'rope_parameters' differ",
               json.source());
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

}  // namespace

HfConfig parse_hf_config(const nlohmann::json& object, const std::string& source) {
    const JsonObject json(object, source);
    HfConfig config;
    read_family(json, config);
    refuse_features(json);
    read_sizes(json, config);
    config.rms_norm_eps = json.get_double("rms_norm_eps", kLeast, 0.1);
    read_rope(json, config);
    config.tie_word_embeddings = json.find_bool("tie_word_embeddings").value_or(false);
    config.bos_token_ids = read_token_ids(json, "bos_token_id", config.vocab_size - 1);
    config.eos_token_ids = read_token_ids(json, "eos_token_id", config.vocab_size - 1);
    config.hidden_act = json.get_string("hidden_act");
    if (config.hidden_act != "silu") json.fail_key("hidden_act", "\"silu\" (nothing else is supported)");
    read_dtype(json, config);
    config.sliding_window = json.find_int("sliding_window", 1, std::numeric_limits<int32_t>::max()).value_or(0);
    list_unused_keys(json);
    return config;
}

HfConfig load_hf_config(const fs::path& path) {
    if (is_gguf(path)) return hf_config_of(GgufFile(path));
    const fs::path file = inside(path, "config.json");
    return parse_hf_config(read_json_file(file), file.string());
}

nlohmann::json HfConfig::to_json() const {
    const auto ids = [](const std::vector<int64_t>& list) {
        return list.empty() ? Json(nullptr) : list.size() == 1 ? Json(list[0]) : Json(list);
    };
    Json rope_object = {{"rope_type", rope.type == RopeType::llama3 ? "llama3" : "default"}};
    if (rope.type == RopeType::llama3) {
        rope_object["factor"] = rope.factor;
        rope_object["low_freq_factor"] = rope.low_freq_factor;
        rope_object["high_freq_factor"] = rope.high_freq_factor;
        rope_object["original_max_position_embeddings"] = rope.original_max_position_embeddings;
    }
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
        {"rms_norm_eps", rms_norm_eps},
        {"tie_word_embeddings", tie_word_embeddings},
        {"bos_token_id", ids(bos_token_ids)},
        {"eos_token_id", ids(eos_token_ids)},
        {"hidden_act", hidden_act},
    };
    if (model_type == "llama") json["attention_bias"] = json["mlp_bias"] = false;
    if (model_type == "mistral") json["sliding_window"] = sliding_window > 0 ? Json(sliding_window) : Json(nullptr);
    if (!torch_dtype.empty()) json[uses_rope_parameters ? "dtype" : "torch_dtype"] = torch_dtype;
    if (uses_rope_parameters) {
        rope_object["rope_theta"] = rope.theta;
        json["rope_parameters"] = rope_object;
    } else {
        json["rope_theta"] = rope.theta;
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
