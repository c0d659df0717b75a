#include "io/tokenizer/bpe_trainer.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <chrono>
#include <cstdlib>

#include "core/check.h"
#include "io/file.h"
#include "io/json.h"
#include "io/tokenizer/tokenizer.h"
#include "tests/assets.h"

namespace lc::io {
namespace {

Json trained(std::string_view text, const BpeTrainerOptions& options) {
    return parse_json(train_byte_level_bpe(text, options), "trained");
}

TEST(BpeTrainer, MergesTheMostFrequentPairFirst) {
    // Sennrich's example: es and est 9 times, then 7 times lo; of equals the pair of older pieces wins ("lo", not
    // "Ġl").
    std::string text;
    for (const auto& [word, count] : {std::pair{" low", 5}, {" lower", 2}, {" newest", 6}, {" widest", 3}})
        for (int i = 0; i < count; ++i) text += word;
    const Json json = trained(text, {.vocab_size = 3 + 256 + 4});
    const Json expected = Json::array({{"e", "s"}, {"es", "t"}, {"l", "o"}, {"Ġ", "lo"}});
    EXPECT_EQ(json.at("model").at("merges"), expected);
    EXPECT_EQ(json.at("model").at("vocab").at("est"), 3 + 256 + 1);
    EXPECT_EQ(json.at("model").at("vocab").at("!"), 3);
    EXPECT_EQ(json.at("model").at("vocab").size(), 263u);
}

TEST(BpeTrainer, ResultLoadsAndRoundTrips) {
    const std::string text =
        "The quick brown fox, the quicker fox; 1234 foxes!\n\nÀ la carte — naïve 日本語 🙂\r\n";
    const std::string json = train_byte_level_bpe(text, {.vocab_size = 320});
    const Tokenizer tokenizer = Tokenizer::parse(json, "trained");
    EXPECT_LE(tokenizer.vocab_size(), 320);
    EXPECT_EQ(tokenizer.bos_id(), 0);
    EXPECT_EQ(tokenizer.eos_id(), 1);
    const auto ids = tokenizer.encode(text, true);
    EXPECT_EQ(ids.front(), 0);
    EXPECT_LT(ids.size(), text.size());
    EXPECT_EQ(tokenizer.decode(ids, true), text);
    EXPECT_EQ(train_byte_level_bpe(text, {.vocab_size = 320}), json) << "twice the same";
}

TEST(BpeTrainer, RunsOfOneCharacter) {
    const Tokenizer tokenizer = Tokenizer::parse(
        train_byte_level_bpe(std::string(1000, 'a') + " " + std::string(7, 'a'), {.vocab_size = 300}), "runs");
    const std::string text(999, 'a');
    EXPECT_EQ(tokenizer.decode(tokenizer.encode(text, false), false), text);
    EXPECT_LT(tokenizer.encode(text, false).size(), 10u);
}

TEST(BpeTrainer, StopsWhenNoPairIsLeft) {
    const Json json = trained("ab", {.vocab_size = 1000});
    EXPECT_EQ(json.at("model").at("merges").size(), 1u);
    EXPECT_EQ(trained("", {.vocab_size = 1000}).at("model").at("merges").size(), 0u);
    EXPECT_EQ(trained("ab ab cd", {.vocab_size = 1000, .min_frequency = 2}).at("model").at("merges").size(), 1u);
}

TEST(BpeTrainer, OptionsThatDoNotFitAreRefused) {
    const BpeTrainerOptions cases[] = {
        {.vocab_size = 258},
        {.vocab_size = -1},
        {.special_tokens = {"<bos>", "<bos>"}, .bos_token = ""},
        {.special_tokens = {"x"}, .bos_token = ""},
        {.special_tokens = {"<s>"}, .bos_token = "<bos>"},
    };
    for (const auto& options : cases) EXPECT_THROW(train_byte_level_bpe("text", options), Error);
    EXPECT_THROW(train_byte_level_bpe("text", {.split_pattern = "("}), Error);
}

TEST(BpeTrainer, IllFormedTextAndNoBos) {
    const std::string json =
        train_byte_level_bpe("caf\xC3 \xFF\xFE", {.vocab_size = 270, .special_tokens = {}, .bos_token = ""});
    const Tokenizer tokenizer = Tokenizer::parse(json, "trained");
    EXPECT_EQ(tokenizer.bos_id(), std::nullopt);
    EXPECT_EQ(tokenizer.decode(tokenizer.encode("caf\xC3", true), false), "caf\uFFFD");
}

// Also writes the file where LOLCATS_TRAINED_TOKENIZER says, for a look at it from outside.
TEST(BpeTrainer, MegabytesTakeSeconds) {
    const auto assets = test::assets_dir();
    if (!assets) GTEST_SKIP() << test::kNoAssets;
    const std::string text = read_file(*assets / "text" / "books_train.txt", int64_t{64} << 20);
    const auto begin = std::chrono::steady_clock::now();
    const std::string json = train_byte_level_bpe(text, {.vocab_size = 8192});
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - begin;
    fmt::print("{:.1f} MB, 8192 pieces: {:.1f} s\n", static_cast<double>(text.size()) / 1e6, seconds.count());
    if (const char* path = std::getenv("LOLCATS_TRAINED_TOKENIZER")) write_file_atomic(path, json);
    const Tokenizer tokenizer = Tokenizer::parse(json, "trained");
    EXPECT_EQ(tokenizer.vocab_size(), 8192);
    const auto ids = tokenizer.encode(text, false);
    EXPECT_EQ(tokenizer.decode(ids, false), text);
    EXPECT_LT(seconds.count(), 120);
}

}  // namespace
}  // namespace lc::io
