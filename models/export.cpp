#include "models/export.h"

#include <algorithm>
#include <array>
#include <set>

#include "io/feature_maps.h"
#include "io/gguf.h"
#include "io/hf_config.h"
#include "io/json.h"
#include "io/safetensors_model.h"
#include "io/safetensors_writer.h"
#include "io/text.h"
#include "models/run.h"

namespace lc::models {
namespace {

namespace fs = std::filesystem;

constexpr const char* kSection = "lolcats";
constexpr int64_t kVersion = 1;
constexpr int64_t kMaxSideFile = int64_t{256} << 20;

// What belongs to a model beside its weights: tokenizer, chat template, sampling defaults, and the licence, which wants to
// travel with it.
constexpr const char* kSideFiles[] = {
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "LICENSE",
    "LICENSE.txt",
    "LICENSE.md",
    "USE_POLICY.md",
    "NOTICE",
    "NOTICE.txt",
};

std::string_view hf_name_of(DType dtype) {
    if (dtype == DType::f64) return "float64";
    if (dtype == DType::f32) return "float32";
    if (dtype == DType::bf16) return "bfloat16";
    LC_CHECK(dtype == DType::f16, "weights cannot be {}", name_of(dtype));
    return "float16";
}

io::Json section_of(const io::FeatureMapsFile& maps) {
    return {{"version", kVersion},
            {"attention", io::Json::parse(maps.attention)},
            {"feature_maps", io::kFeatureMapsName},
            {"base_model", maps.base_model},
            {"base_model_hash", maps.base_hash},
            {"step", maps.step}};
}

// config.json as it came, in its own spelling, with what this export changes.
void write_config(const fs::path& model, const fs::path& out, const RunFiles& run, std::optional<DType> dtype) {
    io::Json config = io::read_json_file(model / "config.json");
    if (dtype) {
        for (const char* key : {"torch_dtype", "dtype"})
            if (config.contains(key)) config[key] = hf_name_of(*dtype);
        if (!config.contains("torch_dtype") && !config.contains("dtype")) config["torch_dtype"] = hf_name_of(*dtype);
    }
    if (run.maps) config[kSection] = section_of(*run.maps);
    io::write_file_atomic(out / "config.json", config.dump(2) + "\n");
}

void copy_side_files(const fs::path& model, const fs::path& out, const io::OpenOptions& options) {
    for (const char* name : kSideFiles)
        if (std::error_code ignored; fs::exists(fs::symlink_status(model / name, ignored)))
            io::write_file_atomic(out / name, io::read_file(model / name, kMaxSideFile, options));
}

// The maps belong to the merged weights now, not to the base model whose hash they name.
void write_maps(const fs::path& out, io::FeatureMapsFile maps) {
    maps.base_hash.clear();
    io::write_feature_maps(out / io::kFeatureMapsName, maps);
}

std::vector<io::TensorPlan> plan_of(const io::SafetensorsModel& files, const DecoderConfig& config,
                                    std::optional<DType> dtype) {
    std::vector<io::TensorPlan> plan;
    for (const auto& [name, shape] : Decoder::base_weights(config))
        plan.push_back(
            {name, dtype ? *dtype : io::tensor_dtype(files.info(name), files.file_of(name).path().string()), shape});
    return plan;
}

int64_t count_pairs(const Decoder& decoder) {
    return static_cast<int64_t>(decoder.lora_parameters().size()) / 2;
}

// Layer by layer: load, adapt, merge, write.
int64_t write_weights(const io::SafetensorsModel& files, DecoderConfig config, const RunFiles& run,
                      const std::vector<io::TensorPlan>& plan, io::SafetensorsModelWriter& writer) {
    config.max_positions = 1;  // nothing is computed with the rotary table, which would be made for every layer
    const bool wide =
        std::any_of(plan.begin(), plan.end(), [](const io::TensorPlan& t) { return t.dtype == DType::f64; });
    std::map<std::string_view, DType> dtypes;
    for (const io::TensorPlan& tensor : plan) dtypes[tensor.name] = tensor.dtype;
    std::set<std::string> written;  // a tied embedding comes with the first layer and with the last
    int64_t merged = 0;
    for (int64_t layer = 0; layer < config.num_layers; ++layer) {
        Decoder part = Decoder::load(
            files, config, {.placement = {.dtype = wide ? DType::f64 : DType::f32}, .layers = {layer, layer + 1}});
        apply_run(part, run);
        merged += count_pairs(part);
        part.merge_lora();
        for (const NamedTensor& weight : part.base_parameters())
            if (written.insert(weight.name).second)
                writer.write(weight.name, weight.tensor.detach().to(dtypes.at(weight.name)));
    }
    writer.commit();
    return merged;
}

}  // namespace

ExportReport export_merged(const fs::path& model, const fs::path& run_directory, const fs::path& out,
                           const ExportOptions& options) {
    LC_REQUIRE(Usage, options.shard_bytes >= 1, "the shard size must be at least 1 byte, got {}", options.shard_bytes);
    LC_REQUIRE(BadInput, !io::is_gguf(model), "{}: only a Hugging Face directory can be exported, not a GGUF file",
               model.string());
    const DecoderConfig config = decoder_config_from(io::load_hf_config(model));
    LC_REQUIRE(BadInput, !linearized_info(model), "{}: is a merged export already (key '{}')",
               (model / "config.json").string(), kSection);
    const io::OpenOptions open{.follow_symlinks = options.follow_symlinks};
    const io::SafetensorsModel files(model, open);
    io::AtomicDirectory target(out);  // like everything that can be refused, before gigabytes are read
    const RunFiles run = read_run(run_directory, model_hash(model));
    check_run(config, run);
    const std::vector<io::TensorPlan> plan = plan_of(files, config, options.dtype);
    io::SafetensorsModelWriter writer(target.path(), plan, options.shard_bytes);
    ExportReport report{.weight_files = writer.num_files(),
                        .weight_bytes = writer.total_bytes(),
                        .merged = write_weights(files, config, run, plan, writer),
                        .feature_maps = run.maps.has_value()};
    if (run.maps) write_maps(target.path(), *run.maps);
    copy_side_files(model, target.path(), open);
    write_config(model, target.path(), run, options.dtype);
    target.commit();
    return report;
}

std::optional<LinearizedInfo> linearized_info(const fs::path& model) {
    if (io::is_gguf(model)) return std::nullopt;
    const std::string source = io::config_file_of(model).string();
    const io::Json config = io::read_json_file(source);
    const auto section = io::JsonObject(config, source).find_object(kSection);
    if (!section) return std::nullopt;
    LC_REQUIRE(BadInput, section->get_int("version", 0, 1 << 30) == kVersion,
               "{}: key 'lolcats.version' must be {}, got {}", source, kVersion, io::describe(section->get("version")));
    const std::string name = section->get_string("feature_maps");
    LC_REQUIRE(BadInput, name == io::kFeatureMapsName, "{}: key 'lolcats.feature_maps' must be \"{}\", got \"{}\"",
               source, io::kFeatureMapsName, io::printable(name));
    const io::JsonObject attention = section->get_object("attention");
    return LinearizedInfo{.attention = AttentionSpec::from_json(attention.json(), source + " (lolcats.attention)"),
                          .feature_maps = model / name};
}

void apply_linearized(Decoder& decoder, const LinearizedInfo& info) {
    const RunFiles run{.maps = io::read_feature_maps(info.feature_maps),
                       .adapter = {},
                       .maps_source = info.feature_maps.string(),
                       .adapter_source = {}};
    const std::string source = run.maps_source + " (attention)";
    const AttentionSpec spec = AttentionSpec::from_json(io::parse_json(run.maps->attention, source), source);
    LC_REQUIRE(BadInput, spec == info.attention, "{}: must be config.json's 'lolcats.attention' {}, got {}", source,
               info.attention.to_json().dump(), spec.to_json().dump());
    apply_run(decoder, run);
}

}  // namespace lc::models
