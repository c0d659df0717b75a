#include "io/tokenizer/bpe_trainer.h"

#include <fmt/format.h>

#include <algorithm>
#include <iterator>
#include <queue>
#include <unordered_map>
#include <unordered_set>

#include "core/check.h"
#include "io/json.h"
#include "io/text.h"
#include "io/tokenizer/byte_alphabet.h"
#include "io/tokenizer/utf8.h"
#include "io/tokenizer/vocabulary.h"

namespace lc::io {
namespace {

struct Word {
    std::vector<int32_t> symbols;
    int64_t count = 0;
};

struct Pair {
    int32_t left, right;
    bool operator==(const Pair&) const = default;
};
struct PairHash {
    size_t operator()(const Pair& pair) const {
        const auto key = static_cast<uint64_t>(pair.left) << 32 | static_cast<uint32_t>(pair.right);
        return (key * 0x9E3779B97F4A7C15u) >> 16;
    }
};
struct PairState {
    int64_t count = 0;
    std::vector<int32_t> words;  // where it occurs, or did
};

// By count, then the pair of older pieces first: the order is total, so the result is one.
struct Candidate {
    int64_t count;
    Pair pair;
    bool operator<(const Candidate& other) const {
        if (count != other.count) return count < other.count;
        if (pair.left != other.pair.left) return pair.left > other.pair.left;
        return pair.right > other.pair.right;
    }
};

class WordCounter final : public WordSink {
  public:
    void word(std::string_view word) override { ++counts_[std::string(word)]; }
    // In a fixed order, whatever the hash table's.
    std::vector<std::pair<std::string, int64_t>> sorted() const {
        std::vector<std::pair<std::string, int64_t>> words(counts_.begin(), counts_.end());
        std::sort(words.begin(), words.end());
        return words;
    }

  private:
    std::unordered_map<std::string, int64_t> counts_;
};

class Trainer {
  public:
    explicit Trainer(const BpeTrainerOptions& options);
    void count_words(std::string_view text);
    void merge_all();
    const std::vector<std::string>& pieces() const { return pieces_; }
    const std::vector<Pair>& merges() const { return merges_; }

  private:
    void change(Pair pair, int64_t difference, int32_t word);
    void merge(Pair pair, int32_t merged);
    void merge_in_word(int32_t index, Pair pair, int32_t merged);

    const BpeTrainerOptions& options_;
    std::vector<std::string> pieces_;  // by id
    std::unordered_map<std::string, int32_t> ids_;
    int32_t first_byte_ = 0;  // the ids below are special tokens
    std::vector<int32_t> byte_ids_;
    std::vector<Word> words_;
    std::unordered_map<Pair, PairState, PairHash> pairs_;
    std::vector<Pair> touched_;  // pairs that the current merge made more frequent
    std::vector<Pair> merges_;
};

Trainer::Trainer(const BpeTrainerOptions& options) : options_(options), pieces_(options.special_tokens) {
    first_byte_ = static_cast<int32_t>(pieces_.size());
    // In the order of the stand-ins' code points, as HF tokenizers has them.
    std::vector<std::pair<char32_t, int>> alphabet;
    for (int byte = 0; byte < 256; ++byte)
        alphabet.emplace_back(alphabet_of_byte(static_cast<unsigned char>(byte)), byte);
    std::sort(alphabet.begin(), alphabet.end());
    byte_ids_.resize(256);
    for (const auto& [character, byte] : alphabet) {
        byte_ids_[static_cast<size_t>(byte)] = static_cast<int32_t>(pieces_.size());
        pieces_.push_back(to_alphabet(std::string(1, static_cast<char>(byte))));
    }
    for (size_t id = 0; id < pieces_.size(); ++id) ids_.emplace(pieces_[id], static_cast<int32_t>(id));
}

void Trainer::count_words(std::string_view text) {
    PreTokenizer pre_tokenizer;
    pre_tokenizer.byte_level = true;
    pre_tokenizer.splits.push_back({.pattern = Regex(options_.split_pattern, "split pattern")});
    RegexScratch scratch;
    WordCounter counter;
    pre_tokenizer.run(text, true, scratch, counter);
    for (const auto& [bytes, count] : counter.sorted()) {
        const auto index = static_cast<int32_t>(words_.size());
        Word word{.symbols = {}, .count = count};
        for (const char byte : bytes) word.symbols.push_back(byte_ids_[static_cast<unsigned char>(byte)]);
        for (size_t i = 0; i + 1 < word.symbols.size(); ++i)
            change({word.symbols[i], word.symbols[i + 1]}, count, index);
        words_.push_back(std::move(word));
    }
}

void Trainer::change(Pair pair, int64_t difference, int32_t word) {
    PairState& state = pairs_[pair];
    state.count += difference;
    if (difference <= 0) return;
    if (state.words.empty() || state.words.back() != word) state.words.push_back(word);
    if (touched_.empty() || touched_.back() != pair) touched_.push_back(pair);
}

void Trainer::merge_all() {
    std::priority_queue<Candidate> queue;
    for (const auto& [pair, state] : pairs_) queue.push({state.count, pair});
    touched_.clear();
    while (static_cast<int32_t>(pieces_.size()) < options_.vocab_size && !queue.empty()) {
        const Candidate top = queue.top();
        queue.pop();
        const auto found = pairs_.find(top.pair);
        if (found == pairs_.end()) continue;
        const int64_t count = found->second.count;
        if (count < std::max<int64_t>(options_.min_frequency, 1)) continue;
        if (count != top.count) {  // counts fall without notice; the entry takes its place by what it is now
            if (count < top.count) queue.push({count, top.pair});
            continue;
        }
        std::string text = pieces_[static_cast<size_t>(top.pair.left)] + pieces_[static_cast<size_t>(top.pair.right)];
        const auto [position, is_new] = ids_.emplace(text, static_cast<int32_t>(pieces_.size()));
        if (position->second < first_byte_) continue;  // a special token is never made of bytes
        if (is_new) pieces_.push_back(std::move(text));
        merges_.push_back(top.pair);
        merge(top.pair, position->second);
        for (const Pair& pair : touched_)
            if (const auto state = pairs_.find(pair); state != pairs_.end()) queue.push({state->second.count, pair});
        touched_.clear();
    }
}

void Trainer::merge(Pair pair, int32_t merged) {
    std::vector<int32_t> words = std::move(pairs_.at(pair).words);
    std::sort(words.begin(), words.end());
    words.erase(std::unique(words.begin(), words.end()), words.end());
    for (const int32_t word : words) merge_in_word(word, pair, merged);
    pairs_.erase(pair);
}

void Trainer::merge_in_word(int32_t index, Pair pair, int32_t merged) {
    Word& word = words_[static_cast<size_t>(index)];
    std::vector<int32_t>& symbols = word.symbols;
    size_t kept = 0;  // symbols[0, kept) are done
    for (size_t i = 0; i < symbols.size();) {
        if (i + 1 == symbols.size() || symbols[i] != pair.left || symbols[i + 1] != pair.right) {
            symbols[kept++] = symbols[i++];
            continue;
        }
        if (kept > 0) {
            change({symbols[kept - 1], pair.left}, -word.count, index);
            change({symbols[kept - 1], merged}, word.count, index);
        }
        symbols[kept++] = merged;
        i += 2;
        if (i < symbols.size()) {
            change({pair.right, symbols[i]}, -word.count, index);
            change({merged, symbols[i]}, word.count, index);
        }
    }
    symbols.resize(kept);
}

void check_options(const BpeTrainerOptions& options) {
    const auto least = static_cast<int32_t>(options.special_tokens.size()) + 256;
    LC_REQUIRE(Usage, options.vocab_size >= least && options.vocab_size <= kMaxTokenId,
               "tokenizer training: vocab_size must be in [{}, {}] ({} special tokens and 256 bytes), got {}", least,
               kMaxTokenId, options.special_tokens.size(), options.vocab_size);
    std::unordered_set<std::string> seen;
    for (const std::string& token : options.special_tokens) {
        // One character could be a byte's stand-in, which is in the vocabulary already.
        LC_REQUIRE(Usage, token.size() >= 3 && token.size() <= 512 && !first_invalid_utf8(token),
                   "tokenizer training: a special token must be UTF-8 of 3 to 512 bytes, got '{}'", printable(token));
        LC_REQUIRE(Usage, seen.insert(token).second, "tokenizer training: special token '{}' is given twice",
                   printable(token));
    }
    LC_REQUIRE(Usage, options.bos_token.empty() || seen.contains(options.bos_token),
               "tokenizer training: bos_token '{}' must be one of the special tokens", printable(options.bos_token));
}

std::string json_text(std::string_view text) {
    return Json(std::string(text)).dump();
}

std::string post_processor_json(const BpeTrainerOptions& options) {
    const std::string byte_level =
        R"({"type":"ByteLevel","add_prefix_space":true,"trim_offsets":true,"use_regex":true})";
    if (options.bos_token.empty()) return byte_level;
    const auto position = std::find(options.special_tokens.begin(), options.special_tokens.end(), options.bos_token);
    const std::string bos = json_text(options.bos_token);
    return fmt::format(
        R"({{"type":"Sequence","processors":[{0},{{"type":"TemplateProcessing",)"
        R"("single":[{{"SpecialToken":{{"id":{1},"type_id":0}}}},{{"Sequence":{{"id":"A","type_id":0}}}}],)"
        R"("pair":[{{"Sequence":{{"id":"A","type_id":0}}}},{{"Sequence":{{"id":"B","type_id":1}}}}],)"
        R"("special_tokens":{{{1}:{{"id":{1},"ids":[{2}],"tokens":[{1}]}}}}}}]}})",
        byte_level, bos, position - options.special_tokens.begin());
}

std::string added_tokens_json(const BpeTrainerOptions& options) {
    std::string json;
    for (size_t id = 0; id < options.special_tokens.size(); ++id)
        fmt::format_to(std::back_inserter(json),
                       R"({}{{"id":{},"content":{},"single_word":false,"lstrip":false,"rstrip":false,)"
                       R"("normalized":false,"special":true}})",
                       id == 0 ? "" : ",\n", id, json_text(options.special_tokens[id]));
    return json;
}

std::string to_json(const BpeTrainerOptions& options, const Trainer& trainer) {
    std::string json = "{\"version\":\"1.0\",\"truncation\":null,\"padding\":null,\n";
    auto out = std::back_inserter(json);
    fmt::format_to(out, "\"added_tokens\":[\n{}],\n\"normalizer\":null,\n", added_tokens_json(options));
    fmt::format_to(out,
                   R"("pre_tokenizer":{{"type":"Sequence","pretokenizers":[{{"type":"Split","pattern":{{"Regex":{}}},)"
                   R"("behavior":"Isolated","invert":false}},{{"type":"ByteLevel","add_prefix_space":false,)"
                   R"("trim_offsets":true,"use_regex":false}}]}},)"
                   "\n",
                   json_text(options.split_pattern));
    fmt::format_to(out, "\"post_processor\":{},\n", post_processor_json(options));
    json += R"("decoder":{"type":"ByteLevel","add_prefix_space":true,"trim_offsets":true,"use_regex":true},)"
            "\n"
            R"("model":{"type":"BPE","dropout":null,"unk_token":null,"continuing_subword_prefix":null,)"
            R"("end_of_word_suffix":null,"fuse_unk":false,"byte_fallback":false,"ignore_merges":false,)"
            "\n\"vocab\":{";
    const std::vector<std::string>& pieces = trainer.pieces();
    for (size_t id = 0; id < pieces.size(); ++id)
        fmt::format_to(out, "{}\n{}:{}", id == 0 ? "" : ",", json_text(pieces[id]), id);
    json += "},\n\"merges\":[";
    bool first = true;
    for (const Pair& pair : trainer.merges()) {
        fmt::format_to(out, "{}\n[{},{}]", first ? "" : ",", json_text(pieces[static_cast<size_t>(pair.left)]),
                       json_text(pieces[static_cast<size_t>(pair.right)]));
        first = false;
    }
    return json + "]}}\n";
}

}  // namespace

std::string train_byte_level_bpe(std::string_view text, const BpeTrainerOptions& options) {
    check_options(options);
    std::string repaired;
    if (first_invalid_utf8(text)) {
        repaired = repair_utf8(text);
        text = repaired;
    }
    Trainer trainer(options);
    trainer.count_words(text);
    trainer.merge_all();
    return to_json(options, trainer);
}

}  // namespace lc::io
