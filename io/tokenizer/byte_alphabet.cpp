#include "io/tokenizer/byte_alphabet.h"

#include <array>
#include <cstdint>

#include "io/tokenizer/utf8.h"

namespace lc::io {
namespace {

constexpr size_t kCodePoints = 0x144;  // the last stand-in is U+0143

struct Tables {
    std::array<char32_t, 256> character{};
    std::array<int16_t, kCodePoints> byte{};
};

constexpr Tables make_tables() {
    Tables tables;
    tables.byte.fill(-1);
    char32_t next = 0x100;
    for (char32_t byte = 0; byte < 256; ++byte) {
        const bool printable = (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte <= 0xFF && byte != 0xAD);
        const char32_t character = printable ? byte : next++;
        tables.character[byte] = character;
        tables.byte[character] = static_cast<int16_t>(byte);
    }
    return tables;
}

constexpr Tables kTables = make_tables();

}  // namespace

char32_t alphabet_of_byte(unsigned char byte) {
    return kTables.character[byte];
}

std::optional<unsigned char> byte_of_alphabet(char32_t code_point) {
    if (code_point >= kCodePoints || kTables.byte[code_point] < 0) return std::nullopt;
    return static_cast<unsigned char>(kTables.byte[code_point]);
}

std::string to_alphabet(std::string_view bytes) {
    std::string result;
    for (const char byte : bytes) append_code_point(result, alphabet_of_byte(static_cast<unsigned char>(byte)));
    return result;
}

std::optional<std::string> from_alphabet(std::string_view characters) {
    std::string result;
    for (size_t i = 0; i < characters.size(); i += utf8_sequence_length(characters[i])) {
        const auto byte = byte_of_alphabet(code_point_at(characters, i));
        if (!byte) return std::nullopt;
        result.push_back(static_cast<char>(*byte));
    }
    return result;
}

}  // namespace lc::io
