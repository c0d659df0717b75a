#include "models/run.h"

#include <map>
#include <set>

#include "core/parallel.h"
#include "io/file.h"
#include "io/gguf.h"
#include "io/json.h"
#include "io/safetensors_model.h"
#include "io/safetensors_writer.h"

namespace lc::models {
namespace {

constexpr const char* kAdapterConfig = "adapter_config.json";

void require_base(const std::string& recorded, const std::string& base_hash, const std::filesystem::path& path) {
    LC_REQUIRE(BadInput, recorded.empty() || base_hash.empty() || recorded == base_hash,
               "{}: made for another base model (its hash is {}, this model's is {}) — use the model it was trained on",
               path.string(), recorded, base_hash);
}

// The shape that a parameter has in the authors' files: window factors [1,H,1,1], biases [1,H,1,1] or [1,H,1,F].
Shape file_shape(const NamedTensor& parameter) {
    const Shape& shape = parameter.tensor.shape();
    if (shape.rank() == 3) return shape;
    return {1, shape[0], 1, shape.rank() == 2 ? shape[1] : 1};
}

// "model.layers.12.self_attn..." or "layers.12.self_attn...": 12. The layer decides whether a name is ours to know.
int64_t layer_of(std::string_view name) {
    const size_t start = name.find("layers.");
    if (start == std::string_view::npos) return -1;
    int64_t layer = 0;
    size_t i = start + 7, digits = 0;
    for (; i < name.size() && name[i] >= '0' && name[i] <= '9' && digits < 9; ++i, ++digits)
        layer = 10 * layer + (name[i] - '0');
    return digits > 0 && i < name.size() && name[i] == '.' ? layer : -1;
}

bool outside(const Decoder& decoder, std::string_view name) {
    const int64_t layer = layer_of(name);
    return layer >= 0 && layer < decoder.config().num_layers &&
           (layer < decoder.first_layer() || layer >= decoder.first_layer() + decoder.num_layers());
}

// Copies every tensor of `file` into the parameter of its name; both sides must have the same names.
void copy_all(const Decoder& decoder, const std::vector<NamedTensor>& parameters,
              const std::map<std::string, Tensor>& file, const std::string& source,
              Shape (*shape_in_file)(const NamedTensor&)) {
    std::set<std::string> known;
    for (const NamedTensor& parameter : parameters) {
        known.insert(parameter.name);
        const auto found = file.find(parameter.name);
        LC_REQUIRE(BadInput, found != file.end(), "{}: tensor '{}' is missing", source, parameter.name);
        const Shape wanted = shape_in_file(parameter);
        LC_REQUIRE(BadInput, found->second.shape() == wanted, "{}: tensor '{}' must be {} for this model, got {}",
                   source, parameter.name, wanted, found->second.shape());
        Tensor target = parameter.tensor;
        target.copy_from(found->second.reshaped(target.shape()));
    }
    for (const auto& [name, tensor] : file)
        LC_REQUIRE(BadInput, known.contains(name) || outside(decoder, name), "{}: tensor '{}' does not fit this model",
                   source, name);
}

void apply_feature_maps(Decoder& decoder, const io::FeatureMapsFile& file, const std::string& file_name) {
    const std::string source = file_name + " (attention)";
    const AttentionSpec spec = AttentionSpec::from_json(io::parse_json(file.attention, source), source);
    validate(spec, decoder.config().head_dim, decoder.config().num_layers, ErrorKind::BadInput, source);
    decoder.linearize(spec, 0);
    copy_all(decoder, decoder.feature_map_parameters(), {file.tensors.begin(), file.tensors.end()}, file_name,
             file_shape);
}

void apply_adapter(Decoder& decoder, const io::PeftAdapter& adapter, const std::string& source) {
    std::vector<std::string> known;
    for (const std::string_view name : kProjectionNames) known.push_back(file_name_of(decoder.config(), name));
    for (const std::string& target : adapter.target_modules)
        LC_REQUIRE(BadInput, std::ranges::count(known, target) == 1,
                   "{}: its target_modules names '{}'; only {} are adapted here", source, target,
                   fmt::join(known, ", "));
    LC_REQUIRE(BadInput, !adapter.target_modules.empty(), "{}: its target_modules is empty", source);
    decoder.add_lora({.rank = adapter.r, .alpha = adapter.alpha, .targets = adapter.target_modules}, 0);
    std::map<std::string, Tensor> tensors;
    for (const auto& [module, pair] : adapter.modules) {
        tensors["base_model.model.model." + module + ".lora_A.weight"] = pair.a;
        tensors["base_model.model.model." + module + ".lora_B.weight"] = pair.b;
    }
    copy_all(decoder, decoder.lora_parameters(), tensors, source,
             [](const NamedTensor& parameter) { return parameter.tensor.shape(); });
}

void require_whole(const Decoder& decoder, std::string_view what) {
    LC_CHECK(decoder.num_layers() == decoder.config().num_layers, "{}: needs all {} layers, this decoder holds {}",
             what, decoder.config().num_layers, decoder.num_layers());
}

}  // namespace

RunFiles read_run(const std::filesystem::path& run, const std::string& base_hash) {
    LC_REQUIRE(BadInput, std::filesystem::is_directory(run), "{}: no such run directory", run.string());
    RunFiles files;
    const bool adapter = std::filesystem::exists(run / kAdapterConfig);
    const std::filesystem::path maps = run / io::kFeatureMapsName;
    if (!adapter || std::filesystem::exists(maps)) {
        files.maps_source = maps.string();
        files.maps = io::read_feature_maps(maps);
        require_base(files.maps->base_hash, base_hash, maps);
    }
    if (adapter) {
        files.adapter_source = (run / "adapter_model.safetensors").string();
        files.adapter = io::read_peft_adapter(run);
        require_base(files.adapter->base_hash, base_hash, run / kAdapterConfig);
    }
    return files;
}

void apply_run(Decoder& decoder, const RunFiles& run) {
    Decoder changed = decoder;  // handles; the base weights are shared and not written
    if (run.maps) apply_feature_maps(changed, *run.maps, run.maps_source);
    if (run.adapter) apply_adapter(changed, *run.adapter, run.adapter_source);
    decoder = std::move(changed);
}

void apply_run(Decoder& decoder, const std::filesystem::path& run, const std::string& base_hash) {
    apply_run(decoder, read_run(run, base_hash));
}

void check_run(const DecoderConfig& config, const RunFiles& run) {
    for (int64_t layer = 0; layer < config.num_layers; ++layer) {
        Decoder part = Decoder::unfilled(config, {layer, layer + 1});
        apply_run(part, run);
    }
}

void save_feature_maps(const Decoder& decoder, const std::filesystem::path& run, const RunInfo& info) {
    require_whole(decoder, "save_feature_maps");
    LC_CHECK(decoder.attention().has_value(), "save_feature_maps: the decoder is not linearized");
    io::FeatureMapsFile file{.tensors = {},
                             .attention = decoder.attention()->to_json().dump(),
                             .base_model = info.base_model,
                             .base_hash = info.base_hash,
                             .step = info.step,
                             .validation_loss = info.validation_loss};
    for (const NamedTensor& parameter : decoder.feature_map_parameters())
        file.tensors.emplace_back(parameter.name, parameter.tensor.detach().reshaped(file_shape(parameter)));
    io::write_feature_maps(run / io::kFeatureMapsName, file);
}

void save_adapter(const Decoder& decoder, const std::filesystem::path& run, const RunInfo& info) {
    require_whole(decoder, "save_adapter");
    LC_CHECK(decoder.lora().has_value(), "save_adapter: the decoder has no LoRA pairs");
    io::PeftAdapter adapter{.r = decoder.lora()->rank,
                            .alpha = decoder.lora()->alpha,
                            .dropout = 0,
                            .target_modules = {},
                            .base_model = info.base_model,
                            .base_hash = info.base_hash,
                            .modules = {}};
    for (const std::string& target : decoder.lora()->targets)
        adapter.target_modules.push_back(file_name_of(decoder.config(), target));
    for (int64_t i = 0; i < decoder.num_layers(); ++i) {
        DecoderLayer layer = decoder.layer(i);
        for (const std::string_view name : kProjectionNames) {
            const Projection& projection = *find_projection(layer, name);
            if (!projection.lora_a.defined()) continue;
            adapter.modules[fmt::format("layers.{}.self_attn.{}", i, file_name_of(decoder.config(), name))] = {
                projection.lora_a.to(DType::f32).detach(), projection.lora_b.to(DType::f32).detach()};
        }
    }
    io::write_peft_adapter(run, adapter);
}

void save_base(const Decoder& decoder, const std::filesystem::path& directory, DType dtype, int64_t shard_bytes) {
    require_whole(decoder, "save_base");
    const std::vector<NamedTensor> weights = decoder.base_parameters();
    std::vector<io::TensorPlan> plan;
    for (const NamedTensor& weight : weights) plan.push_back({weight.name, dtype, weight.tensor.shape()});
    io::SafetensorsModelWriter writer(directory, std::move(plan), shard_bytes);
    for (const NamedTensor& weight : weights) writer.write(weight.name, weight.tensor.detach().to(dtype));
    io::write_file_atomic(directory / "config.json", hf_config_from(decoder.config(), dtype).to_json().dump(2) + "\n");
    writer.commit();
}

std::string model_hash(const std::filesystem::path& directory) {
    if (io::is_gguf(directory)) return io::xxh3_128_hex_of_file(directory);
    std::string hashes = io::xxh3_128_hex_of_file(directory / "config.json") + "\n";
    const io::SafetensorsModel model(directory);
    const std::vector<io::SafetensorsFile>& files = model.files();
    std::vector<std::string> of_file(files.size());
    parallel_for(std::ssize(files), 1, [&](int64_t begin, int64_t end) {
        for (auto i = static_cast<size_t>(begin); i < static_cast<size_t>(end); ++i)
            of_file[i] = io::xxh3_128_hex_of_file(files[i].path());
    });
    for (const std::string& hash : of_file) hashes += hash + "\n";
    return io::xxh3_128_hex(hashes);
}

}  // namespace lc::models
