// Checkpoints of the LoLCATs authors (model.pt: io/torch_checkpoint.h) as a run directory.
//
// Their files hold the trained tensors alone, one file for each stage or one for both:
//
//   layers.{i}.self_attn.window_factors              [1,H,1,1]     (or window_factor)
//   layers.{i}.self_attn.feature_map_{q,k}.mlp.layer [H,D,F]
//   layers.{i}.self_attn.feature_map_{q,k}.mlp.bias  [1,H,1,1]     T2R only
//   layers.{i}.self_attn.{q,k,v,o}_proj.lora_{A,B}.default.weight  [R,In], [Out,R]
//
// each after a prefix that ends in "model." (model., base_model.model.model., ...), which is ignored. Frozen weights of
// adapted projections (...base_layer.weight) are the base model's and skipped. What the files do not say (kind and size of
// the window, LoRA's alpha) is what the authors used unless the caller says otherwise.
#pragma once
#include <filesystem>
#include <optional>
#include <span>
#include <string>

#include "models/attention/attention_spec.h"

namespace lc::models {

struct ImportOptions {
    kernels::WindowKind window =
        kernels::WindowKind::terraced;  // not none; without window factors it is linear attention
    int64_t window_size = 64;
    bool reference = false;   // logits equal to the authors' (AttentionSpec::reference); the window is then sliding
    std::string feature_map;  // by name; empty: "t2r" where there are biases, else "hedgehog"
    std::optional<double> lora_alpha;  // nothing: twice the rank
};

struct ImportReport {
    int64_t layers = 0;     // that were linearized
    int64_t lora_rank = 0;  // 0: no adapter
    AttentionSpec attention;
};

// Reads `files` in order (a tensor of a later one replaces an earlier one's, as with load_state_dict) and writes run
// directory `run`, which appears complete or not at all, for the base model in directory `model`. Layers without maps keep
// softmax. Throws BadInput naming file and tensor: unknown names, shapes that do not fit the base model, ranks that differ,
// non-finite values, no maps at all, and what read_torch_checkpoint refuses; Usage when `run` exists.
ImportReport import_checkpoints(const std::filesystem::path& model, std::span<const std::filesystem::path> files,
                                const std::filesystem::path& run, const ImportOptions& options = {});

}  // namespace lc::models
