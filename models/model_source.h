// What a user names with --model and --run: a Hugging Face directory or a GGUF file, or only its shape, filled with random
// weights; a linearized model that was exported as one directory; a run directory on top.
#pragma once
#include <filesystem>
#include <optional>
#include <string>

#include "models/decoder/decoder.h"

namespace lc::models {

struct ModelSource {
    std::filesystem::path directory;      // or GGUF file: config and, unless random_seed is given, weights
    std::optional<uint64_t> random_seed;  // weights drawn on the device: real shapes without real weights
    bool ignore_sliding_window = false;   // softmax attention over all keys, as the authors of LoLCATs ran Mistral
};

// All weights frozen; linearized when the directory is a merged export (models/export.h). Errors as Decoder::load and
// apply_linearized.
Decoder load_model(const ModelSource& source, const LoadOptions& options);

// The same with a run directory on top; an empty path is none. Throws BadInput also when the model is linearized already,
// and as apply_run does.
Decoder load_model(const ModelSource& source, const std::filesystem::path& run, const LoadOptions& options);

// How the model is meant to be run: as it was linearized, or softmax.
AttentionMode mode_of(const Decoder& decoder);

// Identifies the weights: model_hash of the directory, or of config.json and the seed.
std::string hash_of(const ModelSource& source);

}  // namespace lc::models
