// A Llama of one's own: all parameters from random weights, next-token loss, into a Hugging Face model directory that also
// holds the run (checkpoints, metrics).
#pragma once
#include <filesystem>
#include <string>

#include "train/data.h"
#include "train/run_directory.h"
#include "train/stage_config.h"

namespace lc::train {

struct PretrainOptions {
    std::filesystem::path model_config;  // a config.json
    std::filesystem::path tokenizer;     // a tokenizer.json; copied
    std::filesystem::path out;
    models::Placement placement;
    DataOptions data;
    uint64_t seed = 0;
    bool token_weighted = false, checkpoint_layers = false;
    StageBudget budget;
    LoopOptions loop;  // `steps` is filled from the budget
    int64_t eval_batch = 1;
    DType save_dtype = DType::bf16;  // of the weights written: bf16 or f32
    int64_t keep = 2;
    ResumeOptions resume;
    std::string config_text;
};

// False when it was asked to stop; a checkpoint has been saved.
bool pretrain(const PretrainOptions& options, const StopCheck& stop);

}  // namespace lc::train
