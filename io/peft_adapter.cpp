#include "io/peft_adapter.h"

#include <algorithm>
#include <cmath>

#include "core/check.h"
#include "io/json.h"
#include "io/safetensors.h"
#include "io/text.h"

namespace lc::io {
namespace {

namespace fs = std::filesystem;

constexpr const char* kConfigFile = "adapter_config.json";
constexpr const char* kWeightsFile = "adapter_model.safetensors";
constexpr const char* kHashKey = "base_model_hash";
constexpr std::string_view kPrefix = "base_model.model.model.";

// What is read below, and what says nothing about the function that the tensors are: provenance, how training began or stored its
// activations, settings of options that are refused where they are on. Any other option, known to us or not, must be off.
constexpr std::string_view kUnderstood[] = {
    "peft_type",
    "task_type",
    "r",
    "lora_alpha",
    "lora_dropout",
    "target_modules",
    "bias",
    "init_lora_weights",
    "auto_mapping",
    "peft_version",
    "base_model_name_or_path",
    "revision",
    "inference_mode",
    "layers_pattern",
    "megatron_core",
    "eva_config",
    "velora_config",
    "qalora_group_size",
    "ensure_weight_tying",
    "merge_weights",
};

bool is_off(const Json& value) {
    if (value.is_boolean()) return !value.get<bool>();
    return value.is_null() || (value.is_structured() && value.empty());
}

void refuse_options(const JsonObject& json) {
    for (const auto& [key, value] : json.json().items())
        LC_REQUIRE(BadInput, std::ranges::count(kUnderstood, key) == 1 || is_off(value),
                   "{}: key '{}': {} is not supported, and to ignore it would load a wrong model", json.source(),
                   printable(key), describe(value));
    if (json.find_string("bias").value_or("none") != "none") json.fail_key("bias", "\"none\"");
    // Other initialisations (PiSSA, OLoRA, LoftQ, CorDA, LoRA-GA) take something from the base weights: the pair alone is not the
    // adapter.
    const Json* init = json.find("init_lora_weights");
    if (init == nullptr || init->is_boolean()) return;
    constexpr std::string_view kHarmless[] = {"gaussian", "eva", "orthogonal", "mica"};
    LC_REQUIRE(BadInput, init->is_string() && std::ranges::count(kHarmless, init->get_ref<const std::string&>()) == 1,
               "{}: key 'init_lora_weights': {} may change the base model and is not supported", json.source(),
               describe(*init));
}

PeftAdapter read_config(const fs::path& path, OpenOptions options) {
    const Json tree = parse_json(read_file(path, JsonLimits{}.max_bytes, options), path.string());
    const JsonObject json(tree, path.string());
    if (json.get_string("peft_type") != "LORA") json.fail_key("peft_type", "\"LORA\"");
    if (json.find_string("task_type").value_or("CAUSAL_LM") != "CAUSAL_LM") json.fail_key("task_type", "\"CAUSAL_LM\"");
    refuse_options(json);
    PeftAdapter adapter;
    adapter.r = json.get_int("r", 1, 65536);
    adapter.alpha = json.get_double("lora_alpha", 0, 1e6);
    adapter.dropout = json.find_double("lora_dropout", 0, 1).value_or(0);
    adapter.target_modules = json.get_strings("target_modules");
    LC_REQUIRE(BadInput, !adapter.target_modules.empty(), "{}: key 'target_modules' is empty", path.string());
    adapter.base_model = json.find_string("base_model_name_or_path").value_or("");
    return adapter;
}

struct TensorRole {
    std::string module;  // "layers.3.self_attn.q_proj"
    bool is_a = false;
};

// "base_model.model.model.layers.3.self_attn.q_proj.lora_A.weight"
TensorRole role_of(const std::string& name, const std::string& source) {
    for (const bool is_a : {true, false}) {
        const std::string_view suffix = is_a ? ".lora_A.weight" : ".lora_B.weight";
        if (name.size() > kPrefix.size() + suffix.size() && name.starts_with(kPrefix) && name.ends_with(suffix))
            return {name.substr(kPrefix.size(), name.size() - kPrefix.size() - suffix.size()), is_a};
    }
    fail(ErrorKind::BadInput, "{}: tensor '{}' must be named {}<module>.lora_A.weight or .lora_B.weight", source,
         printable(name, 200), kPrefix);
}

// A target is the whole module name or its last parts, as in PEFT.
bool is_target(const std::string& module, const std::vector<std::string>& targets) {
    return std::ranges::any_of(
        targets, [&](const std::string& target) { return module == target || module.ends_with("." + target); });
}

void check_shape(const Tensor& tensor, bool is_a, int64_t r, const std::string& name, const std::string& source) {
    const bool fits = tensor.rank() == 2 && tensor.size(is_a ? 0 : 1) == r && tensor.numel() > 0;
    LC_REQUIRE(BadInput, fits, "{}: tensor '{}' must have shape {}, got {}", source, printable(name, 200),
               is_a ? fmt::format("[r = {}, in]", r) : fmt::format("[out, r = {}]", r), tensor.shape());
}

}  // namespace

PeftAdapter read_peft_adapter(const fs::path& directory, OpenOptions options) {
    PeftAdapter adapter = read_config(directory / kConfigFile, options);
    const fs::path weights = directory / kWeightsFile;
    std::error_code ignored;
    if (!fs::exists(weights, ignored) && fs::exists(directory / "adapter_model.bin", ignored))
        fail(ErrorKind::BadInput,
             "{}: holds a pickled adapter_model.bin, which is never opened: convert to safetensors",
             directory.string());
    const SafetensorsFile file(weights, options);
    const std::string source = weights.string();
    LC_REQUIRE(BadInput, !file.tensors().empty(), "{}: holds no tensors", source);
    for (const TensorInfo& info : file.tensors()) {
        const TensorRole role = role_of(info.name, source);
        LC_REQUIRE(BadInput, is_target(role.module, adapter.target_modules),
                   "{}: tensor '{}' is of no module in 'target_modules' of {}", source, printable(info.name, 200),
                   kConfigFile);
        const Tensor tensor = read_finite_f32(file, info.name);
        check_shape(tensor, role.is_a, adapter.r, info.name, source);
        LoraPair& pair = adapter.modules[role.module];
        (role.is_a ? pair.a : pair.b) = tensor;
    }
    for (const auto& [module, pair] : adapter.modules)
        LC_REQUIRE(BadInput, pair.a && pair.b, "{}: module '{}' lacks its lora_{}", source, printable(module),
                   pair.a ? "B" : "A");
    if (const auto hash = file.metadata().find(kHashKey); hash != file.metadata().end())
        adapter.base_hash = hash->second;
    return adapter;
}

void write_peft_adapter(const fs::path& directory, const PeftAdapter& adapter) {
    std::vector<std::pair<std::string, Tensor>> tensors;
    for (const auto& [module, pair] : adapter.modules) {
        LC_CHECK(pair.a && pair.b && pair.a.rank() == 2 && pair.b.rank() == 2 && pair.a.size(0) == adapter.r &&
                     pair.b.size(1) == adapter.r,
                 "adapter: '{}' must be a pair [r,in], [out,r] with r = {}", module, adapter.r);
        LC_CHECK(is_target(module, adapter.target_modules), "adapter: '{}' is in no target module", module);
        tensors.emplace_back(fmt::format("{}{}.lora_A.weight", kPrefix, module), pair.a);
        tensors.emplace_back(fmt::format("{}{}.lora_B.weight", kPrefix, module), pair.b);
    }
    Metadata metadata = {{"format", "pt"}};
    if (!adapter.base_hash.empty()) metadata[kHashKey] = adapter.base_hash;
    const Json config = {
        {"peft_type", "LORA"},
        {"task_type", "CAUSAL_LM"},
        {"r", adapter.r},
        {"lora_alpha", std::nearbyint(adapter.alpha) == adapter.alpha ? Json(static_cast<int64_t>(adapter.alpha))
                                                                      : Json(adapter.alpha)},
        {"lora_dropout", adapter.dropout},
        {"target_modules", adapter.target_modules},
        {"bias", "none"},
        {"base_model_name_or_path", adapter.base_model.empty() ? Json(nullptr) : Json(adapter.base_model)},
        {"inference_mode", true},
        {"fan_in_fan_out", false},
        {"use_rslora", false},
        {"rank_pattern", Json::object()},
        {"alpha_pattern", Json::object()},
    };
    std::error_code error;
    fs::create_directories(directory, error);
    LC_REQUIRE(Resource, !error, "{}: cannot be created: {}", directory.string(), error.message());
    write_safetensors(directory / kWeightsFile, tensors, metadata);
    write_file_atomic(directory / kConfigFile, config.dump(2) + "\n");
}

}  // namespace lc::io
