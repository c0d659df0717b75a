// Which weights made something: recorded beside results that only the same weights can go on from.
#pragma once
#include <filesystem>
#include <string>

#include "models/model_source.h"

namespace lc::models {

struct ModelIdentity {
    std::string model_hash;  // hash_of(source)
    std::string run_hash;    // of the run's feature maps and adapter; empty without a run
    bool operator==(const ModelIdentity&) const = default;
};

// Reads all weights once. Errors as hash_of.
ModelIdentity identify(const ModelSource& source, const std::filesystem::path& run);

}  // namespace lc::models
