// Text from files: UTF-8 checks, and a form of foreign bytes that is safe to print in a one-line message.
#pragma once
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace lc::io {

// The byte offset of the first ill-formed UTF-8 sequence (overlong forms, surrogates, above U+10FFFF, cut off); nullopt
// when all of `text` is well-formed.
std::optional<size_t> first_invalid_utf8(std::string_view text);

// `text` for a message: control characters and ill-formed bytes as \xNN, at most `limit` bytes of it, then "...".
// Names come from untrusted files: without this one could forge lines of our output or flood it.
std::string printable(std::string_view text, size_t limit = 120);

}  // namespace lc::io
