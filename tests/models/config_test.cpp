// Shapes, rotary tables and attention specs.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "io/json.h"
#include "models/decoder/rope_table.h"
#include "tests/assets.h"
#include "tests/models/tiny.h"

namespace lc::models {
namespace {

using kernels::FeatureActivation;
using kernels::WindowKind;
using test::error_of;
using testing::HasSubstr;

TEST(Rope, DefaultFrequencies) {
    io::RopeConfig rope;
    rope.theta = 10000;
    const auto f = rope_frequencies(rope, 8);
    ASSERT_EQ(f.size(), 4u);
    const double wanted[] = {1, 0.1, 0.01, 0.001};
    for (size_t i = 0; i < 4; ++i) EXPECT_NEAR(f[i], wanted[i], 1e-15);
}

// Published values of Llama 3.1: indices 0..28 keep their frequency, 29..34 are blended, 35..63 are divided by 8.
TEST(Rope, Llama3Scaling) {
    io::RopeConfig plain, scaled;
    plain.theta = scaled.theta = 5e5;
    scaled.type = io::RopeType::llama3;
    scaled.factor = 8, scaled.low_freq_factor = 1, scaled.high_freq_factor = 4;
    scaled.original_max_position_embeddings = 8192;
    const auto f = rope_frequencies(plain, 128), s = rope_frequencies(scaled, 128);
    for (size_t i = 0; i < 64; ++i) {
        const bool kept = s[i] == f[i], divided = std::abs(s[i] / f[i] * 8 - 1) < 1e-15;
        EXPECT_EQ(kept, i <= 28) << i;
        EXPECT_EQ(divided, i >= 35) << i;
        EXPECT_TRUE(s[i] <= f[i] && s[i] >= f[i] / 8 * (1 - 1e-15)) << i;
    }
    EXPECT_NEAR(f[29], 2.61609925e-3, 1e-11);
    EXPECT_NEAR(s[29], 2.16657076e-3, 1e-11);
    EXPECT_NEAR(s[34], 1.78507813e-4, 1e-12);
    EXPECT_NEAR(s[63], 3.06892599e-7, 1e-15);
}

TEST(Rope, LinearAndDynamicScaling) {
    io::RopeConfig plain, scaled;
    scaled.factor = 4;
    const auto f = rope_frequencies(plain, 32);
    scaled.type = io::RopeType::dynamic;
    EXPECT_EQ(rope_frequencies(scaled, 32), f);
    scaled.type = io::RopeType::linear;
    const auto s = rope_frequencies(scaled, 32);
    for (size_t i = 0; i < f.size(); ++i) EXPECT_EQ(s[i], f[i] / 4);
}

// theta 10000, 128 numbers, 4096 original positions: 32 turns end at dimension 20.9, one turn at 45.2.
TEST(Rope, YarnScaling) {
    io::RopeConfig plain, scaled;
    scaled.type = io::RopeType::yarn;
    scaled.factor = 16, scaled.original_max_position_embeddings = 4096, scaled.attention_factor = 1.25;
    const auto f = rope_frequencies(plain, 128), s = rope_frequencies(scaled, 128);
    for (size_t i = 0; i < 64; ++i) {
        const double divided = std::clamp((static_cast<double>(i) - 20) / (46 - 20), 0.0, 1.0);
        EXPECT_NEAR(s[i], f[i] * (1 - divided) + f[i] / 16 * divided, 1e-16 + 1e-14 * f[i]) << i;
    }
    scaled.truncate = false;
    EXPECT_LT(rope_frequencies(scaled, 128)[46], s[46] * (1 + 1e-12));
    EXPECT_GT(rope_frequencies(scaled, 128)[21], s[21]);
    const RopeTable table = rope_table(scaled, 128, 3, DType::f64);
    EXPECT_EQ((table.cos.as<double, 2>()(0, 5)), 1.25);
    EXPECT_EQ((table.sin.as<double, 2>()(2, 0)), 1.25 * std::sin(2.0));
}

TEST(Rope, TableIsRoundedFromDouble) {
    io::RopeConfig rope;
    const RopeTable f32 = rope_table(rope, 4, 300, DType::f32), f64 = rope_table(rope, 4, 300, DType::f64);
    for (int64_t p = 0; p < 300; ++p)
        for (int64_t i = 0; i < 2; ++i) {
            EXPECT_EQ((f32.cos.as<float, 2>()(p, i)), static_cast<float>(f64.cos.as<double, 2>()(p, i)));
            EXPECT_EQ((f32.sin.as<float, 2>()(p, i)),
                      static_cast<float>(std::sin(static_cast<double>(p) * (i ? 0.01 : 1))));
        }
}

TEST(Config, ParameterCountsOfPublishedModels) {
    const auto assets = test::assets_dir();
    if (!assets) GTEST_SKIP() << test::kNoAssets;
    const std::pair<const char*, int64_t> models[] = {
        {"Llama-3-8B", 8030261248},       {"Llama-3.1-8B", 8030261248}, {"Llama-3.1-70B", 70553706496},
        {"Llama-3.1-405B", 405853388800}, {"Llama-3.2-1B", 1235814400}, {"Llama-3.2-3B", 3212749824},
        {"Mistral-7B-v0.1", 7241732096},  {"SmolLM2-135M", 134515008},  {"TinyLlama-1.1B", 1100048384},
        {"Phi-1.5", 1418270720},          {"Qwen2.5-0.5B", 494032768},  {"Qwen2.5-7B", 7615616512},
        {"Qwen3-0.6B", 596049920}};
    for (const auto& [name, parameters] : models)
        EXPECT_EQ(decoder_config_from(io::load_hf_config(*assets / "configs" / name)).num_parameters(), parameters)
            << name;
}

TEST(Config, ThereAndBack) {
    DecoderConfig config = test::tiny_config(false);
    config.rope = {.type = io::RopeType::llama3, .theta = 5e5, .factor = 8, .original_max_position_embeddings = 8192};
    config.uses_rope_parameters = true;
    const io::HfConfig hf = hf_config_from(config, DType::bf16);
    EXPECT_EQ(hf.torch_dtype, "bfloat16");
    const DecoderConfig again = decoder_config_from(io::parse_hf_config(hf.to_json(), "config.json"));
    EXPECT_EQ(hf_config_from(again, DType::bf16).to_json(), hf.to_json());
    EXPECT_EQ(again.rope, config.rope);
    EXPECT_EQ(again.eos_token_ids, config.eos_token_ids);
    EXPECT_FALSE(again.tie_embeddings);
}

TEST(Config, ImpossibleShapesAreRefused) {
    const auto refused = [](auto&& change) {
        DecoderConfig config = test::tiny_config();
        change(config);
        return error_of(ErrorKind::Usage, [&] { Decoder::random(config, 1); });
    };
    EXPECT_THAT(refused([](auto& c) { c.num_kv_heads = 3; }), HasSubstr("multiple of num_key_value_heads (3)"));
    EXPECT_THAT(refused([](auto& c) { c.head_dim = 5; }), HasSubstr("head_dim must be even"));
    EXPECT_THAT(refused([](auto& c) { c.num_layers = 0; }), HasSubstr("num_hidden_layers"));
    EXPECT_THAT(refused([](auto& c) { c.norm_eps = 0; }), HasSubstr("rms_norm_eps"));
    EXPECT_THAT(refused([](auto& c) { c.block.gated = false; }), HasSubstr("GELU"));
    EXPECT_THAT(refused([](auto& c) { c.block.head_bias = true; }), HasSubstr("tied head"));
    EXPECT_THAT(refused([](auto& c) { c.block.rotary_fraction = 0.5; }), HasSubstr("got 3 of 6"));
    EXPECT_THAT(refused([](auto& c) { c.sliding_window = 4; }), HasSubstr("window"));
}

TEST(AttentionSpec, DefaultsAreThoseOfThePaper) {
    const AttentionSpec spec;
    EXPECT_EQ(spec.window_size, 64);
    EXPECT_EQ(spec.feature_dim_for(128), 64);
    EXPECT_EQ(spec.feature_dim_for(64), 64);
    EXPECT_EQ(spec.feature_dim_for(8), 8);
    EXPECT_NEAR(1 / (1 + std::exp(-spec.mix_init)), 0.1, 1e-15);
}

TEST(AttentionSpec, JsonThereAndBack) {
    AttentionSpec spec;
    spec.kind = AttentionKind::linear, spec.window = WindowKind::sliding, spec.window_size = 7;
    spec.activation = FeatureActivation::relu, spec.feature_dim = 12, spec.init = FeatureInit::kaiming;
    spec.bias = FeatureBias::vector, spec.heads = FeatureHeads::kv, spec.skip = true, spec.affine = true;
    spec.mix_init = -0.25, spec.softmax_layers = {0, 3};
    EXPECT_EQ(AttentionSpec::from_json(nlohmann::json::parse(spec.to_json().dump()), "f"), spec);
    EXPECT_EQ(AttentionSpec::from_json(nlohmann::json::object(), "f"), AttentionSpec());
}

TEST(AttentionSpec, JsonRefusesWhatItDoesNotKnow) {
    const auto reason = [](const char* text) {
        return error_of(ErrorKind::BadInput, [&] { AttentionSpec::from_json(nlohmann::json::parse(text), "file"); });
    };
    EXPECT_THAT(reason(R"({"windw": 3})"), HasSubstr("unknown key"));
    EXPECT_THAT(reason(R"({"window": "round"})"),
                testing::AllOf(HasSubstr("file: key 'window'"), HasSubstr("terraced, sliding")));
    EXPECT_THAT(reason(R"({"feature_map": "none"})"), HasSubstr("feature_map"));
    EXPECT_THAT(reason(R"({"window_size": 0})"), HasSubstr("window_size"));
    EXPECT_THAT(reason(R"({"skip": 1})"), HasSubstr("skip"));
    EXPECT_THAT(reason(R"({"softmax_layers": [-1]})"), HasSubstr("softmax_layers"));
    EXPECT_THAT(reason("[]"), HasSubstr("file"));
}

TEST(AttentionSpec, RefusesWhatCannotBeRun) {
    const auto reason = [](auto&& change) {
        AttentionSpec spec;
        change(spec);
        return error_of(ErrorKind::Usage, [&] { validate(spec, 128, 4); });
    };
    EXPECT_THAT(reason([](auto& s) { s.skip = true; }), HasSubstr("feature_dim must be head_dim 128, got 64"));
    EXPECT_THAT(reason([](auto& s) { s.bias = FeatureBias::head_scalar; }), HasSubstr("no effect under softmax_dim"));
    EXPECT_THAT(reason([](auto& s) { s.window_size = 0; }), HasSubstr("window_size"));
    EXPECT_THAT(reason([](auto& s) { s.window = WindowKind::none; }), HasSubstr("needs a window"));
    EXPECT_THAT(reason([](auto& s) { s.kind = AttentionKind::softmax; }), HasSubstr("nothing to convert"));
    EXPECT_THAT(reason([](auto& s) { s.kind = AttentionKind::linear, s.affine = true; }), HasSubstr("affine"));
    EXPECT_THAT(reason([](auto& s) { s.feature_dim = -1; }), HasSubstr("feature_dim"));
    EXPECT_THAT(reason([](auto& s) { s.mix_init = NAN; }), HasSubstr("mix_init"));
    EXPECT_THAT(reason([](auto& s) { s.softmax_layers = {4}; }), HasSubstr("0 to 3"));
    EXPECT_THAT(reason([](auto& s) { s.softmax_layers = {1, 1}; }), HasSubstr("twice"));
    EXPECT_THAT(reason([](auto& s) { s.softmax_layers = {0, 1, 2, 3}; }), HasSubstr("every layer"));
}

TEST(AttentionSpec, FeatureMapNames) {
    AttentionSpec spec;
    apply_feature_map_name(spec, "hedgehog", 128);
    EXPECT_EQ(spec, AttentionSpec());
    apply_feature_map_name(spec, "t2r", 128);
    EXPECT_EQ(spec.activation, FeatureActivation::relu);
    EXPECT_EQ(spec.bias, FeatureBias::head_scalar);
    EXPECT_EQ(spec.feature_dim, 128);
    validate(spec, 128, 4);
    EXPECT_THROW(apply_feature_map_name(spec, "cat", 128), Error);
    for (const auto kind : {AttentionKind::softmax, AttentionKind::linear, AttentionKind::hybrid})
        EXPECT_EQ(attention_kind_from(name_of(kind)), kind);
    EXPECT_THAT(error_of(ErrorKind::Usage, [] { feature_heads_from("both"); }), HasSubstr("one of query, kv"));
}

}  // namespace
}  // namespace lc::models
