// Byte pair encoding of one word: begin with its characters (or bytes), then, as long as there is one, merge the
// adjacent pair of the lowest rank, the leftmost of equals. Sennrich et al., arXiv 1508.07909; the same ids as HF
// tokenizers.
//
// Words of up to kShortWord symbols are scanned for the best pair again and again, longer ones keep their candidates in
// a heap over a linked list: O(n log n) whatever the text.
#pragma once
#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "io/tokenizer/merge_table.h"
#include "io/tokenizer/min_heap.h"
#include "io/tokenizer/vocabulary.h"
#include "io/tokenizer/word_cache.h"

namespace lc::io {

struct BpeOptions {
    std::optional<std::string> unk_token;  // for characters that are not in the vocabulary; without it they vanish
    bool fuse_unk = false;                 // several in a row are one
    bool byte_fallback = false;            // such a character becomes its bytes <0x00>..<0xFF>, where all are there
    bool ignore_merges = false;            // a word that is itself a piece is that piece
    bool byte_level = false;               // words are bytes; the vocabulary writes them in the byte alphabet
};

class Bpe {
  public:
    struct Pair {
        int32_t left, right, merged;
    };
    // One symbol of a long word, linked to its neighbours.
    struct Symbol {
        int32_t id;
        uint32_t rank;  // of the pair that it makes with the next one
        uint32_t previous, next;
    };
    // What encoding writes to; one per thread at a time.
    struct Scratch {
        WordCache cache;
        std::vector<int32_t> symbols;
        std::vector<Symbol> list;  // of a long word
        MinHeap candidates;
    };

    // `merges` in the order of their ranks. The unk token must be in the vocabulary (the loader has checked).
    Bpe(const Vocabulary& vocabulary, const std::vector<Pair>& merges, const BpeOptions& options);

    // Appends the ids of a word: well-formed UTF-8.
    void encode(std::string_view word, Scratch& scratch, std::vector<int32_t>& ids) const;

  private:
    static constexpr size_t kShortWord = 32;

    void encode_part(std::string_view word, Scratch& scratch, std::vector<int32_t>& ids) const;
    void fill_symbols(std::string_view word, std::vector<int32_t>& symbols) const;
    void merge_short(std::vector<int32_t>& symbols) const;
    void merge_long(Scratch& scratch) const;
    bool rank_pair(std::vector<Symbol>& list, uint32_t at) const;

    int32_t character_id(std::string_view character) const;
    void init_bytes(const Vocabulary& vocabulary);
    void init_characters(const Vocabulary& vocabulary);
    void init_whole_words(const Vocabulary& vocabulary);
    bool never_merges_before(const Vocabulary& vocabulary, const std::vector<Pair>& merges,
                             std::string_view mark) const;

    BpeOptions options_;
    MergeTable merges_;
    std::vector<int32_t> merged_;  // by rank
    int32_t unk_ = -1;
    std::array<int32_t, 256> fallback_;  // of <0x00>..<0xFF>; -1 where missing
    std::array<int32_t, 256> bytes_;     // of single bytes (byte level) or ASCII characters; -1 where missing
    std::unordered_map<std::string, int32_t> characters_;   // those beyond ASCII
    std::unordered_map<std::string, int32_t> whole_words_;  // ignore_merges: every piece, as it stands in a word
    bool cut_before_mark_ = false;                          // see encode()
};

}  // namespace lc::io
