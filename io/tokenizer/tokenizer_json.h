// tokenizer.json text for tokenizers that come in other forms (SentencePiece models, tiktoken ranks, GGUF metadata), as
// Hugging Face's converters write it, so that one reader serves all.
#pragma once
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace lc::io {

// The numbers are SentencePiece's and GGUF's.
enum class PieceType : uint8_t { normal = 1, unknown = 2, control = 3, user_defined = 4, unused = 5, byte = 6 };

struct Piece {
    std::string text;
    double score = 0;  // SentencePiece: higher is merged earlier
    PieceType type = PieceType::normal;
};

struct TokenizerParts {
    std::vector<Piece> pieces;             // index = id; texts are unique and not empty
    std::optional<int64_t> bos, eos, unk;  // ids
    bool add_bos = false, add_eos = false;
    bool symbols_after_normalizing =
        false;  // user-defined pieces are found where spaces are marks already; else in the text
};

// BPE of SentencePiece with byte fallback. Merges are all ways to put a piece together from two, by falling score.
// `dummy_prefix`: a space goes before the text.
std::string sentencepiece_json(const TokenizerParts& parts, bool dummy_prefix, const std::string& source);

// Byte-level BPE: pieces and merges ("left right") in the alphabet of GPT-2. `split` names how text is cut into words:
// "llama3", "smollm" or "gpt2".
std::string byte_level_json(const TokenizerParts& parts, const std::vector<std::string>& merges, std::string_view split,
                            const std::string& source);

// All ways to put a piece together from two, by falling score: for byte-level models that come without merges.
std::vector<std::string> merges_by_score(const TokenizerParts& parts, const std::string& source);

}  // namespace lc::io
