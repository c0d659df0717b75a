// Tokenizers that come as GGUF metadata, SentencePiece models and tiktoken ranks give the ids of their tokenizer.json.
#include "io/tokenizer/load_tokenizer.h"

#include <gtest/gtest.h>

#include <fstream>

#include "io/file.h"
#include "io/text.h"
#include "io/tokenizer/byte_alphabet.h"
#include "io/tokenizer/tokenizer_model_file.h"
#include "tests/assets.h"
#include "tests/io/faults.h"
#include "tests/io/gguf_bytes.h"
#include "tests/io/tokenizer/small.h"

namespace lc::io::test {
namespace {

const std::filesystem::path kFolder = LC_SOURCE_DIR "/tests/golden/tokenizer";

std::vector<std::string> golden_texts() {
    std::vector<std::string> texts;
    std::ifstream file(kFolder / "vectors.jsonl");
    for (std::string line; std::getline(file, line);)
        texts.push_back(parse_json(line, "vectors.jsonl").at("text").get<std::string>());
    return texts;
}

void expect_same(const Tokenizer& got, const Tokenizer& wanted, const std::vector<std::string>& texts) {
    EXPECT_EQ(got.vocab_size(), wanted.vocab_size());
    EXPECT_EQ(got.bos_id(), wanted.bos_id());
    EXPECT_EQ(got.eos_id(), wanted.eos_id());
    for (const std::string& text : texts) {
        const auto ids = wanted.encode(text, true);
        EXPECT_EQ(got.encode(text, true), ids) << printable(text);
        EXPECT_EQ(got.decode(ids, true), wanted.decode(ids, true)) << printable(text);
        EXPECT_EQ(got.is_special(ids.front()), wanted.is_special(ids.front()));
    }
}

// Ids and texts of a vectors.jsonl that HF tokenizers computed, without special tokens.
void expect_vectors(const Tokenizer& tokenizer, const std::filesystem::path& path) {
    std::ifstream file(path);
    size_t count = 0;
    for (std::string line; std::getline(file, line); ++count) {
        const Json vector = parse_json(line, path.string());
        EXPECT_EQ(tokenizer.encode(vector.at("text").get<std::string>(), false),
                  vector.at("ids").get<std::vector<int32_t>>())
            << line.substr(0, 100);
    }
    EXPECT_GT(count, 50u);
}

// The pieces of a tokenizer.json as GGUF holds them.
std::vector<std::string> gguf_of(const Json& json, const std::string& model, const std::string& pre) {
    std::map<int64_t, std::string> pieces;
    std::map<std::string, int32_t> types;
    for (const auto& [piece, id] : json["model"]["vocab"].items()) pieces[id.get<int64_t>()] = piece;
    for (const Json& token : json["added_tokens"]) {
        pieces[token["id"].get<int64_t>()] = token["content"];
        types[token["content"]] = token["special"] ? 3 : 4;
    }
    std::vector<std::string> tokens, merges;
    std::vector<int32_t> token_types;
    for (const auto& [id, piece] : pieces) {
        EXPECT_EQ(id, std::ssize(tokens));
        tokens.push_back(piece), token_types.push_back(types.contains(piece) ? types[piece] : 1);
    }
    for (const Json& merge : json["model"]["merges"])
        merges.push_back(merge.is_string() ? merge.get<std::string>()
                                           : merge[0].get<std::string>() + " " + merge[1].get<std::string>());
    return {gguf_text("tokenizer.ggml.model", model), gguf_text("tokenizer.ggml.pre", pre),
            gguf_texts("tokenizer.ggml.tokens", tokens),
            gguf_numbers<int32_t>("tokenizer.ggml.token_type", 5, token_types),
            gguf_texts("tokenizer.ggml.merges", merges)};
}

TEST(GgufTokenizer, ByteLevelByGpt2sWords) {
    Json json = read_json_file(kFolder / "byte_level.json");
    json["pre_tokenizer"] = {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", true}};
    json["post_processor"] = nullptr;
    const ScratchDir directory;
    const auto path = directory.write("m.gguf", gguf_bytes(gguf_of(json, "gpt2", "gpt-2"), {}));
    expect_same(load_tokenizer(path), make(json), golden_texts());
    // SmolLM's words differ in digits only.
    const Tokenizer smollm = load_tokenizer(directory.write("s.gguf", gguf_bytes(gguf_of(json, "gpt2", "smollm"), {})));
    json["pre_tokenizer"] = {
        {"type", "Sequence"},
        {"pretokenizers", {{{"type", "Digits"}, {"individual_digits", true}}, json["pre_tokenizer"]}}};
    expect_same(smollm, make(json), golden_texts());
}

TEST(GgufTokenizer, Llama3) {
    const auto assets = lc::test::assets_dir();
    if (!assets) GTEST_SKIP() << lc::test::kNoAssets;
    const auto folder = *assets / "tokenizers" / "llama3";
    auto pairs = gguf_of(read_json_file(folder / "tokenizer.json"), "gpt2", "llama-bpe");
    pairs.push_back(gguf_u32("tokenizer.ggml.bos_token_id", 128000));
    pairs.push_back(gguf_u32("tokenizer.ggml.eos_token_id", 128001));
    const ScratchDir directory;
    const Tokenizer tokenizer = load_tokenizer(directory.write("m.gguf", gguf_bytes(pairs, {})));
    expect_vectors(tokenizer, folder / "vectors.jsonl");
    expect_same(tokenizer, Tokenizer::load(folder / "tokenizer.json"), golden_texts());
}

TEST(GgufTokenizer, SentencePieceByScores) {
    const auto assets = lc::test::assets_dir();
    if (!assets) GTEST_SKIP() << lc::test::kNoAssets;
    const auto folder = *assets / "tokenizers" / "llama2";
    const SentencePieceModel model =
        read_sentencepiece(read_file(folder / "tokenizer.model", 1 << 22), "tokenizer.model");
    std::vector<std::string> tokens;
    std::vector<float> scores;
    std::vector<int32_t> types;
    for (const Piece& piece : model.parts.pieces) {
        tokens.push_back(piece.text), scores.push_back(static_cast<float>(piece.score));
        types.push_back(static_cast<int32_t>(piece.type));
    }
    const ScratchDir directory;
    const auto path = directory.write(
        "m.gguf",
        gguf_bytes({gguf_text("tokenizer.ggml.model", "llama"), gguf_texts("tokenizer.ggml.tokens", tokens),
                    gguf_numbers("tokenizer.ggml.scores", 6, scores),
                    gguf_numbers("tokenizer.ggml.token_type", 5, types), gguf_u32("tokenizer.ggml.bos_token_id", 1),
                    gguf_u32("tokenizer.ggml.eos_token_id", 2), gguf_u32("tokenizer.ggml.unknown_token_id", 0)},
                   {}));
    expect_vectors(load_tokenizer(path), folder / "vectors.jsonl");
}

TEST(GgufTokenizer, WhatIsNotSupportedIsRefusedByName) {
    const ScratchDir directory;
    const auto refused = [&](const std::vector<std::string>& pairs, const std::vector<std::string>& parts) {
        const auto path = directory.write("m.gguf", gguf_bytes(pairs, {}));
        expect_refused([&] { load_tokenizer(path); }, parts);
    };
    const std::string model = gguf_text("tokenizer.ggml.model", "llama"),
                      tokens = gguf_texts("tokenizer.ggml.tokens", {"<unk>", "a", "b"}),
                      scores = gguf_numbers<float>("tokenizer.ggml.scores", 6, {0, -1, -2});
    refused({}, {"tokenizer.ggml.model", "missing"});
    refused({gguf_text("tokenizer.ggml.model", "bert")}, {"tokenizer.ggml.model", "bert"});
    refused({model}, {"tokenizer.ggml.tokens", "missing"});
    refused({model, tokens}, {"tokenizer.ggml.scores", "missing"});
    refused({model, tokens, gguf_numbers<float>("tokenizer.ggml.scores", 6, {1})},
            {"tokenizer.ggml.scores", "array of 3"});
    refused({model, tokens, scores, gguf_numbers<int32_t>("tokenizer.ggml.token_type", 5, {1, 2, 9})},
            {"tokenizer.ggml.token_type", "1 to 6", "9"});
    refused({model, tokens, scores, gguf_u32("tokenizer.ggml.bos_token_id", 3)}, {"tokenizer.ggml.bos_token_id", "3"});
    refused({model, tokens, scores}, {"BOS is to be added"});
    refused({model, gguf_texts("tokenizer.ggml.tokens", {"a", "a"}),
             gguf_numbers<float>("tokenizer.ggml.scores", 6, {1, 2})},
            {"'a' occurs twice"});
    refused({model, gguf_texts("tokenizer.ggml.tokens", {"a", ""}),
             gguf_numbers<float>("tokenizer.ggml.scores", 6, {1, 2})},
            {"token 1 is empty"});
    refused({gguf_text("tokenizer.ggml.model", "gpt2"), tokens, gguf_text("tokenizer.ggml.pre", "tekken")},
            {"tokenizer.ggml.pre", "tekken"});
    refused({gguf_text("tokenizer.ggml.model", "gpt2"), tokens, gguf_text("tokenizer.ggml.pre", "gpt-2")},
            {"tokenizer.ggml.merges", "missing"});
}

// --- tokenizer.model ---
TEST(SentencePiece, Llama2GivesTheIdsOfHf) {
    const auto assets = lc::test::assets_dir();
    if (!assets) GTEST_SKIP() << lc::test::kNoAssets;
    const auto folder = *assets / "tokenizers" / "llama2";
    const ScratchDir directory;  // without its tokenizer.json
    std::filesystem::copy_file(folder / "tokenizer.model", directory / "tokenizer.model");
    std::filesystem::copy_file(folder / "tokenizer_config.json", directory / "tokenizer_config.json");
    const Tokenizer tokenizer = load_tokenizer(directory.path());
    expect_vectors(tokenizer, folder / "vectors.jsonl");
    expect_same(tokenizer, Tokenizer::load(folder / "tokenizer.json"), golden_texts());
}

std::string varint(uint64_t value) {
    std::string bytes;
    for (; value >= 0x80; value >>= 7) bytes.push_back(static_cast<char>(value | 0x80));
    return bytes + static_cast<char>(value);
}
std::string field(uint64_t number, const std::string& bytes) {
    return varint(number << 3 | 2) + varint(bytes.size()) + bytes;
}
std::string field(uint64_t number, uint64_t value) {
    return varint(number << 3) + varint(value);
}
std::string piece(const std::string& text, float score, uint64_t type = 1) {
    return field(1, field(1, text) + varint(2 << 3 | 5) + raw(score) + field(3, type));
}
// <unk> <s> </s>, a, b, ab, and the byte of '\n'
const std::string kPieces = piece("<unk>", 0, 2) + piece("<s>", 0, 3) + piece("</s>", 0, 3) + piece("a", -3) +
                            piece("b", -4) + piece("ab", -1) + piece("<0x0A>", 0, 6) + piece("\u2581", -5);
const std::string kTrainer = field(2, field(3, 2) + field(35, 1)), kNormalizer = field(3, field(3, 0) + field(4, 0));

TEST(SentencePiece, SmallOneByHand) {
    const ScratchDir directory;
    const Tokenizer tokenizer = load_tokenizer(directory.write("tokenizer.model", kPieces + kTrainer + kNormalizer));
    EXPECT_EQ(tokenizer.encode("abba\n b", true), (std::vector<int32_t>{1, 5, 4, 3, 6, 7, 4}));
    EXPECT_EQ(tokenizer.encode("<s>a", false), (std::vector<int32_t>{1, 3}));
    EXPECT_EQ(tokenizer.decode(std::vector<int32_t>{1, 5, 6, 7, 4}, true), "ab\n b");
    EXPECT_EQ(tokenizer.eos_id(), 2);
    directory.write("tokenizer_config.json", R"({"add_bos_token": false, "add_eos_token": true})");
    EXPECT_EQ(load_tokenizer(directory / "tokenizer.model").encode("a", true), (std::vector<int32_t>{3, 2}));
}

// User-defined pieces are found where spaces are marks already, and only the whole text gets a space before it.
TEST(SentencePiece, UserDefinedPieces) {
    const ScratchDir directory;
    const std::string pieces = kPieces + piece("\u2581\u2581", 0, 4) + piece("<td>", 0, 4);
    const auto encode = [&](uint64_t dummy_prefix, const std::string& text) {
        const std::string normalizer = field(3, field(3, dummy_prefix) + field(4, 0));
        return load_tokenizer(directory.write("tokenizer.model", pieces + kTrainer + normalizer)).encode(text, false);
    };
    EXPECT_EQ(encode(0, "a  <td>b"), (std::vector<int32_t>{3, 8, 9, 4}));
    EXPECT_EQ(encode(0, "a\u2581\u2581 b"), (std::vector<int32_t>{3, 8, 7, 4}));
    EXPECT_EQ(encode(1, "<td>b <td>ab"), (std::vector<int32_t>{7, 9, 4, 7, 9, 5}));
    EXPECT_EQ(encode(1, " <td>"), (std::vector<int32_t>{8, 9}));
}

TEST(SentencePiece, MalformedModelsAreRefused) {
    const std::pair<std::string, std::vector<std::string>> faults[] = {
        {"", {"no pieces"}},
        {kTrainer + kNormalizer, {"no pieces"}},
        {kPieces.substr(0, kPieces.size() - 1), {"SentencePiece model", "more bytes"}},
        {kPieces + "\x0b", {"wire type 3"}},
        {kPieces + std::string(11, '\xff'), {"10 bytes"}},
        {kPieces + "\x0a" + std::string(9, '\xff') + "\x01", {"more bytes"}},
        {piece("\xff", 0) + kTrainer + kNormalizer, {"piece 0", "UTF-8"}},
        {piece("a", NAN) + kTrainer + kNormalizer, {"piece 0", "NaN"}},
        {piece("a", 0, 7) + kTrainer + kNormalizer, {"type 7"}},
        {kPieces + piece("a", 0) + kTrainer + kNormalizer, {"'a' occurs twice"}},
        {kPieces + piece("", 0) + kTrainer + kNormalizer, {"token 8 is empty"}},
        {kPieces + kNormalizer, {"model_type", "unigram"}},
        {kPieces + field(2, field(3, 4) + field(35, 1)) + kNormalizer, {"model_type", "char"}},
        {kPieces + field(2, field(3, 2)) + kNormalizer, {"byte_fallback"}},
        {kPieces + field(2, field(3, 2) + field(35, 1) + field(41, 99)) + kNormalizer, {"BOS", "99"}},
        {kPieces + kTrainer, {"remove_extra_whitespaces"}},
        {kPieces + kTrainer + field(3, field(2, "nfkc") + field(4, 0)), {"precompiled_charsmap"}},
    };
    const ScratchDir directory;
    for (const auto& [bytes, parts] : faults) {
        const auto path = directory.write("tokenizer.model", bytes);
        std::vector<std::string> all = parts;
        all.push_back("tokenizer.model");
        expect_refused([&] { load_tokenizer(path); }, all);
    }
}

std::string base64(const std::string& bytes) {
    constexpr std::string_view kDigits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    std::string text;
    for (size_t i = 0; i < bytes.size(); i += 3) {
        uint32_t bits = 0;
        for (size_t j = 0; j < 3; ++j)
            bits = bits << 8 | (i + j < bytes.size() ? static_cast<unsigned char>(bytes[i + j]) : 0u);
        for (size_t j = 0; j < 4; ++j) text += i + j <= bytes.size() ? kDigits[bits >> (18 - 6 * j) & 63] : '=';
    }
    return text;
}

TEST(Tiktoken, Llama3GivesTheIdsOfHf) {
    const auto assets = lc::test::assets_dir();
    if (!assets) GTEST_SKIP() << lc::test::kNoAssets;
    const auto folder = *assets / "tokenizers" / "llama3";
    const Tokenizer wanted = Tokenizer::load(folder / "tokenizer.json");
    std::string ranks;
    for (int32_t id = 0; id < 128000; ++id)
        ranks += fmt::format("{} {}\n", base64(*from_alphabet(wanted.token_text(id))), id);
    const ScratchDir directory;
    directory.write("tokenizer.model", ranks);
    const Tokenizer tokenizer = load_tokenizer(directory.path());
    expect_vectors(tokenizer, folder / "vectors.jsonl");
    expect_same(tokenizer, wanted, golden_texts());
    directory.write("tokenizer_config.json",
                    R"({"added_tokens_decoder": {"128008": {"content": "<|eom_id|>"}}, "eos_token": "<|eot_id|>"})");
    EXPECT_EQ(load_tokenizer(directory.path()).token_id("<|eom_id|>"), 128008);
    EXPECT_EQ(load_tokenizer(directory.path()).eos_id(), 128009);
    directory.write("tokenizer_config.json", R"({"added_tokens_decoder": {"17": {"content": "x"}}})");
    expect_refused([&] { load_tokenizer(directory.path()); }, {"tokenizer_config.json", "added_tokens_decoder.17"});
}

TEST(LoadTokenizer, FoldersWithoutOne) {
    const ScratchDir directory;
    expect_refused([&] { load_tokenizer(directory.path()); },
                   {directory.path().string(), "neither tokenizer.json nor tokenizer.model"});
    directory.write("adapter_config.json", "{}");
    expect_refused([&] { load_tokenizer(directory.path()); }, {directory.path().string(), "an adapter and no model"});
}

TEST(Tiktoken, MalformedFilesAreRefused) {
    const std::vector<Piece> pieces = read_tiktoken("YQ== 0\nYmM= 1\nIGFi 2", "t");
    EXPECT_EQ(pieces[0].text, "a");
    EXPECT_EQ(pieces[1].text, "bc");
    EXPECT_EQ(pieces[2].text, to_alphabet(" ab"));
    EXPECT_TRUE(looks_like_tiktoken("YQ== 0\n"));
    EXPECT_FALSE(looks_like_tiktoken(kPieces));
    const std::pair<const char*, std::vector<std::string>> faults[] = {
        {"YQ== 0\nYQ 1\n", {"t:2", "BASE64"}},       {"YQ== 0\nY!== 1\n", {"t:2", "BASE64"}},
        {"YQ== 0\nYR== 1\n", {"t:2", "BASE64"}},     {"YQ== 0\n\nYg== 1\n", {"t:2", "BASE64"}},
        {"YQ== 0\nYg== 2\n", {"t:2", "must be 1"}},  {"YQ== 0\nYg== 1x\n", {"t:2", "must be 1", "1x"}},
        {"YQ== 0\nYg== -1\n", {"t:2", "must be 1"}}, {"YQ== 0\nYQ== 1\n", {"t:2", "'a' occur twice"}},
        {"YQ== 0\nYg==\n", {"t:2", "BASE64"}},
    };
    for (const auto& [text, parts] : faults) expect_refused([&] { read_tiktoken(text, "t"); }, parts);
    const ScratchDir directory;
    const auto path = directory.write("tokenizer.model", "YQ== 0\n");
    expect_refused([&] { load_tokenizer(path); }, {"tokenizer.model", "1 ranks", "128000"});
}

}  // namespace
}  // namespace lc::io::test
