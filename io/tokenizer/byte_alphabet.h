// GPT-2's printable stand-ins for bytes: every byte has one character (a space is 'Ġ'), so that the pieces of a
// byte-level vocabulary can be written in JSON. '!'..'~', U+00A1..U+00AC and U+00AE..U+00FF stand for themselves, the
// other bytes, in order, are U+0100, U+0101, ...
#pragma once
#include <optional>
#include <string>
#include <string_view>

namespace lc::io {

char32_t alphabet_of_byte(unsigned char byte);
std::optional<unsigned char> byte_of_alphabet(char32_t code_point);

std::string to_alphabet(std::string_view bytes);                        // " the" -> "Ġthe"
std::optional<std::string> from_alphabet(std::string_view characters);  // nullopt: holds another character

}  // namespace lc::io
