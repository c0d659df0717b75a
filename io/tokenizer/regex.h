// Regular expressions of tokenizer.json, through PCRE2 (JIT where there is one) with Unicode properties. No pattern and
// no text can make a match run away: the number of steps, the heap and the JIT's stack are bounded.
#pragma once
#include <cstddef>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

namespace lc::io {

struct Span {
    size_t begin, end;  // byte offsets
};

// What matching needs to write to; one per thread at a time, for any number of patterns.
class RegexScratch {
  public:
    RegexScratch();
    ~RegexScratch();
    RegexScratch(RegexScratch&&) noexcept;
    RegexScratch& operator=(RegexScratch&&) noexcept;

    std::string match_form_storage;  // for match_form(): the caller's, here so that it is reused

  private:
    friend class Regex;
    struct State;
    std::unique_ptr<State> state_;
};

class Regex {
  public:
    // `where` names file and key in messages. Throws BadInput when the pattern is longer than 64 KiB, does not compile,
    // or uses what PCRE2 reads in another way than HF tokenizers' Oniguruma.
    Regex(std::string_view pattern, std::string where);

    // The leftmost match that begins at or after `from`. `text` must be well-formed UTF-8 and `from` on a boundary.
    // Throws BadInput when the limits are reached. Thread-safe.
    std::optional<Span> find(std::string_view text, size_t from, RegexScratch& scratch) const;

    // Calls visit(span) for the matches from left to right. An empty match right after the last match is passed over.
    template <class Visit>
    void for_each_match(std::string_view text, RegexScratch& scratch, Visit&& visit) const;

  private:
    struct Code;
    std::shared_ptr<const Code> code_;
};

template <class Visit>
void Regex::for_each_match(std::string_view text, RegexScratch& scratch, Visit&& visit) const {
    std::optional<size_t> last_end;
    for (size_t from = 0; from <= text.size();) {
        const auto match = find(text, from, scratch);
        if (!match) return;
        if (match->begin == match->end && last_end == match->end) {
            // One character on; in UTF-8 that is past the continuation bytes.
            do ++from;
            while (from < text.size() && (static_cast<unsigned char>(text[from]) & 0xC0u) == 0x80u);
            continue;
        }
        visit(*match);
        from = match->end;
        last_end = match->end;
    }
}

}  // namespace lc::io
