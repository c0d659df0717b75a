// Real tokenizers against what HF tokenizers says about them. Skipped where the test assets are not.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <ctime>
#include <fstream>

#include "io/file.h"
#include "io/json.h"
#include "io/text.h"
#include "io/tokenizer/tokenizer.h"
#include "tests/assets.h"

namespace lc::io {
namespace {

namespace fs = std::filesystem;

struct Vector {
    std::string text;
    std::vector<int32_t> ids;
    std::optional<std::string> decoded;  // where it is not the text itself
};

Vector to_vector(const Json& json, const std::string& ids_key) {
    Vector vector{json.at("text").get<std::string>(), json.at(ids_key).get<std::vector<int32_t>>(), std::nullopt};
    if (json.contains("decoded")) vector.decoded = json.at("decoded").get<std::string>();
    return vector;
}

std::vector<Vector> read_lines(const fs::path& path) {
    std::vector<Vector> vectors;
    std::ifstream file(path);
    for (std::string line; std::getline(file, line);)
        vectors.push_back(to_vector(parse_json(line, path.string()), "ids"));
    return vectors;
}

// Of this thread, so that a busy machine does not count (much).
double cpu_seconds() {
    timespec time{};
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
    return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

std::string streamed(const Tokenizer& tokenizer, std::span<const int32_t> ids, bool skip_special_tokens) {
    StreamDecoder decoder(tokenizer, skip_special_tokens);
    std::string text;
    for (const int32_t id : ids) {
        const std::string part = decoder.push(id);
        EXPECT_FALSE(first_invalid_utf8(part));
        text += part;
    }
    return text + decoder.finish();
}

void check(const Tokenizer& tokenizer, const std::vector<Vector>& vectors) {
    ASSERT_FALSE(vectors.empty());
    for (const Vector& vector : vectors) {
        const auto ids = tokenizer.encode(vector.text, false);
        ASSERT_EQ(ids, vector.ids) << printable(vector.text, 300);
        const std::string text = tokenizer.decode(ids, false);
        ASSERT_EQ(text, vector.decoded.value_or(vector.text)) << printable(vector.text, 300);
        ASSERT_EQ(streamed(tokenizer, ids, false), text) << printable(vector.text, 300);
        ASSERT_EQ(tokenizer.encode(vector.text, false), ids) << "the second time, from the cache of words";
    }
}

class AssetTokenizer : public testing::TestWithParam<const char*> {};

TEST_P(AssetTokenizer, GivesTheSameIdsAsHf) {
    const auto assets = test::assets_dir();
    if (!assets) GTEST_SKIP() << test::kNoAssets;
    const fs::path folder = *assets / "tokenizers" / GetParam();
    check(Tokenizer::load(folder / "tokenizer.json"), read_lines(folder / "vectors.jsonl"));
}

INSTANTIATE_TEST_SUITE_P(Vectors, AssetTokenizer, testing::Values("llama3", "llama2", "mistral_v0.1", "gpt2", "qwen3"),
                         [](const auto& test) {
                             std::string name = test.param;
                             std::erase_if(name, [](char c) { return c == '.' || c == '_'; });
                             return name;
                         });

TEST(AssetTokenizers, Teacher28m) {
    const auto assets = test::assets_dir();
    if (!assets) GTEST_SKIP() << test::kNoAssets;
    const Tokenizer tokenizer = Tokenizer::load(*assets / "teacher-28m" / "tokenizer.json");
    EXPECT_EQ(tokenizer.vocab_size(), 8192);
    EXPECT_EQ(tokenizer.bos_id(), 0);
    EXPECT_EQ(tokenizer.eos_id(), 1);
    std::vector<Vector> vectors;
    for (const Json& json : read_json_file(*assets / "teacher-28m" / "golden" / "tokenizer_vectors.json")) {
        vectors.push_back(to_vector(json, "ids_no_special"));
        const auto ids = json.at("ids").get<std::vector<int32_t>>();
        EXPECT_EQ(tokenizer.encode(vectors.back().text, true), ids);
        EXPECT_EQ(tokenizer.decode(ids, true), vectors.back().decoded);
        vectors.back().decoded.reset();  // it is without special tokens
    }
    check(tokenizer, vectors);
}

TEST(AssetTokenizers, Stories260k) {
    const auto assets = test::assets_dir();
    if (!assets) GTEST_SKIP() << test::kNoAssets;
    const Tokenizer tokenizer = Tokenizer::load(*assets / "stories260k" / "tokenizer.json");
    EXPECT_EQ(tokenizer.vocab_size(), 512);
    EXPECT_EQ(tokenizer.bos_id(), 1);
    EXPECT_EQ(tokenizer.eos_id(), 2);
    std::vector<Vector> vectors;
    const Json reference = read_json_file(*assets / "stories260k" / "golden" / "reference.json");
    for (const Json& json : reference.at("tokenizer_vectors")) vectors.push_back(to_vector(json, "ids"));
    check(tokenizer, vectors);
}

// Speed where it is asked for: Llama 3 on English text. Printed, and far below what it is on any machine before it
// fails.
TEST(AssetTokenizers, Llama3SpeedOnEnglish) {
    const auto assets = test::assets_dir();
    if (!assets) GTEST_SKIP() << test::kNoAssets;
    const std::string text = read_file(*assets / "text" / "books_val.txt", int64_t{64} << 20);
    for (const char* name : {"llama3", "qwen3", "gpt2", "llama2"}) {
        const Tokenizer tokenizer = Tokenizer::load(*assets / "tokenizers" / name / "tokenizer.json");
        const double begin = cpu_seconds();
        const auto ids = tokenizer.encode(text, false);
        const double middle = cpu_seconds();
        const std::string decoded = tokenizer.decode(ids, false);
        const double end = cpu_seconds();
        EXPECT_EQ(decoded, text);
        const double megabytes = static_cast<double>(text.size()) / 1e6;
        fmt::print("{}: {} ids, encode {:.1f} MB/s, decode {:.1f} MB/s\n", name, ids.size(),
                   megabytes / (middle - begin), megabytes / (end - middle));
        EXPECT_GT(megabytes / (middle - begin), 0.2) << name;
    }
}

// LOLCATS_TOKENIZER_VECTORS=<tokenizer.json>:<vectors.jsonl> compares any tokenizer with any vectors, one
// {"text": ..., "ids": [...], "decoded": ...} a line: for large sets that are made on the spot.
TEST(ExternalVectors, FromTheEnvironment) {
    const char* variable = std::getenv("LOLCATS_TOKENIZER_VECTORS");
    if (variable == nullptr) GTEST_SKIP() << "LOLCATS_TOKENIZER_VECTORS is not set";
    const std::string value = variable;
    const size_t colon = value.find(':');
    ASSERT_NE(colon, std::string::npos) << "must be <tokenizer.json>:<vectors.jsonl>";
    const Tokenizer tokenizer = Tokenizer::load(value.substr(0, colon));
    const std::vector<Vector> vectors = read_lines(value.substr(colon + 1));
    size_t wrong_ids = 0, wrong_text = 0;
    for (const Vector& vector : vectors) {
        const auto ids = tokenizer.encode(vector.text, false);
        const std::string text = tokenizer.decode(vector.ids, false);
        const bool same_ids = ids == vector.ids;
        const bool same_text =
            text == vector.decoded.value_or(vector.text) && streamed(tokenizer, vector.ids, false) == text;
        wrong_ids += !same_ids;
        wrong_text += !same_text;
        if ((!same_ids && wrong_ids <= 5) || (!same_text && wrong_text <= 5))
            ADD_FAILURE() << (same_ids ? "text of " : "ids of ") << Json(vector.text).dump(-1, ' ', true) << "\n got "
                          << Json(ids).dump() << " " << Json(text).dump(-1, ' ', true) << "\nwant "
                          << Json(vector.ids).dump() << " "
                          << Json(vector.decoded.value_or(vector.text)).dump(-1, ' ', true);
    }
    fmt::print("{} vectors: {} with other ids, {} with another text\n", vectors.size(), wrong_ids, wrong_text);
    EXPECT_EQ(wrong_ids + wrong_text, 0u);
}

}  // namespace
}  // namespace lc::io
