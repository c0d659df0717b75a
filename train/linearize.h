// The whole of LoLCATs on one model: teacher -> swapped attention -> attention transfer -> LoRA, with the perplexities in
// between, in one run directory that can be stopped and resumed at any step.
#pragma once
#include <filesystem>
#include <string>

#include "models/model_source.h"
#include "train/data.h"
#include "train/evaluate.h"
#include "train/run_directory.h"
#include "train/stage_config.h"

namespace lc::train {

struct LinearizeOptions {
    models::ModelSource model;
    models::Placement placement;
    std::filesystem::path out;
    DataOptions data;
    models::AttentionSpec attention;  // kind softmax: nothing is converted, finetune alone (the control of experiments)
    std::string feature_map;          // by name, see models::apply_feature_map_name; empty: attention.activation
    models::LoraSpec lora;
    uint64_t seed = 0;
    bool transfer = true, finetune = true;  // without transfer, finetune trains maps and window factors too
    bool transfer_fp8 = false;              // see AttentionTransfer
    bool train_feature_maps = false;        // in finetune as well
    bool token_weighted = false;
    bool checkpoint_layers = false;  // recompute each layer in finetune's backward: less memory
    StageBudget transfer_budget, finetune_budget;
    LoopOptions transfer_loop, finetune_loop;  // `steps` is filled from the budget
    int64_t eval_batch = 1;
    int64_t keep = 2;  // checkpoints
    ResumeOptions resume;
    std::string config_text;  // goes to config.toml
};

// False when it was asked to stop; a checkpoint has been saved if there was anything to save.
bool linearize(const LinearizeOptions& options, const StopCheck& stop);

}  // namespace lc::train
