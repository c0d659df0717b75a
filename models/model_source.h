// What a user names with --model: a Hugging Face directory, or only its shape, filled with random weights.
#pragma once
#include <filesystem>
#include <optional>
#include <string>

#include "models/decoder/decoder.h"

namespace lc::models {

struct ModelSource {
    std::filesystem::path directory;      // of config.json and, unless random_seed is given, the weights
    std::optional<uint64_t> random_seed;  // weights drawn on the device: real shapes without real weights
};

// All weights frozen. Errors as Decoder::load.
Decoder load_model(const ModelSource& source, const LoadOptions& options);

// Identifies the weights: model_hash of the directory, or of config.json and the seed.
std::string hash_of(const ModelSource& source);

}  // namespace lc::models
