// A linearized model as one Hugging Face directory: LoRA merged into the weights, feature maps beside them.
//
//   config.json               the base model's, and an object `lolcats`:
//                               version            1
//                               attention          what the maps are for (AttentionSpec)
//                               feature_maps       the name of their file in this directory
//                               base_model, base_model_hash, step   where they come from, for people
//   model*.safetensors        the weights, W + (alpha / r) B A where there was a pair; shards and index as they are needed
//   feature_maps.safetensors  as in a run directory (io/feature_maps.h)
//   tokenizer.json, ...       copied, and licences with them
//
// Programs that know nothing of `lolcats` load it as the softmax model that it was made from, LoRA merged.
// A run without feature maps (the softmax control) becomes an ordinary directory without `lolcats`.
#pragma once
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>

#include "models/decoder/decoder.h"

namespace lc::models {

struct ExportOptions {
    std::optional<DType> dtype;  // of the weights written: f64, f32, bf16 or f16; nothing: each as it was
    int64_t shard_bytes = 5'000'000'000;
    bool follow_symlinks = true;  // among the base model's files
};

struct ExportReport {
    size_t weight_files = 0;
    int64_t weight_bytes = 0;
    int64_t merged = 0;  // projections that had a LoRA pair
    bool feature_maps = false;
};

// Writes directory `out`, which appears complete or not at all. Works on one layer at a time, on the CPU, in f32 (f64 where
// weights are f64), so that models larger than memory can be merged. Throws BadInput as Decoder::load and apply_run do,
// and when `model` is itself such a directory; Usage when `out` exists or shard_bytes < 1; Resource when the disk fails.
ExportReport export_merged(const std::filesystem::path& model, const std::filesystem::path& run,
                           const std::filesystem::path& out, const ExportOptions& options = {});

// The `lolcats` object of a model directory; nothing when config.json has none. Throws BadInput for an unknown version
// or a malformed object.
struct LinearizedInfo {
    AttentionSpec attention;
    std::filesystem::path feature_maps;
};
std::optional<LinearizedInfo> linearized_info(const std::filesystem::path& model);

// Adds the maps of an exported directory to its decoder (or a part of it). Throws BadInput when they do not fit it or the
// `lolcats` object.
void apply_linearized(Decoder& decoder, const LinearizedInfo& info);

}  // namespace lc::models
