// Rewrites a text before it is cut: the `normalizer` of tokenizer.json.
#pragma once
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "io/tokenizer/regex.h"

namespace lc::io {

struct PrependStep {
    std::string text;  // put before any text that is not empty
};
struct ReplaceStep {
    std::variant<Regex, std::string> pattern;  // a string stands for itself
    std::string content;                       // goes in as it is
};
struct NfcStep {};  // Unicode normal form C

// Whether this build can do NFC (it takes libutf8proc).
bool nfc_available();

// `text` with every match of the pattern replaced. `scratch` may be null when the pattern is a string.
std::string replace_all(const ReplaceStep& step, std::string_view text, RegexScratch* scratch);

class Normalizer {
  public:
    using Step = std::variant<PrependStep, ReplaceStep, NfcStep>;
    std::vector<Step> steps;

    // The normal form of `text` (well-formed UTF-8): a view of `text` when nothing changes, else of `storage`.
    std::string_view run(std::string_view text, std::string& storage, RegexScratch& scratch) const;
};

}  // namespace lc::io
