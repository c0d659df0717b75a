// `tokenizer.model` files, which stand where there is no tokenizer.json. Two formats have that name:
//
//   SentencePiece  a protocol buffer: pieces with scores and types, how the model was trained, how text is normalized.
//                  Specification: github.com/google/sentencepiece, src/sentencepiece_model.proto
//   tiktoken       lines "BASE64 RANK": byte strings, merged by rising rank (Llama 3)
#pragma once
#include <string>
#include <string_view>
#include <vector>

#include "io/tokenizer/tokenizer_json.h"

namespace lc::io {

struct SentencePieceModel {
    TokenizerParts parts;      // add_bos and add_eos are not said by the file
    bool dummy_prefix = true;  // a space goes before the text
};

// Throws BadInput naming `source` and what is wrong: a malformed message; unigram, word or character models; normalizers
// other than identity; collapsed spaces; models without byte fallback.
SentencePieceModel read_sentencepiece(std::string_view bytes, const std::string& source);

// Pieces in GPT-2's alphabet, index = rank. Throws BadInput naming `source` and the line: not base64, not the next rank,
// bytes that occur twice.
std::vector<Piece> read_tiktoken(std::string_view text, const std::string& source);
bool looks_like_tiktoken(std::string_view bytes);

// The special tokens of Llama 3, which follow its 128000 ranks.
std::vector<Piece> llama3_special_tokens();

}  // namespace lc::io
