#include "io/tokenizer/bpe.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "core/check.h"
#include "io/tokenizer/byte_alphabet.h"
#include "io/tokenizer/utf8.h"

namespace lc::io {
namespace {

constexpr std::string_view kSpaceMark = "\xE2\x96\x81";  // '▁', SentencePiece's space

}  // namespace

Bpe::Bpe(const Vocabulary& vocabulary, const std::vector<Pair>& merges, const BpeOptions& options)
    : options_(options), merges_(merges.size()) {
    merged_.reserve(merges.size());
    for (size_t rank = 0; rank < merges.size(); ++rank) {
        merges_.set(merges[rank].left, merges[rank].right, {static_cast<uint32_t>(rank), merges[rank].merged});
        merged_.push_back(merges[rank].merged);
    }
    if (options.unk_token) unk_ = vocabulary.id(*options.unk_token).value();
    for (int byte = 0; byte < 256; ++byte)
        fallback_[static_cast<size_t>(byte)] = vocabulary.id(fmt::format("<0x{:02X}>", byte)).value_or(-1);
    if (options.byte_level)
        init_bytes(vocabulary);
    else
        init_characters(vocabulary);
    if (options.ignore_merges) init_whole_words(vocabulary);
    cut_before_mark_ = !options.byte_level && !options.ignore_merges && character_id(kSpaceMark) >= 0 &&
                       never_merges_before(vocabulary, merges, kSpaceMark);
}

void Bpe::init_bytes(const Vocabulary& vocabulary) {
    for (int byte = 0; byte < 256; ++byte) {
        const std::string character = to_alphabet(std::string(1, static_cast<char>(byte)));
        bytes_[static_cast<size_t>(byte)] = vocabulary.id(character).value_or(-1);
    }
}

void Bpe::init_characters(const Vocabulary& vocabulary) {
    bytes_.fill(-1);
    for (int32_t id = 0; id < vocabulary.size(); ++id) {
        const auto text = vocabulary.text(id);
        if (!text || text->empty() || text->size() != utf8_sequence_length(text->front())) continue;
        if (text->size() == 1)
            bytes_[static_cast<unsigned char>(text->front())] = id;
        else
            characters_.emplace(*text, id);
    }
}

void Bpe::init_whole_words(const Vocabulary& vocabulary) {
    for (int32_t id = 0; id < vocabulary.size(); ++id) {
        const auto text = vocabulary.text(id);
        if (!text) continue;
        // A byte-level piece with characters outside the alphabet can stand in no word.
        const auto word = options_.byte_level ? from_alphabet(*text) : std::optional(std::string(*text));
        if (word) whole_words_.emplace(*word, id);
    }
}

// Whether no merged piece has `mark` behind another character. Then no merge ever crosses such a place.
bool Bpe::never_merges_before(const Vocabulary& vocabulary, const std::vector<Pair>& merges,
                              std::string_view mark) const {
    return std::none_of(merges.begin(), merges.end(), [&](const Pair& merge) {
        const std::string_view text = vocabulary.text(merge.merged).value();
        for (size_t at = 0; (at = text.find(mark, at)) != std::string_view::npos; at += mark.size())
            if (at != 0 && (at < mark.size() || text.substr(at - mark.size(), mark.size()) != mark)) return true;
        return false;
    });
}

int32_t Bpe::character_id(std::string_view character) const {
    if (character.size() == 1) return bytes_[static_cast<unsigned char>(character[0])];
    const auto found = characters_.find(std::string(character));
    return found == characters_.end() ? -1 : found->second;
}

void Bpe::encode(std::string_view word, Scratch& scratch, std::vector<int32_t>& ids) const {
    if (!cut_before_mark_) {
        encode_part(word, scratch, ids);
        return;
    }
    // A SentencePiece-style text comes as one "word". Cutting it before each run of marks changes no id (no merge
    // crosses these places), and makes short words that the cache knows.
    for (size_t begin = 0; begin < word.size();) {
        size_t end = begin;
        while (word.substr(end, kSpaceMark.size()) == kSpaceMark) end += kSpaceMark.size();
        end = std::min(word.find(kSpaceMark, end), word.size());
        encode_part(word.substr(begin, end - begin), scratch, ids);
        begin = end;
    }
}

void Bpe::encode_part(std::string_view word, Scratch& scratch, std::vector<int32_t>& ids) const {
    const WordCache::Key key = WordCache::key(word);
    if (key.usable()) {
        const auto known = scratch.cache.find(key);
        if (!known.empty()) {
            ids.insert(ids.end(), known.begin(), known.end());
            return;
        }
    }
    std::vector<int32_t>& symbols = scratch.symbols;
    symbols.clear();
    const auto whole = options_.ignore_merges ? whole_words_.find(std::string(word)) : whole_words_.end();
    if (whole != whole_words_.end()) {
        symbols.push_back(whole->second);
    } else {
        fill_symbols(word, symbols);
        if (symbols.size() <= kShortWord)
            merge_short(symbols);
        else
            merge_long(scratch);
    }
    if (key.usable()) scratch.cache.insert(key, symbols);
    ids.insert(ids.end(), symbols.begin(), symbols.end());
}

void Bpe::fill_symbols(std::string_view word, std::vector<int32_t>& symbols) const {
    bool unk_pending = false;
    for (size_t at = 0; at < word.size();) {
        const size_t length = options_.byte_level ? 1 : utf8_sequence_length(word[at]);
        const std::string_view character = word.substr(at, length);
        at += length;
        const int32_t id = character_id(character);
        if (id >= 0) {
            if (std::exchange(unk_pending, false)) symbols.push_back(unk_);
            symbols.push_back(id);
            continue;
        }
        const auto fallback_id = [&](char byte) { return fallback_[static_cast<unsigned char>(byte)]; };
        // What the vocabulary lacks at byte level is the byte's stand-in, so that one is spelled in bytes.
        const std::string spelled = options_.byte_level ? to_alphabet(character) : std::string(character);
        if (options_.byte_fallback &&
            std::all_of(spelled.begin(), spelled.end(), [&](char byte) { return fallback_id(byte) >= 0; })) {
            // An unknown character before stays pending, and so moves behind: as HF tokenizers do it.
            for (const char byte : spelled) symbols.push_back(fallback_id(byte));
            continue;
        }
        if (unk_ < 0) continue;
        if (unk_pending && !options_.fuse_unk) symbols.push_back(unk_);
        unk_pending = true;
    }
    if (unk_pending) symbols.push_back(unk_);
}

void Bpe::merge_short(std::vector<int32_t>& symbols) const {
    std::array<MergeTable::Merge, kShortWord> merges;  // merges[i] joins symbols i and i+1
    size_t count = symbols.size();
    for (size_t i = 0; i + 1 < count; ++i) merges[i] = merges_.find(symbols[i], symbols[i + 1]);
    while (count > 1) {
        size_t best = 0;
        for (size_t i = 1; i + 1 < count; ++i)
            if (merges[i].rank < merges[best].rank) best = i;
        if (merges[best].rank == MergeTable::kNoRank) break;
        symbols[best] = merges[best].id;
        for (size_t i = best + 1; i + 1 < count; ++i) {
            symbols[i] = symbols[i + 1];
            merges[i] = merges[i + 1];
        }
        --count;
        if (best > 0) merges[best - 1] = merges_.find(symbols[best - 1], symbols[best]);
        if (best + 1 < count) merges[best] = merges_.find(symbols[best], symbols[best + 1]);
    }
    symbols.resize(count);
}

// Notes the rank of the pair of list[at] and the symbol after it; false when no merge joins them.
bool Bpe::rank_pair(std::vector<Symbol>& list, uint32_t at) const {
    Symbol& symbol = list[at];
    symbol.rank = symbol.next < list.size() ? merges_.find(symbol.id, list[symbol.next].id).rank : MergeTable::kNoRank;
    return symbol.rank != MergeTable::kNoRank;
}

void Bpe::merge_long(Scratch& scratch) const {
    std::vector<int32_t>& symbols = scratch.symbols;
    std::vector<Symbol>& list = scratch.list;
    MinHeap& candidates = scratch.candidates;
    LC_CHECK(symbols.size() < MergeTable::kNoRank, "tokenizer: a word of {} symbols", symbols.size());
    constexpr uint32_t kRemoved = MergeTable::kNoRank;  // in `next`
    const auto count = static_cast<uint32_t>(symbols.size());
    list.resize(count);
    for (uint32_t i = 0; i < count; ++i) list[i] = {.id = symbols[i], .rank = 0, .previous = i - 1, .next = i + 1};
    candidates.clear();
    // A candidate is rank and place in one number, so that the smallest is the best and leftmost one.
    const auto candidate = [&](uint32_t i) { return static_cast<uint64_t>(list[i].rank) << 32 | i; };
    for (uint32_t i = 0; i < count; ++i)
        if (rank_pair(list, i)) candidates.append(candidate(i));
    candidates.heapify();
    while (!candidates.empty()) {
        const uint64_t top = candidates.pop();
        const auto at = static_cast<uint32_t>(top), rank = static_cast<uint32_t>(top >> 32);
        Symbol& left = list[at];
        // Out of date when the symbol is gone or has another neighbour since.
        if (left.next == kRemoved || left.rank != rank) continue;
        Symbol& right = list[left.next];
        left.id = merged_[rank];
        left.next = std::exchange(right.next, kRemoved);
        if (left.next < count) list[left.next].previous = at;
        if (rank_pair(list, at)) candidates.push(candidate(at));
        if (at > 0 && rank_pair(list, left.previous)) candidates.push(candidate(left.previous));
    }
    symbols.clear();
    for (const Symbol& symbol : list)
        if (symbol.next != kRemoved) symbols.push_back(symbol.id);
}

}  // namespace lc::io
