#include "io/text.h"

#include <fmt/format.h>

namespace lc::io {
namespace {

// Length of the well-formed sequence at the start of `text`, 0 when it is ill-formed (Unicode 15, table 3-7).
size_t utf8_length(std::string_view text) {
    const auto byte = [&](size_t i) -> unsigned { return i < text.size() ? static_cast<unsigned char>(text[i]) : 0u; };
    const auto tail = [&](size_t i) { return (byte(i) & 0xC0u) == 0x80u; };
    const unsigned first = byte(0), second = byte(1);
    if (first < 0x80) return 1;
    if (first >= 0xC2 && first <= 0xDF) return tail(1) ? 2 : 0;
    if (first >= 0xE0 && first <= 0xEF) {
        const unsigned low = first == 0xE0 ? 0xA0 : 0x80, high = first == 0xED ? 0x9F : 0xBF;
        return second >= low && second <= high && tail(2) ? 3 : 0;
    }
    if (first >= 0xF0 && first <= 0xF4) {
        const unsigned low = first == 0xF0 ? 0x90 : 0x80, high = first == 0xF4 ? 0x8F : 0xBF;
        return second >= low && second <= high && tail(2) && tail(3) ? 4 : 0;
    }
    return 0;
}

}  // namespace

std::optional<size_t> first_invalid_utf8(std::string_view text) {
    for (size_t i = 0; i < text.size();) {
        const size_t length = utf8_length(text.substr(i));
        if (length == 0) return i;
        i += length;
    }
    return std::nullopt;
}

std::string printable(std::string_view text, size_t limit) {
    std::string result;
    for (size_t i = 0; i < text.size();) {
        if (i >= limit) return result + "...";
        const size_t length = utf8_length(text.substr(i));
        const auto byte = static_cast<unsigned char>(text[i]);
        // U+0080..U+009F (C1 controls) are steering characters to some terminals.
        const bool c1 = length == 2 && byte == 0xC2 && static_cast<unsigned char>(text[i + 1]) < 0xA0;
        if (length == 0 || (length == 1 && (byte < 0x20 || byte == 0x7F))) {
            result += fmt::format("\\x{:02x}", byte);
            i += 1;
        } else if (c1) {
            result += fmt::format("\\x{:02x}\\x{:02x}", byte, static_cast<unsigned char>(text[i + 1]));
            i += 2;
        } else {
            result.append(text, i, length);
            i += length;
        }
    }
    return result;
}

}  // namespace lc::io
