// GGUF files: what is in them, dequantized, and what is refused.
#include "io/gguf.h"

#include <gtest/gtest.h>

#include <cmath>
#include <numbers>

#include "core/rng.h"
#include "io/gguf_config.h"
#include "io/json.h"
#include "tests/io/faults.h"
#include "tests/io/gguf_bytes.h"

namespace lc::io {
namespace {

using test::expect_refused;
using test::gguf_bytes;
using test::gguf_f32;
using test::gguf_numbers;
using test::gguf_pair;
using test::gguf_string;
using test::gguf_text;
using test::gguf_u32;
using test::GgufHead;
using test::GgufPart;
using test::raw;

std::string half(float value) {
    return raw(f16(value));
}

TEST(Gguf, MetadataOfEveryType) {
    const test::ScratchDir directory;
    const std::vector<std::string> pairs = {gguf_pair("u8", 0, raw(uint8_t{200})),
                                            gguf_pair("i8", 1, raw(int8_t{-100})),
                                            gguf_pair("u16", 2, raw(uint16_t{60000})),
                                            gguf_pair("i16", 3, raw(int16_t{-30000})),
                                            gguf_u32("u32", 4000000000u),
                                            gguf_pair("i32", 5, raw(int32_t{-2000000000})),
                                            gguf_f32("f32", 0.5f),
                                            test::gguf_bool("bool", true),
                                            gguf_text("text.key", "h\u00e9"),
                                            gguf_numbers<float>("floats", 6, {1, -2.5}),
                                            test::gguf_texts("texts", {"a", ""}),
                                            gguf_pair("u64", 10, raw(uint64_t{1} << 63)),
                                            gguf_pair("i64", 11, raw(int64_t{-1})),
                                            gguf_pair("f64", 12, raw(1e300))};
    const GgufFile file(directory.write("m.gguf", gguf_bytes(pairs, {}, {.version = 2})));
    EXPECT_EQ(file.metadata(), parse_json(R"({"u8":200,"i8":-100,"u16":60000,"i16":-30000,"u32":4000000000,
        "i32":-2000000000,"f32":0.5,"bool":true,"text.key":"hé","floats":[1.0,-2.5],"texts":["a",""],
        "u64":9223372036854775808,"i64":-1,"f64":1e300})",
                                          "wanted"));
}

TEST(Gguf, BlocksAreWhatTheFormulasSay) {
    // Two rows of one block each; quants 0..31 mod 16, or -16..15.
    std::string nibbles, bytes;
    for (int i = 0; i < 16; ++i) nibbles.push_back(static_cast<char>(i | (15 - i) << 4));
    for (int i = 0; i < 32; ++i) bytes.push_back(static_cast<char>(8 * i - 128));
    const test::ScratchDir directory;
    const GgufFile file(directory.write(
        "m.gguf", gguf_bytes({}, {{"q4_0", {2, 32}, kGgufQ4_0, half(0.5f) + nibbles + half(-2) + nibbles},
                                  {"q4_1", {32}, kGgufQ4_1, half(0.25f) + half(-3) + nibbles},
                                  {"q8_0", {1, 1, 1, 32}, kGgufQ8_0, half(0.125f) + bytes},
                                  {"f16", {3}, kGgufF16, half(1) + half(-0.5f) + half(65504)},
                                  {"bf16", {1}, kGgufBf16, raw(bf16(-3))},
                                  {"f32", {2, 1}, kGgufF32, raw(1e-30f) + raw(7.f)}})));
    const auto values = [&](const char* name) { return file.read(*file.find(name)).to_vector<float>(); };
    const auto q4_0 = values("q4_0"), q4_1 = values("q4_1"), q8_0 = values("q8_0");
    for (int i = 0; i < 32; ++i) {
        const int quant = i < 16 ? i : 31 - i;
        EXPECT_EQ(q4_0[static_cast<size_t>(i)], 0.5f * static_cast<float>(quant - 8)) << i;
        EXPECT_EQ(q4_0[static_cast<size_t>(32 + i)], -2.f * static_cast<float>(quant - 8)) << i;
        EXPECT_EQ(q4_1[static_cast<size_t>(i)], 0.25f * static_cast<float>(quant) - 3) << i;
        EXPECT_EQ(q8_0[static_cast<size_t>(i)], static_cast<float>(i - 16)) << i;
    }
    EXPECT_EQ(values("f16"), (std::vector<float>{1, -0.5f, 65504}));
    EXPECT_EQ(values("bf16"), std::vector<float>{-3});
    EXPECT_EQ(values("f32"), (std::vector<float>{1e-30f, 7}));
    EXPECT_EQ(file.read(*file.find("q4_0")).shape(), Shape({2, 32}));
}

TEST(Gguf, ManyBlocksInParallel) {
    const int64_t blocks = 70000;
    std::string bytes;
    for (int64_t i = 0; i < blocks; ++i) bytes += half(1) + std::string(32, static_cast<char>(i % 100));
    const test::ScratchDir directory;
    const GgufFile file(directory.write("m.gguf", gguf_bytes({}, {{"t", {blocks, 32}, kGgufQ8_0, bytes}})));
    const Tensor tensor = file.read(*file.find("t"));
    for (int64_t i = 0; i < blocks; i += 7) EXPECT_EQ((tensor.as<float, 2>()(i, 31)), static_cast<float>(i % 100)) << i;
}

struct Fault {
    const char* name;
    std::string bytes;
    std::vector<std::string> parts;
};

TEST(Gguf, MalformedFilesAreRefused) {
    const auto with = [](std::vector<std::string> pairs, std::vector<GgufPart> parts, GgufHead head = {}) {
        return gguf_bytes(pairs, parts, head);
    };
    const GgufPart good{"t", {2, 4}, kGgufF32, std::string(32, '\0')};
    const auto part = [&](auto&& change) {
        GgufPart changed = good;
        change(changed);
        return gguf_bytes({}, {changed});
    };
    const std::string whole = gguf_bytes({gguf_text("a", "b")}, {good});
    const Fault faults[] = {
        {"empty", "", {"must begin with \"GGUF\""}},
        {"another format", std::string(100, 'x'), {"must begin with \"GGUF\""}},
        {"version 1", with({}, {}, {.version = 1}), {"version must be 2 or 3", "got 1"}},
        {"big-endian", with({}, {}, {.version = 3u << 24}), {"version", "50331648"}},
        {"cut in the counts", whole.substr(0, 20), {"must begin"}},
        {"cut in a key", whole.substr(0, 30), {"cut?"}},
        {"cut in the tensors", whole.substr(0, 70), {"cut?"}},
        {"cut in the data", whole.substr(0, whole.size() - 1), {"tensor 't'", "cut?"}},
        {"too many keys", with({}, {}, {.pairs = INT64_MAX}), {"keys, at most"}},
        {"too many tensors", with({}, {}, {.tensors = 1 << 20}), {"tensors and"}},
        {"more keys than there are", with({}, {}, {.pairs = 3}), {"cut?"}},
        {"key twice", with({gguf_u32("k", 1), gguf_u32("k", 2)}, {}), {"key 'k' occurs twice"}},
        {"vast string", with({gguf_string("k") + raw(uint32_t{8}) + raw(UINT64_MAX)}, {}), {"at most 16777216"}},
        {"string not UTF-8", with({gguf_text("k", "\xff")}, {}), {"UTF-8", "\\xff"}},
        {"unknown type", with({gguf_pair("k", 13, "")}, {}), {"key 'k'", "unknown type 13"}},
        {"bool of 2", with({gguf_pair("k", 7, "\2")}, {}), {"key 'k'", "bool", "2"}},
        {"nested array", with({gguf_pair("k", 9, raw(uint32_t{9}) + raw(uint64_t{1}))}, {}), {"array in an array"}},
        {"vast array",
         with({gguf_pair("k", 9, raw(uint32_t{0}) + raw(uint64_t{1} << 40))}, {}),
         {"key 'k'", "elements"}},
        {"tensor twice", with({}, {good, good}), {"tensor 't' occurs twice"}},
        {"no dimensions", part([](GgufPart& p) { p.shape = {}; }), {"tensor 't'", "1 to 4 dimensions, got 0"}},
        {"five dimensions",
         part([](GgufPart& p) {
             p.shape = {1, 1, 1, 2, 4};
         }),
         {"1 to 4 dimensions, got 5"}},
        {"dimension of 0",
         part([](GgufPart& p) {
             p.shape = {0, 4};
         }),
         {"a dimension of 0"}},
        {"negative dimension",
         part([](GgufPart& p) {
             p.shape = {-1, 4};
         }),
         {"a dimension of 18446744073709551615"}},
        {"overflow",
         part([](GgufPart& p) {
             p.shape = {int64_t{1} << 40, int64_t{1} << 40};
         }),
         {"leaves the file"}},
        {"too large",
         part([](GgufPart& p) {
             p.shape = {3, 4};
         }),
         {"tensor 't' of F32 [3,4] leaves the file"}},
        {"vast offset", part([](GgufPart& p) { p.offset = INT64_MAX; }), {"tensor 't' begins at byte"}},
        {"offset beyond", part([](GgufPart& p) { p.offset = 1 << 20; }), {"leaves the file"}},
        {"odd offset", part([](GgufPart& p) { p.offset = 4; }), {"not at a multiple of 32"}},
        {"rows of half a block",
         part([](GgufPart& p) { p.type = kGgufQ8_0; }),
         {"rows of 4", "Q8_0", "multiple of 32"}},
        {"overlap", with({}, {good, {"u", {2, 4}, kGgufF32, std::string(32, '\0'), 0}}), {"'t' and 'u' overlap"}},
        {"alignment of 0", with({gguf_u32("general.alignment", 0)}, {good}), {"general.alignment", "got 0"}},
    };
    const test::ScratchDir directory;
    for (const Fault& fault : faults) {
        SCOPED_TRACE(fault.name);
        const auto path = directory.write("m.gguf", fault.bytes);
        std::vector<std::string> parts = fault.parts;
        parts.push_back("m.gguf");
        expect_refused([&] { GgufFile{path}; }, parts);
    }
    const GgufFile file(directory.write("k.gguf", part([](GgufPart& p) { p.type = 12; })));
    expect_refused([&] { (void)file.read(*file.find("t")); }, {"k.gguf", "tensor 't' is Q4_K", "Q4_1"});
}

TEST(Gguf, ChangedBytesDoNoHarm) {
    const std::string good =
        gguf_bytes({gguf_text("general.architecture", "llama"), gguf_numbers<float>("f", 6, {1, 2})},
                   {{"t", {2, 32}, kGgufQ8_0, std::string(68, '\1')}});
    const test::ScratchDir directory;
    const Random random(3);
    int accepted = 0;
    for (size_t i = 0; i < good.size(); ++i) {
        std::string bytes = good;
        bytes[i] = static_cast<char>(random.below(256, i));
        try {
            const GgufFile file(directory.write("m.gguf", bytes));
            for (const GgufTensor& tensor : file.tensors()) (void)file.read(tensor);
            ++accepted;
        } catch (const Error& error) {
            EXPECT_EQ(static_cast<int>(error.kind()), static_cast<int>(ErrorKind::BadInput)) << error.what();
        }
    }
    EXPECT_GT(accepted, 0);
}

// --- the shape of the model ---
class GgufConfig : public testing::Test {
  protected:
    using Pairs = std::vector<std::pair<std::string, std::string>>;  // key, whole pair
    GgufConfig() {
        text("general.architecture", "llama");
        for (const auto& [key, value] : {std::pair("llama.embedding_length", 48),
                                         {"llama.feed_forward_length", 64},
                                         {"llama.block_count", 3},
                                         {"llama.attention.head_count", 4},
                                         {"llama.attention.head_count_kv", 2},
                                         {"llama.context_length", 77},
                                         {"tokenizer.ggml.bos_token_id", 1},
                                         {"tokenizer.ggml.eos_token_id", 2}})
            number(key, static_cast<uint32_t>(value));
        real("llama.attention.layer_norm_rms_epsilon", 0.5f / 1024);
        parts_.push_back({"token_embd.weight", {5, 48}, kGgufF32, std::string(5 * 48 * 4, '\0')});
    }
    void text(const std::string& key, const std::string& value) { pairs_[key] = gguf_text(key, value); }
    void number(const std::string& key, uint32_t value) { pairs_[key] = gguf_u32(key, value); }
    void real(const std::string& key, float value) { pairs_[key] = gguf_f32(key, value); }
    HfConfig config() const {
        std::vector<std::string> pairs;
        for (const auto& [key, pair] : pairs_) pairs.push_back(pair);
        return load_hf_config(directory_.write("m.gguf", gguf_bytes(pairs, parts_)));
    }
    void add_divisors(double factor, size_t wrong = 99) {
        std::string bytes;
        for (size_t i = 0; i < 6; ++i) {
            const double wavelength = 2 * std::numbers::pi * std::pow(1e6, 2.0 * static_cast<double>(i) / 12);
            const double smooth = (8192 / wavelength - 1) / 3;
            const double divisor = wavelength < 2048   ? 1
                                   : wavelength > 8192 ? factor
                                                       : 1 / ((1 - smooth) / factor + smooth);
            bytes += raw(static_cast<float>(i == wrong ? 1.5 * divisor : divisor));
        }
        parts_.push_back({"rope_freqs.weight", {6}, kGgufF32, bytes});
    }
    std::map<std::string, std::string> pairs_;
    std::vector<GgufPart> parts_;
    test::ScratchDir directory_;
};

TEST_F(GgufConfig, SaysWhatConfigJsonWould) {
    HfConfig c = config();
    EXPECT_EQ(c.hidden_size, 48);
    EXPECT_EQ(c.intermediate_size, 64);
    EXPECT_EQ(c.num_hidden_layers, 3);
    EXPECT_EQ(c.num_attention_heads, 4);
    EXPECT_EQ(c.num_key_value_heads, 2);
    EXPECT_EQ(c.head_dim, 12);
    EXPECT_EQ(c.vocab_size, 5);
    EXPECT_EQ(c.max_position_embeddings, 77);
    EXPECT_EQ(c.norm_eps, 0.5 / 1024);
    EXPECT_EQ(c.rope, RopeConfig{});
    EXPECT_TRUE(c.tie_word_embeddings);
    EXPECT_EQ(c.bos_token_ids, std::vector<int64_t>{1});
    EXPECT_EQ(c.eos_token_ids, std::vector<int64_t>{2});
    number("tokenizer.ggml.eot_token_id", 4), real("llama.rope.freq_base", 1e6f);
    pairs_.erase("llama.attention.head_count_kv");
    parts_.push_back({"output.weight", {5, 48}, kGgufF32, std::string(5 * 48 * 4, '\0')});
    add_divisors(8);
    c = config();
    EXPECT_EQ(c.num_key_value_heads, 4);
    EXPECT_EQ(c.eos_token_ids, (std::vector<int64_t>{2, 4}));
    EXPECT_FALSE(c.tie_word_embeddings);
    EXPECT_EQ(c.rope, (RopeConfig{.type = RopeType::llama3,
                                  .theta = 1e6,
                                  .factor = 8,
                                  .low_freq_factor = 1,
                                  .high_freq_factor = 4,
                                  .original_max_position_embeddings = 8192}));
}

TEST_F(GgufConfig, WhatItDoesNotComputeIsRefusedByName) {
    const auto refused = [&](const std::vector<std::string>& parts, auto&& change) {
        const auto pairs = pairs_;
        const auto tensors = parts_;
        change();
        expect_refused([&] { config(); }, parts);
        pairs_ = pairs, parts_ = tensors;
    };
    refused({"general.architecture", "\"qwen2\""}, [&] { text("general.architecture", "qwen2"); });
    refused({"general.architecture", "missing"}, [&] { pairs_.erase("general.architecture"); });
    refused({"llama.expert_count", "8"}, [&] { number("llama.expert_count", 8); });
    refused({"llama.rope.scaling.type", "yarn"}, [&] { text("llama.rope.scaling.type", "yarn"); });
    refused({"llama.rope.dimension_count", "12", "6"}, [&] { number("llama.rope.dimension_count", 6); });
    refused({"llama.attention.head_count_kv", "divisor"}, [&] { number("llama.attention.head_count_kv", 3); });
    refused({"llama.attention.value_length", "24"}, [&] { number("llama.attention.value_length", 24); });
    refused({"llama.block_count", "got 0"}, [&] { number("llama.block_count", 0); });
    refused({"llama.block_count", "missing"}, [&] { pairs_.erase("llama.block_count"); });
    refused({"llama.embedding_length", "multiple of 4 heads"}, [&] { number("llama.embedding_length", 50); });
    refused({"tokenizer.ggml.bos_token_id", "5"}, [&] { number("tokenizer.ggml.bos_token_id", 5); });
    refused({"token_embd.weight"}, [&] { parts_.clear(); });
    refused({"rope_freqs.weight", "Llama 3"}, [&] { real("llama.rope.freq_base", 1e6f), add_divisors(8, 4); });
    refused({"rope_freqs.weight", "Llama 3"}, [&] { add_divisors(8); });  // made for another theta
}

}  // namespace
}  // namespace lc::io
