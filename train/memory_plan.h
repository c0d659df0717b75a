// What a stage of training needs of a device's memory, from shapes alone: behind --dry-run and the error of a device
// that is too small. Predicted is core's allocator (AllocatorStats): its peak of bytes in use, and what it reserves
// with its cache. Beside that a GPU holds the CUDA context and loaded kernels, a few hundred MiB.
//
// The stage is rehearsed rather than summed up (memory_rehearsal.h): which of several moments is the highest depends on
// the shapes, and so does what is alive then. Promise: within 5 % of the measured peak (tests/train and tests/gpu,
// memory_plan_test.cpp).
#pragma once
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "models/decoder/decoder.h"

namespace lc::train {

enum class PlanStage : uint8_t { transfer, finetune, pretrain };

struct PlanInput {
    models::DecoderConfig config;
    models::AttentionSpec attention;  // transfer, finetune
    models::LoraSpec lora;            // finetune
    PlanStage stage = PlanStage::transfer;
    int64_t batch_size = 1, accumulate = 8, seq_len = 1024;
    int64_t eval_batch = 1;
    models::Placement placement;      // f32, or bf16 on a GPU, which need not be there
    bool checkpoint_layers = false;   // finetune, pretrain
    bool transfer_fp8 = false;        // transfer: codes of the layers' weights lie beside them
    bool train_feature_maps = false;  // finetune: maps and window factors learn, too
    // Chunks of a micro-batch with unequal numbers of labelled tokens, weighted by chunk, take a cross-entropy call
    // each.
    bool unequal_labels = false;
};

// The decoder's shape from a model directory or a config.json; no weights are needed. Throws as io::load_hf_config and
// models::validate do.
models::DecoderConfig read_plan_config(const std::filesystem::path& model_or_config);

struct MemoryPlan {
    struct Row {
        std::string owner;
        int64_t bytes = 0;    // at the peak
        int64_t highest = 0;  // whenever that is; above `bytes` when this owner is not at its highest at the peak
        std::string what;
    };
    PlanInput input;
    std::vector<Row> rows;
    int64_t trained = 0;   // numbers that the optimizer moves
    int64_t reserved = 0;  // with the allocator's cache of freed blocks, if the device has that much

    int64_t total() const;  // peak of bytes in use
};

// Throws Error(Usage) for shapes that cannot be run.
MemoryPlan plan_memory(const PlanInput& input);

// Owners, bytes in GiB, shares; the total, and how much that is of the device. Where the device is too small: the flags
// that reduce it, and to what.
std::string memory_table(const MemoryPlan& plan, std::optional<int64_t> device_bytes);

}  // namespace lc::train
