// UTF-8 code point by code point, and the replacement of ill-formed bytes, whole or in pieces.
#pragma once
#include <cstddef>
#include <string>
#include <string_view>

namespace lc::io {

inline constexpr std::string_view kReplacementCharacter = "\xEF\xBF\xBD";  // U+FFFD

// The length in bytes of the well-formed sequence that begins with `first`.
inline size_t utf8_sequence_length(char first) {
    const auto byte = static_cast<unsigned char>(first);
    return byte < 0x80 ? 1 : byte < 0xE0 ? 2 : byte < 0xF0 ? 3 : 4;
}

// The code point at `at`; `text` must be well-formed and `at` the start of a sequence.
char32_t code_point_at(std::string_view text, size_t at);
void append_code_point(std::string& text, char32_t code_point);

// Makes a byte stream well-formed: each maximal ill-formed part becomes one U+FFFD, as Unicode recommends and as Rust's
// from_utf8_lossy and Python's errors="replace" do. Bytes may be cut anywhere between two calls of push; the output
// never is.
class Utf8Repair {
  public:
    void push(std::string_view bytes, std::string& out);
    void finish(std::string& out);  // what is left over is cut off for good

  private:
    std::string pending_;  // a proper prefix of a well-formed sequence, at most 3 bytes
};

std::string repair_utf8(std::string_view bytes);

}  // namespace lc::io
