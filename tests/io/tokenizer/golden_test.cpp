// Our small golden tokenizers against HF tokenizers on hostile strings; see tests/golden/README.md.
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "io/file.h"
#include "io/text.h"
#include "io/tokenizer/normalizer.h"
#include "tests/io/tokenizer/small.h"

namespace lc::io::test {
namespace {

const std::filesystem::path kFolder = LC_SOURCE_DIR "/tests/golden/tokenizer";

TEST(GoldenTokenizer, GivesTheSameIdsAsHf) {
    const Tokenizer byte_level_tokenizer = Tokenizer::load(kFolder / "byte_level.json");
    const Tokenizer byte_fallback_tokenizer = Tokenizer::load(kFolder / "byte_fallback.json");
    Json json = read_json_file(kFolder / "byte_level.json");
    if (nfc_available()) json["normalizer"] = {{"type", "NFC"}};
    json["pre_tokenizer"] = {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", true}};
    const Tokenizer nfc_tokenizer = make(json);

    std::ifstream file(kFolder / "vectors.jsonl");
    size_t count = 0;
    for (std::string line; std::getline(file, line); ++count) {
        const Json vector = parse_json(line, "vectors.jsonl");
        const auto text = vector.at("text").get<std::string>();
        const auto expected = [&](const char* key) { return vector.at(key).get<std::vector<int32_t>>(); };
        EXPECT_EQ(byte_level_tokenizer.encode(text, false), expected("byte_level")) << printable(text);
        EXPECT_EQ(byte_level_tokenizer.decode(expected("byte_level"), false), text) << printable(text);
        const auto ids = byte_fallback_tokenizer.encode(text, false);
        EXPECT_EQ(ids, expected("byte_fallback")) << printable(text);
        EXPECT_EQ(byte_fallback_tokenizer.decode(ids, false), vector.value("byte_fallback_text", text))
            << printable(text);
        if (nfc_available()) {
            EXPECT_EQ(nfc_tokenizer.encode(text, false), expected("nfc")) << printable(text);
        }
    }
    EXPECT_GT(count, 200u);
}

}  // namespace
}  // namespace lc::io::test
