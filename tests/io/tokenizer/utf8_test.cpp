#include "io/tokenizer/utf8.h"

#include <gtest/gtest.h>

#include "io/text.h"
#include "io/tokenizer/byte_alphabet.h"

namespace lc::io {
namespace {

TEST(Utf8, RepairReplacesEachMaximalIllFormedPart) {
    const std::pair<std::string_view, std::string_view> cases[] = {
        {"abc", "abc"},
        {"\xC3\xA9", "é"},
        {"\xFF", "\uFFFD"},
        {"a\xC3", "a\uFFFD"},
        {"\xC3(", "\uFFFD("},
        {"\xE2\x82", "\uFFFD"},                    // one cut-off part
        {"\xE2\x82\xE2\x82\xAC", "\uFFFD\u20AC"},  // then a whole one
        {"\xED\xA0\x80", "\uFFFD\uFFFD\uFFFD"},    // a surrogate: no part of it can begin anything
        {"\xF0\x9F\x98\x80", "\U0001F600"},
        {"\xF0\x9F\x98", "\uFFFD"},
        {"\xF0\x80\x80\x80", "\uFFFD\uFFFD\uFFFD\uFFFD"},  // overlong
        {"\xF4\x90\x80\x80", "\uFFFD\uFFFD\uFFFD\uFFFD"},  // above U+10FFFF
        {"\xC0\xAF", "\uFFFD\uFFFD"},
        {"\x80\xBF", "\uFFFD\uFFFD"},
        {"\xF1\x80\xC3\xA9", "\uFFFDé"},
    };
    for (const auto& [bytes, expected] : cases) EXPECT_EQ(repair_utf8(bytes), expected) << printable(bytes);
}

TEST(Utf8, RepairDoesNotDependOnWhereThePiecesAreCut) {
    const std::string bytes = "a\xE2\x82\xAC\xF0\x9F\x98\x80\xED\xA0\x80\xFFz\xC3";
    for (size_t cut = 0; cut <= bytes.size(); ++cut) {
        std::string out;
        Utf8Repair repair;
        repair.push(bytes.substr(0, cut), out);
        EXPECT_FALSE(first_invalid_utf8(out)) << cut;
        repair.push(bytes.substr(cut), out);
        repair.finish(out);
        EXPECT_EQ(out, repair_utf8(bytes)) << cut;
    }
}

TEST(Utf8, CodePointsRoundTrip) {
    for (const char32_t c :
         {U'a', U'\u007F', U'\u0080', U'\u07FF', U'\u0800', U'\uFFFF', U'\U00010000', U'\U0010FFFF'}) {
        std::string text;
        append_code_point(text, c);
        EXPECT_EQ(text.size(), utf8_sequence_length(text[0]));
        EXPECT_EQ(code_point_at(text, 0), c);
        EXPECT_FALSE(first_invalid_utf8(text));
    }
}

TEST(ByteAlphabet, EveryByteHasItsOwnCharacter) {
    std::string bytes;
    for (int byte = 0; byte < 256; ++byte) bytes.push_back(static_cast<char>(byte));
    const std::string characters = to_alphabet(bytes);
    EXPECT_FALSE(first_invalid_utf8(characters));
    EXPECT_EQ(from_alphabet(characters), bytes);
    EXPECT_EQ(to_alphabet(" the\n"), "ĠtheĊ");
    EXPECT_EQ(to_alphabet("\x7F\xA0\xAD"), "ġłŃ");  // the last of the stand-ins
    EXPECT_EQ(from_alphabet("a b"), std::nullopt);
    EXPECT_EQ(from_alphabet("日"), std::nullopt);
}

}  // namespace
}  // namespace lc::io
