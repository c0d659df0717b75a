#include "io/tokenizer/added_tokens.h"

#include <algorithm>

#include "io/tokenizer/regex.h"
#include "io/tokenizer/unicode_compat.h"
#include "io/tokenizer/utf8.h"

namespace lc::io {
namespace {

// Unicode's White_Space.
bool is_space(char32_t c) {
    return (c >= 0x09 && c <= 0x0D) || c == 0x20 || c == 0x85 || c == 0xA0 || c == 0x1680 ||
           (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 || c == 0x202F || c == 0x205F || c == 0x3000;
}

// \w of Unicode's regular expressions: Alphabetic, M, Nd, Pc, Join_Control. PCRE2's own \w is narrower.
bool is_word(char32_t c) {
    static const Regex word(
        R"([\p{L}\p{M}\p{Nd}\p{Nl}\p{Pc}\x{200c}\x{200d}\x{24b6}-\x{24e9}\x{1f130}-\x{1f149}\x{1f150}-\x{1f169}\x{1f170}-\x{1f189}])",
        "added token");
    thread_local RegexScratch scratch;
    std::string text, storage;
    append_code_point(text, c);
    return word.find(match_form(text, storage), 0, scratch).has_value();
}

size_t previous_start(std::string_view text, size_t at) {
    do --at;
    while (at > 0 && (static_cast<unsigned char>(text[at]) & 0xC0u) == 0x80u);
    return at;
}

bool stands_alone(std::string_view text, size_t begin, size_t end) {
    return (begin == 0 || !is_word(code_point_at(text, previous_start(text, begin)))) &&
           (end == text.size() || !is_word(code_point_at(text, end)));
}

size_t skip_spaces_back(std::string_view text, size_t at, size_t stop) {
    while (at > stop) {
        const size_t previous = previous_start(text, at);
        if (!is_space(code_point_at(text, previous))) break;
        at = previous;
    }
    return std::max(at, stop);
}

size_t skip_spaces(std::string_view text, size_t at) {
    while (at < text.size() && is_space(code_point_at(text, at))) at += utf8_sequence_length(text[at]);
    return at;
}

}  // namespace

int32_t AddedTokenFinder::child(int32_t node, char byte) const {
    int32_t next = nodes_[static_cast<size_t>(node)].first_child;
    while (next >= 0 && nodes_[static_cast<size_t>(next)].byte != byte)
        next = nodes_[static_cast<size_t>(next)].next_sibling;
    return next;
}

void AddedTokenFinder::add(const AddedToken& token, std::string_view pattern) {
    int32_t node = 0;
    for (const char byte : pattern) {
        int32_t next = node == 0 ? roots_[static_cast<unsigned char>(byte)] : child(node, byte);
        if (next < 0) {
            next = static_cast<int32_t>(nodes_.size());
            Node& parent = nodes_[static_cast<size_t>(node)];
            const Node made{.next_sibling = node == 0 ? -1 : parent.first_child, .byte = byte};
            if (node == 0)
                roots_[static_cast<unsigned char>(byte)] = next;
            else
                parent.first_child = next;
            nodes_.push_back(made);
        }
        node = next;
    }
    int32_t& end = nodes_[static_cast<size_t>(node)].token;
    if (end >= 0) return;
    end = static_cast<int32_t>(tokens_.size());
    tokens_.push_back(token);
}

std::optional<AddedTokenFinder::Match> AddedTokenFinder::find(std::string_view text, size_t from) const {
    for (size_t begin = from; begin < text.size(); ++begin) {
        int32_t node = roots_[static_cast<unsigned char>(text[begin])];
        std::optional<Match> longest;
        for (size_t end = begin + 1; node >= 0; ++end) {
            const int32_t token = nodes_[static_cast<size_t>(node)].token;
            if (token >= 0) longest = Match{begin, end, &tokens_[static_cast<size_t>(token)]};
            if (end == text.size()) break;
            node = child(node, text[end]);
        }
        if (longest) return longest;
    }
    return std::nullopt;
}

void AddedTokenFinder::split(std::string_view text, const Visit& visit) const {
    size_t done = 0;
    Span spaces{0, 0};  // the run swallowed last: tokens inside it (white space themselves) need not walk it again
    for (size_t from = 0; !empty();) {
        const auto match = find(text, from);
        if (!match) break;
        from = match->end;
        const AddedToken& token = *match->token;
        if (token.single_word && !stands_alone(text, match->begin, match->end)) continue;
        const size_t begin = token.lstrip ? skip_spaces_back(text, match->begin, done) : match->begin;
        size_t end = match->end;
        if (token.rstrip) {
            if (end < spaces.begin || end > spaces.end) spaces = {end, skip_spaces(text, end)};
            end = spaces.end;
        }
        if (done < begin) visit(text.substr(done, begin - done), nullptr);
        visit(text.substr(begin, end - begin), &token);
        done = end;
    }
    if (done < text.size()) visit(text.substr(done), nullptr);
}

}  // namespace lc::io
