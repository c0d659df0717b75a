// The tokenizer of a model, in whatever form it comes.
#pragma once
#include <filesystem>

#include "io/gguf.h"
#include "io/tokenizer/tokenizer.h"

namespace lc::io {

// `path`: a tokenizer.json or tokenizer.model (SentencePiece's, or Llama 3's tiktoken ranks); a model directory, of which
// tokenizer.json is read if there is one, else tokenizer.model; or a GGUF file. Throws BadInput as Tokenizer::load does, and
// for GGUF metadata that describe a tokenizer which is not supported, by name.
Tokenizer load_tokenizer(const std::filesystem::path& path);

// From the metadata tokenizer.ggml.*: model "llama" (SentencePiece BPE), or "gpt2" (byte-level BPE) with the words of
// Llama 3, SmolLM or GPT-2.
Tokenizer tokenizer_of(const GgufFile& file);

}  // namespace lc::io
