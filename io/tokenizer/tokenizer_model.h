// All that a tokenizer.json says, checked and ready to use; and the reader that makes it. Internal: users include
// tokenizer.h.
#pragma once
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "io/json.h"
#include "io/tokenizer/added_tokens.h"
#include "io/tokenizer/bpe.h"
#include "io/tokenizer/decoder.h"
#include "io/tokenizer/normalizer.h"
#include "io/tokenizer/pre_tokenizer.h"
#include "io/tokenizer/vocabulary.h"

namespace lc::io {

// What a post-processor puts around a text with add_special_tokens.
struct TokenTemplate {
    std::vector<int32_t> before, after;
};

struct TokenizerModel {
    Vocabulary vocabulary;  // the model's pieces and the added tokens
    Bpe bpe;
    AddedTokenFinder added, normalized;  // looked for before and after normalization
    std::unordered_set<int32_t> special;
    std::unordered_map<int32_t, std::string> normal_forms;  // of added tokens that differ from theirs
    Normalizer normalizer;
    PreTokenizer pre_tokenizer;
    TokenDecoder decoder;
    TokenTemplate around;

    // What the decoder gets for `id`; nullopt for nothing.
    std::optional<std::string_view> piece_to_decode(int32_t id, bool skip_special_tokens) const;
};

// Throws BadInput, naming `source` and the key, for anything that is malformed, contradicts itself or is not supported.
TokenizerModel read_tokenizer_model(const Json& json, const std::string& source);

// The parts of it, one function a part; `root` is the file's outermost object.
Normalizer read_normalizer(const JsonObject& root);
PreTokenizer read_pre_tokenizer(const JsonObject& root);
TokenDecoder read_decoder(const JsonObject& root);
TokenTemplate read_template(const JsonObject& root, const Vocabulary& vocabulary);
std::vector<AddedToken> read_added_tokens(const JsonObject& root);
std::vector<Vocabulary::Entry> read_vocabulary(const JsonObject& model);
std::vector<Bpe::Pair> read_merges(const JsonObject& model, const Vocabulary& vocabulary);
BpeOptions read_bpe_options(const JsonObject& model, const Vocabulary& vocabulary);

}  // namespace lc::io
