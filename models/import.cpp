#include "models/import.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <map>
#include <set>

#include "core/log.h"
#include "io/text.h"
#include "io/torch_checkpoint.h"
#include "models/decoder/config.h"
#include "models/run.h"

namespace lc::models {
namespace {

namespace fs = std::filesystem;

struct Found {
    Tensor tensor;     // f32
    std::string file;  // where it was
};
// By layer and what it is there: "window_factors", "feature_map_q.mlp.layer", "q_proj.lora_A".
using Layers = std::map<int64_t, std::map<std::string, Found>>;

struct Place {
    int64_t layer = 0;
    std::string what;  // empty: a frozen weight
};

// "base_model.model.model.layers.3.self_attn.q_proj.lora_A.default.weight" -> 3, "q_proj.lora_A". nullopt: not theirs.
std::optional<Place> place_of(std::string_view name) {
    constexpr std::string_view kModel = "model.", kLayers = "layers.", kAttention = ".self_attn.";
    if (const size_t model = name.rfind(kModel); model != std::string_view::npos)
        name.remove_prefix(model + kModel.size());
    if (!name.starts_with(kLayers)) return std::nullopt;
    name.remove_prefix(kLayers.size());
    Place place;
    const auto [end, error] = std::from_chars(name.data(), name.data() + name.size(), place.layer);
    if (error != std::errc() || place.layer < 0) return std::nullopt;
    name.remove_prefix(static_cast<size_t>(end - name.data()));
    if (name.ends_with(".base_layer.weight")) return place;
    if (!name.starts_with(kAttention)) return std::nullopt;
    name.remove_prefix(kAttention.size());
    constexpr std::string_view kMaps[] = {"window_factors", "feature_map_q.mlp.layer", "feature_map_q.mlp.bias",
                                          "feature_map_k.mlp.layer", "feature_map_k.mlp.bias"};
    if (name == "window_factor") name = "window_factors";
    if (std::ranges::find(kMaps, name) != std::end(kMaps)) return Place{place.layer, std::string(name)};
    for (const std::string_view projection : kProjectionNames)
        for (const char* half : {"lora_A", "lora_B"}) {
            const std::string pair = fmt::format("{}.{}", projection, half);
            if (name == pair + ".default.weight" || name == pair + ".weight") return Place{place.layer, pair};
        }
    return std::nullopt;
}

Tensor finite_f32(const Tensor& tensor, const std::string& source, const std::string& name) {
    const Tensor wide = tensor.to(DType::f32);
    const std::span values(wide.data<float>(), static_cast<size_t>(wide.numel()));
    const auto bad = std::ranges::find_if_not(values, [](float value) { return std::isfinite(value); });
    LC_REQUIRE(BadInput, bad == values.end(), "{}: tensor '{}' holds {} at element {}", source, io::printable(name),
               *bad, bad - values.begin());
    return wide;
}

int64_t read_file(const fs::path& path, Layers& layers) {
    const std::string source = path.string();
    const io::TorchCheckpoint checkpoint = io::read_torch_checkpoint(path);
    for (const auto& [name, tensor] : checkpoint.tensors) {
        const std::optional<Place> place = place_of(name);
        LC_REQUIRE(BadInput, place.has_value(),
                   "{}: tensor '{}' is no feature map, window factor or LoRA pair of an attention layer", source,
                   io::printable(name));
        if (place->what.empty()) {
            log_debug("{}: tensor '{}' is the base model's; not used", source, io::printable(name));
            continue;
        }
        layers[place->layer][place->what] = {finite_f32(tensor, source, name), source};
    }
    return checkpoint.step.value_or(0);
}

const Found* find(const std::map<std::string, Found>& layer, const std::string& what) {
    const auto position = layer.find(what);
    return position == layer.end() ? nullptr : &position->second;
}

// What the tensors say about the attention, and what the caller does.
AttentionSpec spec_of(const Layers& layers, const DecoderConfig& config, const ImportOptions& options,
                      const std::string& sources) {
    AttentionSpec spec;
    bool maps = false, bias = false, window = false;
    for (int64_t i = 0; i < config.num_layers; ++i) {
        const auto layer = layers.find(i);
        const Found* map = layer == layers.end() ? nullptr : find(layer->second, "feature_map_q.mlp.layer");
        if (map == nullptr) {
            spec.softmax_layers.push_back(i);
            continue;
        }
        bias |= layer->second.contains("feature_map_q.mlp.bias");
        window |= layer->second.contains("window_factors");
        if (std::exchange(maps, true)) continue;
        LC_REQUIRE(BadInput, map->tensor.rank() == 3, "{}: feature_map_q.mlp.layer of layer {} must be [H,D,F], got {}",
                   map->file, i, map->tensor.shape());
        spec.feature_dim = map->tensor.size(2);
        const Found* keys = find(layer->second, "feature_map_k.mlp.layer");
        const bool shared = config.num_kv_heads < config.num_heads;
        if (shared && keys != nullptr && keys->tensor.rank() == 3 && keys->tensor.size(0) == config.num_kv_heads)
            spec.heads = FeatureHeads::kv;
    }
    LC_REQUIRE(BadInput, maps,
               "{}: no feature maps for any of the {} layers — give the checkpoint of the attention transfer too",
               sources, config.num_layers);
    spec.kind = window ? AttentionKind::hybrid : AttentionKind::linear;
    spec.window = options.window, spec.window_size = options.window_size;
    spec.reference = window && options.reference;
    const int64_t features = spec.feature_dim;
    apply_feature_map_name(spec,
                           !options.feature_map.empty() ? options.feature_map
                           : bias                       ? "t2r"
                                                        : "hedgehog",
                           config.head_dim);
    spec.feature_dim = features;
    if (!bias) spec.bias = FeatureBias::none;
    return spec;
}

io::FeatureMapsFile maps_of(const Layers& layers) {
    io::FeatureMapsFile maps;
    for (const auto& [number, tensors] : layers)
        for (const auto& [what, found] : tensors)
            if (!what.ends_with("_proj.lora_A") && !what.ends_with("_proj.lora_B"))
                maps.tensors.emplace_back(fmt::format("model.layers.{}.self_attn.{}", number, what), found.tensor);
    return maps;
}

std::optional<io::PeftAdapter> adapter_of(const Layers& layers, const ImportOptions& options) {
    io::PeftAdapter adapter;
    std::set<std::string> targets;
    for (const auto& [number, tensors] : layers)
        for (const std::string_view projection : kProjectionNames) {
            const std::string name(projection);
            const Found *a = find(tensors, name + ".lora_A"), *b = find(tensors, name + ".lora_B");
            if (a == nullptr && b == nullptr) continue;
            LC_REQUIRE(BadInput, a != nullptr && b != nullptr, "{}: {} of layer {} has only one half of its LoRA pair",
                       (a ? a : b)->file, name, number);
            const bool matrices = a->tensor.rank() == 2 && b->tensor.rank() == 2;
            if (adapter.r == 0 && matrices) adapter.r = a->tensor.size(0);
            LC_REQUIRE(BadInput, matrices && a->tensor.size(0) == adapter.r && b->tensor.size(1) == adapter.r,
                       "{}: LoRA pair of layer {} {} must be [{},In] and [Out,{}], got {} and {}", a->file, number,
                       name, adapter.r, adapter.r, a->tensor.shape(), b->tensor.shape());
            adapter.modules[fmt::format("layers.{}.self_attn.{}", number, name)] = {a->tensor, b->tensor};
            targets.insert(name);
        }
    if (adapter.modules.empty()) return std::nullopt;
    adapter.target_modules.assign(targets.begin(), targets.end());
    adapter.alpha = options.lora_alpha.value_or(2.0 * static_cast<double>(adapter.r));
    return adapter;
}

}  // namespace

ImportReport import_checkpoints(const fs::path& model, std::span<const fs::path> files, const fs::path& run,
                                const ImportOptions& options) {
    LC_REQUIRE(Usage, !files.empty(), "no checkpoint is given");
    LC_REQUIRE(Usage, options.window != kernels::WindowKind::none, "the window must be terraced or sliding");
    const DecoderConfig config = decoder_config_from(io::load_hf_config(model));
    io::AtomicDirectory target(run);
    Layers layers;
    std::vector<std::string> names;
    int64_t step = 0;
    for (const fs::path& file : files) {
        step = std::max(step, read_file(file, layers));
        names.push_back(file.string());
    }
    const std::string sources = fmt::format("{}", fmt::join(names, ", "));
    for (const auto& [number, tensors] : layers)
        LC_REQUIRE(BadInput, number < config.num_layers, "{}: has layer {}, the model has layers 0 to {}",
                   tensors.begin()->second.file, number, config.num_layers - 1);
    ImportReport report{.attention = spec_of(layers, config, options, sources)};
    RunFiles parts{.maps = maps_of(layers),
                   .adapter = adapter_of(layers, options),
                   .maps_source = sources,
                   .adapter_source = sources};
    parts.maps->attention = report.attention.to_json().dump();
    parts.maps->step = step;
    check_run(config, parts);

    parts.maps->base_model = model.string(), parts.maps->base_hash = model_hash(model);
    io::write_feature_maps(target.path() / io::kFeatureMapsName, *parts.maps);
    if (parts.adapter) {
        parts.adapter->base_model = parts.maps->base_model, parts.adapter->base_hash = parts.maps->base_hash;
        io::write_peft_adapter(target.path(), *parts.adapter);
        report.lora_rank = parts.adapter->r;
    }
    target.commit();
    report.layers = config.num_layers - static_cast<int64_t>(report.attention.softmax_layers.size());
    return report;
}

}  // namespace lc::models
