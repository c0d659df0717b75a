// Cuts a normalized text into words, which BPE then never merges across: the `pre_tokenizer` of tokenizer.json.
#pragma once
#include <cstdint>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "io/tokenizer/regex.h"

namespace lc::io {

// What becomes of the matches of a split pattern, by the names of tokenizer.json.
enum class SplitBehavior { Removed, Isolated, MergedWithPrevious, MergedWithNext, Contiguous };

// GPT-2's pattern, which `ByteLevel` with use_regex stands for.
inline constexpr std::string_view kGpt2Pattern =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";
// The pattern of Llama 3.
inline constexpr std::string_view kLlama3Pattern =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";

class WordSink {
  public:
    virtual void word(std::string_view word) = 0;  // never empty; valid during the call

  protected:
    ~WordSink() = default;
};

struct SplitStep {
    std::variant<Regex, std::string> pattern;  // a string stands for itself
    SplitBehavior behavior = SplitBehavior::Isolated;
    bool invert = false;  // what lies between the matches counts as the match
};

struct MetaspaceStep {
    enum class Prepend { Never, First, Always };
    std::string replacement;  // for ' ', one character
    Prepend prepend = Prepend::Always;
    bool split = true;  // each replacement begins a word
};

class PreTokenizer {
  public:
    // In this order: metaspace (at most one), splits, then the byte level's own.
    std::vector<MetaspaceStep> metaspace;
    std::vector<SplitStep> splits;
    bool byte_level = false;  // words are bytes for the model, not characters
    bool add_prefix_space = false;
    std::vector<SplitStep> byte_level_splits;  // GPT-2's pattern, or nothing

    // `at_start`: the text is the beginning of what the user gave (Metaspace "first" asks).
    void run(std::string_view text, bool at_start, RegexScratch& scratch, WordSink& sink) const;

  private:
    void run_splits(std::string_view text, RegexScratch& scratch, WordSink& sink) const;
    void byte_level_word(std::string_view piece, RegexScratch& scratch, WordSink& sink) const;
};

}  // namespace lc::io
