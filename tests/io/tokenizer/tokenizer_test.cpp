// What small tokenizers, made here, do with texts. Expected values were checked with HF tokenizers 0.23.
#include "io/tokenizer/tokenizer.h"

#include <gtest/gtest.h>

#include <atomic>
#include <filesystem>
#include <fstream>
#include <random>
#include <thread>

#include "io/text.h"
#include "io/tokenizer/normalizer.h"
#include "tests/io/tokenizer/small.h"

namespace lc::io::test {
namespace {

using Pieces = std::vector<std::string>;

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

Json llama3_split() {
    return sequence(
        "pretokenizers",
        {{{"type", "Split"},
          {"pattern",
           {{"Regex",
             R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)"}}},
          {"behavior", "Isolated"},
          {"invert", false}},
         {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"trim_offsets", true}, {"use_regex", false}}});
}

// One piece a word: every byte but no merge would do, so a vocabulary that merges everything is faked by ignore_merges.
Pieces split_words(const Json& pre_tokenizer, const std::string& text, std::vector<std::string> words) {
    Json json = byte_level();
    json["pre_tokenizer"] = pre_tokenizer;
    json["model"]["ignore_merges"] = true;
    int id = 1000;
    for (const std::string& word : words) json["model"]["vocab"][to_alphabet(word)] = id++;
    Pieces result;
    for (const std::string& piece : pieces(make(json), text)) result.push_back(from_alphabet(piece).value());
    return result;
}

TEST(Tokenizer, MergesByRankThenFromTheLeft) {
    const Tokenizer tokenizer = make(byte_level({{"b", "c"}, {"a", "b"}, {"ab", "c"}, {"a", "bc"}, {"x", "x"}}));
    EXPECT_EQ(pieces(tokenizer, "abc"), (Pieces{"abc"}));
    EXPECT_EQ(tokenizer.token_id("abc"), 258);  // by a+bc: b+c has the lower rank
    EXPECT_EQ(pieces(tokenizer, "abab"), (Pieces{"ab", "ab"}));
    EXPECT_EQ(pieces(tokenizer, "xxxxx"), (Pieces{"xx", "xx", "x"}));
}

TEST(Tokenizer, LongWordsMergeAsShortOnes) {
    // Words of 32 symbols and of more take different ways; the same random merges must come out of both.
    std::vector<std::pair<std::string, std::string>> merges;
    std::vector<std::string> known{"a", "b", "c"};
    std::mt19937 random(7);
    for (int i = 0; i < 60; ++i) {
        const std::string left = known[random() % known.size()], right = known[random() % known.size()];
        if (left.size() + right.size() > 6 || std::count(merges.begin(), merges.end(), std::pair{left, right}))
            continue;
        merges.emplace_back(left, right);
        known.push_back(left + right);
    }
    const Tokenizer tokenizer = make(byte_level(merges));
    const auto rank = [&](const std::string& left, const std::string& right) {
        return std::find(merges.begin(), merges.end(), std::pair{left, right}) - merges.begin();
    };
    for (int trial = 0; trial < 300; ++trial) {
        std::string word;
        for (size_t length = 1 + random() % 90; length > 0; --length) word.push_back("abc"[random() % 3]);
        Pieces naive;
        for (const char c : word) naive.emplace_back(1, c);
        for (;;) {  // as the definition reads
            size_t best = naive.size();
            for (size_t i = 0; i + 1 < naive.size(); ++i)
                if (best == naive.size() || rank(naive[i], naive[i + 1]) < rank(naive[best], naive[best + 1])) best = i;
            if (best == naive.size() || rank(naive[best], naive[best + 1]) == std::ssize(merges)) break;
            naive[best] += naive[best + 1];
            naive.erase(naive.begin() + static_cast<std::ptrdiff_t>(best) + 1);
        }
        ASSERT_EQ(pieces(tokenizer, word), naive) << word;
    }
}

TEST(Tokenizer, IgnoreMergesTakesAWholeWord) {
    Json json = byte_level({{"a", "b"}});
    json["model"]["vocab"]["abcd"] = 900;
    EXPECT_EQ(pieces(make(json), "abcd"), (Pieces{"ab", "c", "d"}));
    json["model"]["ignore_merges"] = true;
    EXPECT_EQ(pieces(make(json), "abcd"), (Pieces{"abcd"}));
    EXPECT_EQ(make(json).vocab_size(), 901);
}

TEST(Tokenizer, Llama3SplitOnItsEdges) {
    const auto split = [](const std::string& text, std::vector<std::string> words) {
        return split_words(llama3_split(), text, std::move(words));
    };
    EXPECT_EQ(split("it'ſ", {"it", "'ſ"}), (Pieces{"it", "'ſ"}));  // ſ folds to s
    EXPECT_EQ(split("IT'LL", {"IT", "'LL"}), (Pieces{"IT", "'LL"}));
    EXPECT_EQ(split("12345678", {"123", "456", "78"}), (Pieces{"123", "456", "78"}));
    EXPECT_EQ(split("a\rb", {"\r"}), (Pieces{"a", "\r", "b"}));
    EXPECT_EQ(split("a \r\n  b", {" \r\n", " b"}), (Pieces{"a", " \r\n", " ", " b"}));
    EXPECT_EQ(split("   ", {"   "}), (Pieces{"   "}));
    // U+180E is no space any more; U+0085, U+2028 and U+2029 are, but no ends of lines.
    EXPECT_EQ(split("\u180E\u180E!", {"\u180E\u180E!"}), (Pieces{"\u180E\u180E!"}));
    EXPECT_EQ(split("\u0085\u2028\u2029", {"\u0085\u2028\u2029"}), (Pieces{"\u0085\u2028\u2029"}));
    // Letters of Unicode 15 and 16 are letters.
    EXPECT_EQ(split("\U00031350\U000105C0", {"\U00031350\U000105C0"}), (Pieces{"\U00031350\U000105C0"}));
}

TEST(Tokenizer, SplitBehaviors) {
    const auto run = [](const char* behavior, bool invert) {
        const Json split = {
            {"type", "Split"}, {"pattern", {{"String", "-"}}}, {"behavior", behavior}, {"invert", invert}};
        const Json bytes = {
            {"type", "ByteLevel"}, {"add_prefix_space", false}, {"trim_offsets", true}, {"use_regex", false}};
        return split_words(sequence("pretokenizers", {split, bytes}), "ab-cd--ef",
                           {"ab", "cd", "ef", "ab-", "cd-", "-cd", "-ef", "--", "ab-cd--ef"});
    };
    EXPECT_EQ(run("Removed", false), (Pieces{"ab", "cd", "ef"}));
    EXPECT_EQ(run("Isolated", false), (Pieces{"ab", "-", "cd", "-", "-", "ef"}));
    EXPECT_EQ(run("MergedWithPrevious", false), (Pieces{"ab-", "cd-", "-", "ef"}));
    EXPECT_EQ(run("MergedWithNext", false), (Pieces{"ab", "-cd", "-", "-ef"}));
    EXPECT_EQ(run("Contiguous", false), (Pieces{"ab", "-", "cd", "--", "ef"}));
    EXPECT_EQ(run("Removed", true), (Pieces{"-", "-", "-"}));
}

TEST(Tokenizer, DigitsAndPrefixSpace) {
    const Json digits = {{"type", "Digits"}, {"individual_digits", true}};
    const Json bytes = {
        {"type", "ByteLevel"}, {"add_prefix_space", true}, {"trim_offsets", true}, {"use_regex", false}};
    EXPECT_EQ(split_words(sequence("pretokenizers", {digits, bytes}), "a12", {" a", " 1", " 2"}),
              (Pieces{" a", " 1", " 2"}));
    const Json runs = {{"type", "Digits"}, {"individual_digits", false}};
    EXPECT_EQ(split_words(sequence("pretokenizers", {runs, bytes}), " a12", {" a", " 12"}), (Pieces{" a", " 12"}));
}

TEST(Tokenizer, AddedTokensTakeTheLongestFirst) {
    Json json = byte_level();
    json["added_tokens"].push_back(added_token(300, "<a>"));
    json["added_tokens"].push_back(added_token(301, "<a><b>"));
    json["added_tokens"].push_back(added_token(302, "dog", false));
    const Tokenizer tokenizer = make(json);
    EXPECT_EQ(tokenizer.encode("<a><b><a>", false), (std::vector<int32_t>{301, 300}));
    EXPECT_EQ(pieces(tokenizer, "x<a>dogs"), (Pieces{"x", "<a>", "dog", "s"}));
    EXPECT_EQ(tokenizer.decode(std::vector<int32_t>{300, 302, 256}, true), "dog");
    EXPECT_EQ(tokenizer.decode(std::vector<int32_t>{300, 302, 256}, false), "<a>dog<bos>");
    EXPECT_EQ(tokenizer.vocab_size(), 303);
}

TEST(Tokenizer, AddedTokensWithFlags) {
    Json json = byte_level();
    const auto run = [&](const char* flag, const std::string& text) {
        Json changed = json;
        Json token = added_token(300, "cat");
        token[flag] = true;
        changed["added_tokens"].push_back(token);
        return pieces(make(changed), text);
    };
    EXPECT_EQ(run("lstrip", "a \u2003cat b"), (Pieces{"a", "cat", "Ġ", "b"}));
    EXPECT_EQ(run("rstrip", "a cat \n b"), (Pieces{"a", "Ġ", "cat", "b"}));
    EXPECT_EQ(run("single_word", "cat cats _cat cat!"),
              (Pieces{"cat", "Ġ", "c", "a", "t", "s", "Ġ", "_", "c", "a", "t", "Ġ", "cat", "!"}));
    EXPECT_EQ(run("normalized", "a cat"), (Pieces{"a", "Ġ", "cat"}));
}

TEST(Tokenizer, NormalizedAddedTokenIsFoundByItsNormalForm) {
    Json json = byte_fallback({"▁", "a", "x"});
    Json token = added_token(500, "x x", false);
    token["normalized"] = true;  // its normal form is "▁x▁x"
    json["added_tokens"].push_back(token);
    EXPECT_EQ(pieces(make(json), "x xa"), (Pieces{"x x", "a"}));
    EXPECT_EQ(pieces(make(json), "ax x"), (Pieces{"▁", "a", "x", "▁", "x"}));
    EXPECT_EQ(pieces(make(json), "a x x"), (Pieces{"▁", "a", "x x"}));
    const auto ids = make(json).encode("a x x", false);
    EXPECT_EQ(make(json).decode(ids, false), "a x x") << "and stands for that form";
}

TEST(Tokenizer, ByteFallbackSpellsUnknownCharacters) {
    const Tokenizer tokenizer = make(byte_fallback({"▁", "a", "b"}, {{"a", "b"}, {"▁", "ab"}}));
    EXPECT_EQ(pieces(tokenizer, "ab ab"), (Pieces{"▁ab", "▁ab"}));
    EXPECT_EQ(pieces(tokenizer, "é\n"), (Pieces{"▁", "<0xC3>", "<0xA9>", "<0x0A>"}));
    EXPECT_EQ(pieces(tokenizer, "<s>ab"), (Pieces{"<s>", "▁ab"}));
    EXPECT_EQ(pieces(tokenizer, "  a"), (Pieces{"▁", "▁", "▁", "a"}));
    for (const std::string text : {"ab ab", " ab", "  é 日本 🙂\n", "", "a  b "}) {
        const auto ids = tokenizer.encode(text, true);
        EXPECT_EQ(tokenizer.decode(ids, true), text);
        EXPECT_EQ(streamed(tokenizer, ids, true), text);
    }
}

TEST(Tokenizer, UnknownCharactersWithoutBytes) {
    Json json = byte_fallback({"▁", "a"});
    json["model"]["byte_fallback"] = false;
    EXPECT_EQ(pieces(make(json), "a??a?"), (Pieces{"▁", "a", "<unk>", "a", "<unk>"}));
    json["model"]["fuse_unk"] = false;
    EXPECT_EQ(pieces(make(json), "a??a"), (Pieces{"▁", "a", "<unk>", "<unk>", "a"}));
    json["model"]["unk_token"] = nullptr;
    EXPECT_EQ(pieces(make(json), "a??a"), (Pieces{"▁", "a", "a"}));
    // One byte missing: its characters become unknown, the others are still spelled.
    Json some = byte_fallback({"▁", "a"});
    some["model"]["vocab"].erase("<0xC3>");
    EXPECT_EQ(pieces(make(some), "é?"), (Pieces{"▁", "<0x3F>", "<unk>"}));
}

TEST(Tokenizer, CutsAtSpacesOnlyWhereNoMergeCrosses) {
    // "a▁b" joins across the space: such a text must not be cut there.
    const Tokenizer tokenizer = make(byte_fallback({"▁", "a", "b"}, {{"a", "▁"}, {"a▁", "b"}}));
    EXPECT_EQ(pieces(tokenizer, "a b a"), (Pieces{"▁", "a▁b", "▁", "a"}));
}

TEST(Tokenizer, Metaspace) {
    Json json = byte_fallback({"▁", "a", "b"}, {{"▁", "a"}, {"▁", "▁"}});
    json["normalizer"] = nullptr;
    json["decoder"] = {{"type", "Metaspace"}, {"replacement", "▁"}, {"prepend_scheme", "always"}, {"split", true}};
    const auto run = [&](const char* scheme, bool split, const std::string& text) {
        json["pre_tokenizer"] = {
            {"type", "Metaspace"}, {"replacement", "▁"}, {"prepend_scheme", scheme}, {"split", split}};
        return pieces(make(json), text);
    };
    EXPECT_EQ(run("always", true, "a  a"), (Pieces{"▁a", "▁", "▁a"}));
    EXPECT_EQ(run("always", false, "a  a"), (Pieces{"▁a", "▁", "▁a"}));
    EXPECT_EQ(run("first", true, "a<s>a"), (Pieces{"▁a", "<s>", "a"}));
    EXPECT_EQ(run("always", true, "a<s>a"), (Pieces{"▁a", "<s>", "▁a"}));
    EXPECT_EQ(run("never", true, "a a"), (Pieces{"a", "▁a"}));
    EXPECT_EQ(run("always", true, " a"), (Pieces{"▁a"}));
    const Tokenizer tokenizer = make(json);
    EXPECT_EQ(tokenizer.decode(tokenizer.encode("a a  b", false), false), "a a  b");
}

TEST(Tokenizer, NoDecoderJoinsWithSpaces) {
    Json json = byte_level();
    json["decoder"] = nullptr;
    EXPECT_EQ(make(json).decode(std::vector<int32_t>{'a', 'b'}, false), "a b");
    EXPECT_EQ(streamed(make(json), std::vector<int32_t>{'a', 'b'}, false), "a b");
}

TEST(Tokenizer, NfcWhereTheBuildHasIt) {
    Json json = byte_level();
    json["normalizer"] = {{"type", "NFC"}};
    if (!nfc_available()) {
        EXPECT_THROW(make(json), std::runtime_error);
        return;
    }
    EXPECT_EQ(make(json).encode("e\u0301", false), make(json).encode("é", false));
    // Ordered by class, then composed; U+1AC7 came with Unicode 14 and stands still.
    EXPECT_EQ(make(json).encode("a\u0345\u0301", false), make(json).encode("\u00E1\u0345", false));
    for (const std::string text : {"\u1AC7\u0349", "\uAC00\u11A7", "\uAC00\u11A7\u11A8"})
        EXPECT_EQ(make(json).encode(text, false), make(byte_level()).encode(text, false)) << text;
}

TEST(Tokenizer, EmptyAndSpacesOnly) {
    for (const Json& json : {byte_level(), byte_fallback({"▁"}, {{"▁", "▁"}})}) {
        const Tokenizer tokenizer = make(json);
        EXPECT_TRUE(tokenizer.encode("", false).empty());
        EXPECT_EQ(tokenizer.encode("", true).size(), 1u);
        EXPECT_EQ(tokenizer.decode({}, false), "");
        for (size_t count = 1; count < 70; ++count) {
            const std::string spaces(count, ' ');
            EXPECT_EQ(tokenizer.decode(tokenizer.encode(spaces, false), false), spaces);
        }
    }
}

TEST(Tokenizer, IllFormedInputIsReadAsReplacementCharacters) {
    const Tokenizer tokenizer = make(byte_level());
    for (const std::string bytes : {"\xED\xA0\x80", "a\xFFz", "\xC3", "\xF0\x9F\x98"}) {
        const std::string text = tokenizer.decode(tokenizer.encode(bytes, false), false);
        EXPECT_FALSE(first_invalid_utf8(text));
        EXPECT_NE(text.find("\uFFFD"), std::string::npos);
    }
    EXPECT_EQ(tokenizer.encode("a\xFFz", false), tokenizer.encode("a\uFFFDz", false));
}

TEST(Tokenizer, IdsThatAreNotThereDecodeToNothing) {
    Json json = byte_level();
    json["model"]["vocab"]["far"] = 100'000;
    const Tokenizer tokenizer = make(json);
    EXPECT_EQ(tokenizer.decode(std::vector<int32_t>{'a', 99'999, -1, INT32_MAX, INT32_MIN, 'b'}, false), "ab");
    EXPECT_EQ(tokenizer.token_text(99'999), "");
    EXPECT_EQ(tokenizer.token_text(-1), "");
    EXPECT_EQ(tokenizer.vocab_size(), 100'001);
}

TEST(Tokenizer, StreamingEqualsDecodingForRandomIds) {
    std::mt19937 random(11);
    for (const Json& json : {byte_level({{"Ġ", "Ã"}, {"©", "Ġ"}}), byte_fallback({"▁", "a", "é"}, {{"▁", "a"}})}) {
        const Tokenizer tokenizer = make(json);
        for (int trial = 0; trial < 3000; ++trial) {
            std::vector<int32_t> ids(random() % 12);
            for (int32_t& id : ids) {
                // Half of them bytes that begin or continue characters.
                const int32_t byte =
                    random() % 2 ? std::vector<int32_t>{0xC3, 0xA9, 0xE2, 0x82, 0xAC}[random() % 5] : -1;
                id = byte >= 0 ? byte + (tokenizer.token_id("<0x00>") ? 3 : 0)
                               : static_cast<int32_t>(random() % static_cast<unsigned>(tokenizer.vocab_size()));
            }
            for (const bool skip : {true, false}) {
                const std::string text = tokenizer.decode(ids, skip);
                ASSERT_FALSE(first_invalid_utf8(text));
                ASSERT_EQ(streamed(tokenizer, ids, skip), text);
            }
        }
    }
}

TEST(Tokenizer, StreamDecoderHoldsCharactersBackUntilTheyAreWhole) {
    const Tokenizer tokenizer = make(byte_level());
    StreamDecoder decoder(tokenizer);
    EXPECT_EQ(decoder.push(0xE2), "");
    EXPECT_EQ(decoder.push(0x82), "");
    EXPECT_EQ(decoder.push(0xAC), "€");
    EXPECT_EQ(decoder.push(0xE2), "");
    EXPECT_EQ(decoder.push('a'), "\uFFFDa");
    EXPECT_EQ(decoder.push(0xE2), "");
    EXPECT_EQ(decoder.finish(), "\uFFFD");
    EXPECT_EQ(decoder.finish(), "");
    EXPECT_EQ(decoder.push('b'), "b") << "as new after finish";
}

TEST(Tokenizer, BosAndEosFromTemplateConfigAndNames) {
    const Tokenizer tokenizer = make(byte_level());
    EXPECT_EQ(tokenizer.bos_id(), 256);
    EXPECT_EQ(tokenizer.eos_id(), 257);
    Json json = byte_level();
    json["added_tokens"].push_back(added_token(300, "<|im_end|>"));
    json["post_processor"] = nullptr;
    const auto folder = std::filesystem::path(testing::TempDir()) / "lolcats_tokenizer_config";
    std::filesystem::create_directories(folder);
    std::ofstream(folder / "tokenizer.json") << json.dump();
    std::ofstream(folder / "tokenizer_config.json") << R"({"bos_token": null, "eos_token": {"content": "<|im_end|>"}})";
    Tokenizer loaded = Tokenizer::load(folder / "tokenizer.json");
    EXPECT_EQ(loaded.bos_id(), 256) << "by its name";
    EXPECT_EQ(loaded.eos_id(), 300);
    EXPECT_EQ(loaded.encode("a", true), (std::vector<int32_t>{'a'}));
    loaded.set_eos_id(7);
    EXPECT_EQ(loaded.eos_id(), 7);
    std::ofstream(folder / "tokenizer_config.json") << R"({"eos_token": "<nowhere>"})";
    EXPECT_THROW(Tokenizer::load(folder / "tokenizer.json"), std::runtime_error);
    std::filesystem::remove_all(folder);
}

TEST(Tokenizer, HashIsOfTheFilesContent) {
    EXPECT_EQ(make(byte_level()).content_hash().size(), 32u);
    EXPECT_EQ(make(byte_level()).content_hash(), make(byte_level()).content_hash());
    EXPECT_NE(make(byte_level()).content_hash(), make(byte_level({{"a", "b"}})).content_hash());
}

TEST(Tokenizer, EncodesFromManyThreads) {
    const Tokenizer tokenizer = make(byte_level({{"a", "b"}, {"ab", "c"}, {"Ġ", "ab"}}));
    std::vector<std::string> texts;
    std::vector<std::vector<int32_t>> expected;
    for (int i = 0; i < 50; ++i) {
        texts.push_back("abc " + std::to_string(i * 7919) + " ab ab abc " + std::string(static_cast<size_t>(i), 'a'));
        expected.push_back(tokenizer.encode(texts.back(), true));
    }
    std::atomic<int> wrong = 0;
    std::vector<std::thread> threads;
    for (int t = 0; t < 4; ++t)
        threads.emplace_back([&] {
            for (int round = 0; round < 20; ++round)
                for (size_t i = 0; i < texts.size(); ++i) wrong += tokenizer.encode(texts[i], true) != expected[i];
        });
    for (auto& thread : threads) thread.join();
    EXPECT_EQ(wrong, 0);
}

}  // namespace
}  // namespace lc::io::test
