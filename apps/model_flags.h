// Options of every program that computes with a model: which one, where, in what precision.
#pragma once
#include <CLI/CLI.hpp>
#include <optional>
#include <string>

#include "models/model_source.h"
#include "models/placement.h"

namespace lc::apps {

struct PlacementFlags {
    std::string device = "auto", dtype = "auto";
    void add(CLI::App& verb);
    // Asks the machine. Errors as models::placement_from.
    models::Placement placement() const { return models::placement_from(device, dtype); }
    // For --dry-run: the device need not be there.
    models::Placement planned() const { return models::planned_placement(device, dtype); }
};

// --weights-dtype of programs that only read weights: auto (as --dtype says), int8 or fp8.
struct WeightFlags {
    std::string dtype = "auto";
    void add(CLI::App& verb);
    models::WeightCode code() const;
};

struct ModelFlags {
    std::string model;
    std::optional<uint64_t> random_weights;
    bool ignore_sliding_window = false;
    void add(CLI::App& verb);
    models::ModelSource source() const {
        return {.directory = model, .random_seed = random_weights, .ignore_sliding_window = ignore_sliding_window};
    }
};

}  // namespace lc::apps
