#include "io/hf_family.h"

#include <algorithm>
#include <array>
#include <limits>
#include <optional>

#include "core/check.h"
#include "io/hf_config.h"
#include "io/json.h"
#include "io/text.h"

namespace lc::io {
namespace {

constexpr BlockConfig kQwen2{.qkv_bias = true};
constexpr BlockConfig kQwen3{.qk_norm = true};
constexpr BlockConfig kPhi{.norm = NormKind::layer,
                           .activation = Activation::gelu_tanh,
                           .gated = false,
                           .parallel = true,
                           .qkv_bias = true,
                           .o_bias = true,
                           .mlp_bias = true,
                           .head_bias = true,
                           .phi_names = true,
                           .rotary_fraction = 0.5};
constexpr BlockConfig kGemma{.norm_offset = 1, .activation = Activation::gelu_tanh, .scaled_embedding = true};

constexpr const char *kRmsEps = "rms_norm_eps", *kLayerEps = "layer_norm_eps";
constexpr HfFamily kFamilies[] = {
    {"LlamaForCausalLM", "llama", {}, false, true, true, kRmsEps, 0},
    {"MistralForCausalLM", "mistral", {}, false, false, false, kRmsEps, 0},
    {"Qwen2ForCausalLM", "qwen2", kQwen2, false, false, false, kRmsEps, 0},
    {"Qwen3ForCausalLM", "qwen3", kQwen3, false, true, false, kRmsEps, 128},
    {"PhiForCausalLM", "phi", kPhi, false, false, false, kLayerEps, 0},
    {"GemmaForCausalLM", "gemma", kGemma, true, true, false, kRmsEps, 256},
};

// Families that people will try, and what in them we do not compute.
struct Unsupported {
    const char* architecture;
    const char* reason;
};
constexpr Unsupported kUnsupported[] = {
    {"Phi3ForCausalLM", "fused projections and longrope"},
    {"Gemma2ForCausalLM", "soft-capped logits and post-norms"},
    {"Gemma3ForCausalLM", "post-norms and two rotary bases"},
    {"Gemma3ForConditionalGeneration", "images, post-norms and two rotary bases"},
    {"MixtralForCausalLM", "mixtures of experts"},
    {"Qwen2MoeForCausalLM", "mixtures of experts"},
    {"Qwen3MoeForCausalLM", "mixtures of experts"},
    {"DeepseekV3ForCausalLM", "latent attention and mixtures of experts"},
    {"SmolLM3ForCausalLM", "layers without positions"},
    {"Llama4ForConditionalGeneration", "images, mixtures of experts and layers without positions"},
    {"GPT2LMHeadModel", "learned positions and layer norms"},
    {"GPTNeoXForCausalLM", "fused projections"},
    {"FalconForCausalLM", "fused projections"},
};

constexpr int64_t kMost = std::numeric_limits<int32_t>::max();

std::string known_names() {
    std::string names;
    for (const HfFamily& family : kFamilies) names += (names.empty() ? "" : ", ") + std::string(family.architecture);
    return names;
}

Activation read_activation(const JsonObject& json, const BlockConfig& block) {
    // The first Gemma configs say "gelu" where the tanh form is meant, some of them beside `hidden_activation`.
    const bool legacy = block.norm_offset != 0;
    const char* key = legacy && json.has("hidden_activation") ? "hidden_activation" : "hidden_act";
    const std::string name = json.get_string(key);
    if (block.activation == Activation::silu) {
        if (name != "silu") json.fail_key(key, "\"silu\" (nothing else is supported)");
        return Activation::silu;
    }
    constexpr std::array known = {"gelu_new", "gelu_pytorch_tanh", "gelu_fast"};  // one formula
    const bool tanh = std::ranges::find(known, name) != known.end() || (legacy && name == "gelu");
    if (!tanh) json.fail_key(key, "\"gelu_new\", \"gelu_pytorch_tanh\" or \"gelu_fast\" (nothing else is supported)");
    return Activation::gelu_tanh;
}

// At the top level or in a rope object; families that rotate whole heads refuse any other fraction. Where transformers 5 writes
// `rope_parameters` it may leave a default of its own at the top level, which it does not read itself.
double read_rotary_fraction(const JsonObject& json, double of_family) {
    constexpr const char* kKey = "partial_rotary_factor";
    const auto in = [&](const std::optional<JsonObject>& object) {
        const auto here = object ? object->find_double(kKey, 0, 1) : std::nullopt;
        if (here && of_family == 1 && *here != 1) object->fail_key(kKey, "1 (nothing else is supported)");
        return here;
    };
    const auto top = in(json), scaling = in(json.find_object("rope_scaling")),
               parameters = in(json.find_object("rope_parameters"));
    if (parameters) return *parameters;
    if (top && scaling && *top != *scaling) json.fail_key(kKey, fmt::format("as in rope_scaling, {}", *scaling));
    return top.value_or(scaling.value_or(of_family));
}

}  // namespace

const HfFamily& family_of(const JsonObject& json) {
    const std::vector<std::string> architectures = json.get_strings("architectures");
    LC_REQUIRE(BadInput, architectures.size() == 1, "{}: key 'architectures' must name one architecture, got {}",
               json.source(), architectures.size());
    for (const Unsupported& family : kUnsupported)
        LC_REQUIRE(BadInput, architectures[0] != family.architecture,
                   "{}: key 'architectures': {} is not supported: it has {}", json.source(), family.architecture,
                   family.reason);
    for (const HfFamily& family : kFamilies) {
        if (architectures[0] != family.architecture) continue;
        if (json.get_string("model_type") != family.model_type)
            json.fail_key("model_type", fmt::format("\"{}\"", family.model_type));
        return family;
    }
    fail(ErrorKind::BadInput, "{}: key 'architectures' must be one of {}, got {}", json.source(), known_names(),
         printable(architectures[0]));
}

const HfFamily& family_named(const std::string& architecture) {
    for (const HfFamily& family : kFamilies)
        if (architecture == family.architecture) return family;
    fail(ErrorKind::Internal, "config: unknown architecture {}", architecture);
}

BlockConfig read_block(const JsonObject& json, const HfFamily& family) {
    BlockConfig block = family.block;
    block.activation = read_activation(json, block);
    if (json.find_bool("attention_bias").value_or(false)) {
        if (!family.may_bias_attention) json.fail_key("attention_bias", "false (nothing else is supported)");
        block.qkv_bias = block.o_bias = true;
    }
    if (json.find_bool("mlp_bias").value_or(false)) {
        if (!family.may_bias_mlp) json.fail_key("mlp_bias", "false (nothing else is supported)");
        block.mlp_bias = true;
    }
    for (const char* key : {"rope_interleaved", "qk_layernorm", "use_bidirectional_attention", "use_mrope"})
        if (json.find_bool(key).value_or(false)) json.fail_key(key, "false (nothing else is supported)");
    block.rotary_fraction = read_rotary_fraction(json, block.rotary_fraction);
    return block;
}

void read_window(const JsonObject& json, const HfFamily& family, HfConfig& config) {
    const std::string_view type = family.model_type;
    const bool qwen = type.starts_with("qwen");
    if (type != "mistral" && !qwen) return;
    const auto window = json.find_int("sliding_window", 1, kMost);
    if (!window || (qwen && !json.find_bool("use_sliding_window").value_or(false))) return;
    const auto layers = static_cast<size_t>(config.num_hidden_layers);
    config.window_layers.assign(layers, !qwen);
    if (const auto types = qwen ? json.find_strings("layer_types") : std::nullopt) {
        LC_REQUIRE(BadInput, types->size() == layers, "{}: key 'layer_types' must name {} layers, got {}",
                   json.source(), layers, types->size());
        for (size_t i = 0; i < layers; ++i) {
            const bool sliding = (*types)[i] == "sliding_attention";
            LC_REQUIRE(BadInput, sliding || (*types)[i] == "full_attention",
                       "{}: key 'layer_types' must hold full_attention or sliding_attention, got \"{}\"", json.source(),
                       printable((*types)[i]));
            config.window_layers[i] = sliding;
        }
    } else if (qwen) {
        const int64_t first = json.find_int("max_window_layers", 0, kMost).value_or(28);
        for (int64_t i = first; i < config.num_hidden_layers; ++i) config.window_layers[static_cast<size_t>(i)] = true;
    }
    const bool any = std::ranges::find(config.window_layers, true) != config.window_layers.end();
    if (any) config.sliding_window = *window;
    if (!any) config.window_layers.clear();
}

}  // namespace lc::io
