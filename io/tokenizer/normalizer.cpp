#include "io/tokenizer/normalizer.h"

#include <algorithm>

#include "core/check.h"
#include "io/tokenizer/unicode_compat.h"
#include "io/tokenizer/utf8.h"
#ifdef LOLCATS_HAVE_UTF8PROC
#include <utf8proc.h>
#endif

namespace lc::io {
namespace {

#ifdef LOLCATS_HAVE_UTF8PROC
int combining_class(utf8proc_int32_t c) {
    return utf8proc_get_property(c)->combining_class;
}

// Not utf8proc_map: that orders combining characters by swapping neighbours, which takes a megabyte of them hours.
void append_nfc(std::string_view text, std::string& out) {
    constexpr auto kOptions = static_cast<utf8proc_option_t>(UTF8PROC_STABLE | UTF8PROC_COMPOSE);
    constexpr utf8proc_ssize_t kMostOfOne = 8;  // the canonical decomposition of a code point has at most 4
    std::vector<utf8proc_int32_t> points;
    points.reserve(text.size());
    for (size_t at = 0; at < text.size(); at += utf8_sequence_length(text[at])) {
        const size_t end = points.size();
        points.resize(end + kMostOfOne);
        int boundary = 0;
        const utf8proc_ssize_t count = utf8proc_decompose_char(static_cast<utf8proc_int32_t>(code_point_at(text, at)),
                                                               &points[end], kMostOfOne, kOptions, &boundary);
        LC_CHECK(count >= 0 && count <= kMostOfOne, "tokenizer: NFC of a character: {}", utf8proc_errmsg(count));
        points.resize(end + static_cast<size_t>(count));
    }
    const auto before = [](utf8proc_int32_t a, utf8proc_int32_t b) { return combining_class(a) < combining_class(b); };
    const auto is_starter = [](utf8proc_int32_t c) { return combining_class(c) == 0; };
    for (auto begin = points.begin(); begin != points.end();) {
        begin = std::find_if_not(begin, points.end(), is_starter);
        const auto end = std::find_if(begin, points.end(), is_starter);
        if (!std::is_sorted(begin, end, before)) std::stable_sort(begin, end, before);
        begin = end;
    }
    const utf8proc_ssize_t length =
        utf8proc_normalize_utf32(points.data(), static_cast<utf8proc_ssize_t>(points.size()), kOptions);
    LC_CHECK(length >= 0, "tokenizer: NFC of {} bytes: {}", text.size(), utf8proc_errmsg(length));
    for (utf8proc_ssize_t i = 0; i < length; ++i)
        append_code_point(out, static_cast<char32_t>(points[static_cast<size_t>(i)]));
}

std::string to_nfc(std::string_view text) {
    std::string result;
    result.reserve(text.size());
    size_t begin = 0;
    for (size_t at = 0; at < text.size();) {
        const size_t length = utf8_sequence_length(text[at]);
        if (length > 1 && is_inert_in_nfc(code_point_at(text, at))) {
            append_nfc(text.substr(begin, at - begin), result);
            result.append(text, at, length);
            begin = at + length;
        }
        at += length;
    }
    append_nfc(text.substr(begin), result);
    return result;
}
#else
std::string to_nfc(std::string_view) {
    fail(ErrorKind::Internal, "tokenizer: NFC is not part of this build");  // the loader refuses such tokenizers
}
#endif

// All code points below U+0300 are in normal form C and combine with nothing before them.
bool is_plainly_nfc(std::string_view text) {
    return std::all_of(text.begin(), text.end(), [](char c) { return static_cast<unsigned char>(c) < 0xCC; });
}

}  // namespace

bool nfc_available() {
#ifdef LOLCATS_HAVE_UTF8PROC
    return true;
#else
    return false;
#endif
}

std::string replace_all(const ReplaceStep& step, std::string_view text, RegexScratch* scratch) {
    std::string result;
    result.reserve(text.size());
    size_t end = 0;
    const auto on_match = [&](Span match) {
        result += text.substr(end, match.begin - end);
        result += step.content;
        end = match.end;
    };
    if (const Regex* regex = std::get_if<Regex>(&step.pattern)) {
        std::string storage;
        regex->for_each_match(match_form(text, storage), *scratch, on_match);
    } else {
        const std::string& literal = std::get<std::string>(step.pattern);
        for (size_t at = 0; (at = text.find(literal, at)) != std::string_view::npos; at += literal.size())
            on_match({at, at + literal.size()});
    }
    return result.append(text.substr(end));
}

std::string_view Normalizer::run(std::string_view text, std::string& storage, RegexScratch& scratch) const {
    std::string_view current = text;
    for (const Step& step : steps) {
        std::string next;
        if (const auto* prepend = std::get_if<PrependStep>(&step)) {
            if (current.empty()) continue;
            next.reserve(prepend->text.size() + current.size());
            next.append(prepend->text).append(current);
        } else if (const auto* replace = std::get_if<ReplaceStep>(&step)) {
            next = replace_all(*replace, current, &scratch);
        } else {
            if (is_plainly_nfc(current)) continue;
            next = to_nfc(current);
        }
        storage = std::move(next);
        current = storage;
    }
    return current;
}

}  // namespace lc::io
