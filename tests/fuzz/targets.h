// Fuzz targets: one function for each kind of file or text that comes from outside. A target reads its input as the programs
// would. A result is fine, and so is a refusal in words (support.h); whatever else happens ends the process.
#pragma once
#include <span>
#include <string>
#include <string_view>

namespace lc::fuzz {

struct Target {
    std::string_view name;
    void (*run)(std::string_view input);
};

std::span<const Target> targets();
const Target* find_target(std::string_view name);  // nullptr when there is none

// Weights and their containers
void safetensors(std::string_view input);  // a .safetensors file; all tensors are read
void index(std::string_view input);        // model.safetensors.index.json beside two shards
void gguf(std::string_view input);         // a .gguf file: shape, tokenizer and all tensors
void pickle(std::string_view input);       // data.pkl of a model.pt
void torch_checkpoint(
    std::string_view input);  // a model.pt; or, after a 'P', its data.pkl in an archive with right sums
// Descriptions
void config(std::string_view input);      // config.json, generation_config.json and the attention of an export
void adapter(std::string_view input);     // adapter_config.json beside weights
void checkpoint(std::string_view input);  // state.json of a checkpoint whose sums are right; after an 'M', its manifest
// Tokenizers
void tokenizer_json(std::string_view input);   // the file; it encodes and decodes a few texts
void tokenizer_model(std::string_view input);  // SentencePiece's or tiktoken's
void encode(std::string_view input);           // a text, for tokenizers of every kind: what comes back is the text
// Data and requests
void dataset(std::string_view input);       // after one byte for the format
void batch(std::string_view input);         // request lines; and result lines of an earlier process
void conversation(std::string_view input);  // a saved conversation

// Valid inputs that only the programs themselves can make.
std::string saved_conversation();
std::string checkpoint_state();
std::string checkpoint_manifest();

}  // namespace lc::fuzz
