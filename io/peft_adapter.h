// LoRA adapters in the layout of huggingface/peft: adapter_config.json + adapter_model.safetensors.
#pragma once
#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "core/tensor.h"
#include "io/file.h"

namespace lc::io {

struct LoraPair {
    Tensor a;  // [r, in]
    Tensor b;  // [out, r]
};

struct PeftAdapter {
    int64_t r = 0;
    double alpha = 0;  // the update is (alpha / r) * B A
    double dropout = 0;
    std::vector<std::string> target_modules;  // last parts of names: "q_proj"
    std::string base_model;                   // name or path, for people; empty: not said
    std::string base_hash;                    // of the base weights, in adapters that we wrote; empty: not said
    std::map<std::string, LoraPair> modules;  // "layers.3.self_attn.q_proj" -> its pair
};

// The pairs are f32 whatever the file holds. Throws BadInput naming file and key or tensor: when a file is missing (a
// pickled adapter_model.bin is never opened), when an option is set that we do not apply or do not know (DoRA, rank patterns,
// rslora, chosen layers, trained biases or whole modules, ...), for a tensor that belongs to no pair or a pair without one half, for shapes
// that do not fit `r`, and for non-finite values. Whether the modules fit a model is the caller's to check.
PeftAdapter read_peft_adapter(const std::filesystem::path& directory, OpenOptions options = {});

// Writes both files into `directory` (created when absent), each atomically, the config last. Tensors keep their dtype.
// Throws Internal when the pairs do not fit r, Resource when the disk fails.
void write_peft_adapter(const std::filesystem::path& directory, const PeftAdapter& adapter);

}  // namespace lc::io
