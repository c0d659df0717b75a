// A run directory as other programs read it: feature_maps.safetensors + PEFT adapter, made for a base model. A run with
// softmax attention (the control of experiments) has the adapter only.
#pragma once
#include <filesystem>
#include <optional>
#include <string>

#include "io/feature_maps.h"
#include "io/peft_adapter.h"
#include "models/decoder/decoder.h"

namespace lc::models {

// What a run directory holds: feature maps, an adapter, or both.
struct RunFiles {
    std::optional<io::FeatureMapsFile> maps;
    std::optional<io::PeftAdapter> adapter;
    std::string maps_source, adapter_source;  // files to name in errors
};
// Throws BadInput when there is neither, for malformed files, and when the run was made for another base (`base_hash` is
// not the recorded one; an empty hash on either side is not compared).
RunFiles read_run(const std::filesystem::path& run, const std::string& base_hash);

// Adds the run to a loaded base model, which may be a part of it (LayerRange). Throws BadInput when a name or shape does
// not fit: missing layers, extra ones, other sizes. The decoder is then as it was before.
void apply_run(Decoder& decoder, const RunFiles& run);
// Both at once.
void apply_run(Decoder& decoder, const std::filesystem::path& run, const std::string& base_hash);
// Throws what apply_run would throw for a model of this shape; reads no weights.
void check_run(const DecoderConfig& config, const RunFiles& run);

// Writes feature_maps.safetensors / the adapter files of a linearized decoder that holds all its layers, atomically.
struct RunInfo {
    std::string base_model, base_hash;
    int64_t step = 0;
    std::optional<double> validation_loss;
};
void save_feature_maps(const Decoder& decoder, const std::filesystem::path& run, const RunInfo& info);
void save_adapter(const Decoder& decoder, const std::filesystem::path& run, const RunInfo& info);

// The base weights in Hugging Face layout (config.json, model.safetensors; above `shard_bytes` numbered shards and an
// index, written last), in bf16, f16, f32 or f64. LoRA pairs are not part of it: merge them first. The directory must exist; to
// have it appear complete or not at all, write into an io::AtomicDirectory.
void save_base(const Decoder& decoder, const std::filesystem::path& directory, DType dtype,
               int64_t shard_bytes = int64_t{5} << 30);

// XXH3-128 of the XXH3-128 of config.json and of every weight file, as hex; of a GGUF file its own. Reads all weights once.
std::string model_hash(const std::filesystem::path& directory);

}  // namespace lc::models
