#include "apps/model_flags.h"

#include <filesystem>

#include "io/gguf.h"

namespace lc::apps {
namespace {

// What is not there at all, the loader names.
std::string file_that_is_no_model(const std::string& path) {
    std::error_code ignored;
    if (!std::filesystem::is_regular_file(path, ignored) || io::is_gguf(path)) return {};
    return fmt::format("{}: must be a model directory or a file *.gguf", path);
}

}  // namespace

void PlacementFlags::add(CLI::App& verb) {
    verb.add_option("--device", device, "auto (a GPU if there is one), cpu, cuda or cuda:N");
    verb.add_option("--dtype", dtype, "of activations and frozen weights: auto (bf16 on a GPU, else f32), f32 or bf16");
}

void WeightFlags::add(CLI::App& verb) {
    verb.add_option(
            "--weights-dtype", dtype,
            "of the layers' matrices: auto (as --dtype) | int8 | fp8, half the memory of bf16; embedding and head stay")
        ->check(CLI::IsMember({"auto", "int8", "fp8"}));
}

models::WeightCode WeightFlags::code() const {
    if (dtype == "int8") return models::WeightCode::int8;
    return dtype == "fp8" ? models::WeightCode::fp8 : models::WeightCode::none;
}

void ModelFlags::add(CLI::App& verb) {
    verb.add_option("--model", model,
                    "Hugging Face model directory (config.json, tokenizer.json, safetensors), or a GGUF file")
        ->required()
        ->check(file_that_is_no_model);
    verb.add_option(
        "--random-weights", random_weights,
        "draw the weights from this seed: needs config.json and tokenizer.json only, to try shapes and speed");
    verb.add_flag("--ignore-sliding-window", ignore_sliding_window,
                  "softmax attention over all keys where the model has a sliding window, as the authors of LoLCATs ran "
                  "Mistral");
}

}  // namespace lc::apps
