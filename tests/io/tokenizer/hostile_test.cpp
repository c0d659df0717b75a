// Texts made to be slow: time must stay in proportion to the length. The bounds hold on a slow, busy machine.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <ctime>

#include "core/check.h"
#include "tests/assets.h"
#include "tests/io/tokenizer/small.h"

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define LC_TEST_SANITIZED 1
#else
#define LC_TEST_SANITIZED 0
#endif

namespace lc::io::test {
namespace {

constexpr double kLeastMegabytesPerSecond = LC_TEST_SANITIZED ? 0.02 : 0.3;
constexpr size_t kMillion = LC_TEST_SANITIZED ? size_t{1} << 17 : size_t{1} << 20;

// Of this thread, so that a busy machine does not count (much).
double cpu_seconds() {
    timespec time{};
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
    return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

std::string repeated(std::string_view part, size_t bytes) {
    std::string text;
    while (text.size() < bytes) text += part;
    return text;
}

std::vector<std::pair<std::string, std::string>> hostile_texts() {
    std::string combining = "a";
    while (combining.size() < kMillion) combining += "\u0316\u0301";
    return {
        {"equal letters", std::string(kMillion, 'a')},
        {"spaces", std::string(kMillion, ' ')},
        {"spaces, then a letter", std::string(kMillion, ' ') + "a"},
        {"line ends", std::string(kMillion, '\n')},
        {"spaces and line ends", repeated(" \n", kMillion)},
        {"many spaces before each line end", repeated(std::string(1000, ' ') + "\n", kMillion)},
        {"quotes", std::string(kMillion, '\'')},
        {"digits", std::string(kMillion, '7')},
        {"punctuation", repeated("!?", kMillion)},
        {"one word", repeated("supercalifragilistic", 10 * kMillion)},
        {"a CJK word", repeated("漢字仮名", kMillion)},
        {"emoji", repeated("👩‍👩‍👧", kMillion)},
        {"combining marks out of order", combining},
        {"no UTF-8", std::string(kMillion, '\xFF')},
        {"cut-off sequences", repeated("\xE2\x82", kMillion)},
        {"zeros", std::string(kMillion, '\0')},
        {"beginnings of special tokens", repeated("<|<s<bo<", kMillion)},
        {"special tokens", repeated("<s><bos></s><|begin_of_text|>", kMillion)},
        {"new characters", repeated("\U000105C0\u180E", kMillion)},
    };
}

void check_all(const std::string& name, const Tokenizer& tokenizer) {
    for (const auto& [what, text] : hostile_texts()) {
        const double begin = cpu_seconds();
        const auto ids = tokenizer.encode(text, false);
        const double speed = static_cast<double>(text.size()) / 1e6 / (cpu_seconds() - begin);
        if (speed < 5) fmt::print("{}: {}: {:.1f} MB/s\n", name, what, speed);
        EXPECT_GT(speed, kLeastMegabytesPerSecond) << name << ": " << what;
        EXPECT_FALSE(ids.empty());
    }
}

TEST(HostileText, SmallTokenizers) {
    std::vector<std::pair<std::string, std::string>> merges;
    for (std::string run = "a"; run.size() < 64; run += run) merges.emplace_back(run, run);
    Json nfc = byte_level(merges);
    nfc["normalizer"] = {{"type", "NFC"}};
    check_all("byte level", make(nfc));
    check_all("byte fallback", make(byte_fallback({"▁", "a"}, merges)));
}

TEST(HostileText, RealTokenizers) {
    const auto assets = lc::test::assets_dir();
    if (!assets) GTEST_SKIP() << lc::test::kNoAssets;
    for (const char* name : {"llama3", "llama2"})
        check_all(name, Tokenizer::load(*assets / "tokenizers" / name / "tokenizer.json"));
}

TEST(HostileTokenizer, AddedTokensOfWhiteSpaceThatSwallowWhiteSpace) {
    Json json = byte_level();
    Json token = added_token(400, " ");
    token["rstrip"] = token["lstrip"] = true;
    json["added_tokens"].push_back(token);
    const double begin = cpu_seconds();
    EXPECT_GT(make(json).encode(std::string(kMillion, ' '), false).size(), 0u);
    EXPECT_LT(cpu_seconds() - begin, 10);
}

// A pattern that backtracks without end meets the match limit: an error that names the pattern's place, in finite time.
TEST(HostileTokenizer, CatastrophicPatternIsStopped) {
    Json json = byte_level();
    json["pre_tokenizer"] =
        sequence("pretokenizers", {{{"type", "Split"},
                                    {"pattern", {{"Regex", "(?:a|a)*(?:a|a)*(?:a|a)*[0-9]"}}},
                                    {"behavior", "Isolated"},
                                    {"invert", false}},
                                   {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", false}}});
    try {
        make(json).encode(std::string(20'000, 'a'), false);
        FAIL() << "no error";
    } catch (const Error& error) {
        EXPECT_EQ(error.kind(), ErrorKind::BadInput);
        EXPECT_NE(std::string(error.what()).find("pattern.Regex': the pattern fails"), std::string::npos)
            << error.what();
    }
}

}  // namespace
}  // namespace lc::io::test
