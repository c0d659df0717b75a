#include <array>
#include <charconv>
#include <unordered_set>

#include "core/check.h"
#include "io/text.h"
#include "io/tokenizer/byte_alphabet.h"
#include "io/tokenizer/tokenizer_model_file.h"

namespace lc::io {
namespace {

int value_of_base64(char c) {
    if (c >= 'A' && c <= 'Z') return c - 'A';
    if (c >= 'a' && c <= 'z') return c - 'a' + 26;
    if (c >= '0' && c <= '9') return c - '0' + 52;
    return c == '+' ? 62 : c == '/' ? 63 : -1;
}

// RFC 4648 with padding; nullopt for anything else, bits that are left over included.
std::optional<std::string> from_base64(std::string_view text) {
    if (text.empty() || text.size() % 4 != 0) return std::nullopt;
    const size_t padding = text.ends_with("==") ? 2 : text.ends_with('=') ? 1 : 0;
    std::string bytes;
    uint32_t bits = 0;
    int count = 0;
    for (const char c : text.substr(0, text.size() - padding)) {
        const int value = value_of_base64(c);
        if (value < 0) return std::nullopt;
        bits = bits << 6 | static_cast<uint32_t>(value), count += 6;
        if (count < 8) continue;
        count -= 8;
        bytes.push_back(static_cast<char>(bits >> count & 0xFF));
        bits &= (1u << count) - 1;
    }
    return bits == 0 ? std::optional(bytes) : std::nullopt;
}

}  // namespace

bool looks_like_tiktoken(std::string_view bytes) {
    const std::string_view line = bytes.substr(0, bytes.find('\n'));
    const size_t space = line.find(' ');
    return space != std::string_view::npos && from_base64(line.substr(0, space)).has_value();
}

std::vector<Piece> read_tiktoken(std::string_view text, const std::string& source) {
    std::vector<Piece> pieces;
    std::unordered_set<std::string> seen;
    size_t number = 0;
    for (size_t begin = 0, end; begin < text.size(); begin = end + 1) {
        end = std::min(text.find('\n', begin), text.size());
        ++number;
        const std::string_view line = text.substr(begin, end - begin);
        const size_t space = line.find(' ');
        const std::optional<std::string> bytes =
            space == std::string_view::npos ? std::nullopt : from_base64(line.substr(0, space));
        LC_REQUIRE(BadInput, bytes, "{}:{}: must be \"BASE64 RANK\", got \"{}\"", source, number, printable(line));
        const std::string_view rest = line.substr(space + 1);
        size_t rank = 0;
        const auto [stop, error] = std::from_chars(rest.data(), rest.data() + rest.size(), rank);
        LC_REQUIRE(BadInput, error == std::errc() && stop == rest.data() + rest.size() && rank == pieces.size(),
                   "{}:{}: rank must be {}, got \"{}\"", source, number, pieces.size(), printable(rest));
        std::string piece = to_alphabet(*bytes);
        LC_REQUIRE(BadInput, seen.insert(piece).second, "{}:{}: the bytes '{}' occur twice", source, number,
                   printable(*bytes));
        pieces.push_back({.text = std::move(piece), .score = -static_cast<double>(rank)});
    }
    return pieces;
}

std::vector<Piece> llama3_special_tokens() {
    std::vector<std::string> names = {"begin_of_text",
                                      "end_of_text",
                                      "reserved_special_token_0",
                                      "reserved_special_token_1",
                                      "reserved_special_token_2",
                                      "reserved_special_token_3",
                                      "start_header_id",
                                      "end_header_id",
                                      "reserved_special_token_4",
                                      "eot_id"};
    for (int i = 5; i <= 250; ++i) names.push_back(fmt::format("reserved_special_token_{}", i));
    std::vector<Piece> pieces;
    for (const std::string& name : names)
        pieces.push_back({.text = fmt::format("<|{}|>", name), .type = PieceType::control});
    return pieces;
}

}  // namespace lc::io
