// feature_maps.safetensors: what stage 1 learned, with the description needed to run it. The tensors are named as in
// the LoLCATs authors' checkpoints (model.layers.3.self_attn.feature_map_q.mlp.layer, ...window_factors); this room
// only carries them, and the attention description as JSON text. Metadata (all strings):
//
//   format           "lolcats"
//   version          "1"
//   attention        a JSON object
//   base_model       name or path of the base model, for people
//   base_model_hash  of its weights
//   step             optimizer steps taken
//   validation_loss  of these weights; absent when not measured
#pragma once
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "core/tensor.h"
#include "io/file.h"

namespace lc::io {

struct FeatureMapsFile {
    std::vector<std::pair<std::string, Tensor>> tensors;  // read: sorted by name
    std::string attention;                                // text of a JSON object
    std::string base_model, base_hash;
    int64_t step = 0;
    std::optional<double> validation_loss;
};

inline constexpr const char* kFeatureMapsName = "feature_maps.safetensors";

// `path`: the file, or the directory that holds it under its usual name. Tensors come as f32. Throws BadInput: not such
// a file, a version we do not know, missing or malformed metadata, no tensors, non-finite values.
FeatureMapsFile read_feature_maps(const std::filesystem::path& path, OpenOptions options = {});

// Atomic. Tensors are written as f32, in the order given. Throws Internal for an `attention` that is no JSON object.
void write_feature_maps(const std::filesystem::path& path, const FeatureMapsFile& maps);

}  // namespace lc::io
