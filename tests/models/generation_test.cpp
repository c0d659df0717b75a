// Generation equals the full forward pass, token by token, wherever the prompt ends.
#include <gtest/gtest.h>

#include "autograd/grad_mode.h"
#include "models/generation/generator.h"
#include "tests/models/tiny.h"

namespace lc::models {
namespace {

using kernels::FeatureActivation;
using kernels::WindowKind;
using test::relative_error;
using test::tiny_ids;

constexpr int64_t kWindow = 4, kLength = 23, kBatch = 2;

struct Variant {
    const char* name;
    AttentionMode mode = AttentionMode::Linearized;
    AttentionSpec spec;
    Terms terms = Terms::Both;
};
std::ostream& operator<<(std::ostream& out, const Variant& variant) {
    return out << variant.name;
}

Variant variant(const char* name, void (*change)(Variant&)) {
    Variant result{.name = name, .spec = {}};
    result.spec.window_size = kWindow;
    change(result);
    return result;
}

const Variant kVariants[] = {
    variant("softmax", [](Variant& v) { v.mode = AttentionMode::Softmax; }),
    variant("terraced", [](Variant&) {}),
    variant("terraced_kv_maps", [](Variant& v) { v.spec.heads = FeatureHeads::kv; }),
    variant("terraced_affine", [](Variant& v) { v.spec.affine = true; }),
    variant("sliding", [](Variant& v) { v.spec.window = WindowKind::sliding; }),
    variant("sliding_kv_maps",
            [](Variant& v) { v.spec.window = WindowKind::sliding, v.spec.heads = FeatureHeads::kv; }),
    variant("linear", [](Variant& v) { v.spec.kind = AttentionKind::linear; }),
    variant("linear_t2r",
            [](Variant& v) {
                v.spec.kind = AttentionKind::linear, v.spec.activation = FeatureActivation::relu;
                v.spec.bias = FeatureBias::vector;
            }),
    variant("window_of_one", [](Variant& v) { v.spec.window_size = 1; }),
    variant("mixed_with_softmax_layers", [](Variant& v) { v.spec.softmax_layers = {1}; }),
    variant("window_terms_only", [](Variant& v) { v.terms = Terms::WindowOnly; }),
    variant("linear_terms_only", [](Variant& v) { v.terms = Terms::LinearOnly; }),
};

class Generation : public testing::TestWithParam<Variant> {
  protected:
    Decoder make(DType dtype) const {
        Decoder decoder = test::tiny_decoder(test::tiny_config(true, 3), dtype);
        decoder.linearize(GetParam().spec, 1);
        test::disturb(decoder.feature_map_parameters(), 0.3);
        return decoder;
    }
    // For every split: prompt of n tokens in chunks, then one by one; the worst logits against the full forward's.
    double worst_of_all_splits(const Decoder& decoder, int64_t chunk) const {
        const NoGrad no_grad;
        const Tensor ids = tiny_ids(kBatch, kLength);
        const Tensor full = decoder.logits(ids, {.mode = GetParam().mode, .terms = GetParam().terms});
        const Generator generator(decoder, chunk);
        double worst = 0;
        for (int64_t prompt = 1; prompt < kLength; ++prompt) {
            DecodeState state(decoder, GetParam().mode, kBatch, GetParam().terms);
            for (int64_t t = prompt; t <= kLength; ++t) {
                const Tensor next = t == prompt ? ids.sliced(1, 0, prompt) : ids.sliced(1, t - 1, 1);
                const Tensor logits = generator.advance(state, next);
                worst = std::max(worst, relative_error(logits, full.sliced(1, t - 1, 1).reshaped(logits.shape())));
            }
            EXPECT_EQ(state.position(), kLength);
        }
        return worst;
    }
};

TEST_P(Generation, PrefillAndDecodeEqualTheFullForward) {
    EXPECT_LT(worst_of_all_splits(make(DType::f32), 512), 1e-5);
    EXPECT_LT(worst_of_all_splits(make(DType::f32), 5), 1e-5);
    EXPECT_LT(worst_of_all_splits(make(DType::f64), 3), 1e-12);
}

// More tokens at once after some were decoded: a second turn of a conversation.
TEST_P(Generation, LaterChunksMayFollowDecodedTokens) {
    const Decoder decoder = make(DType::f64);
    const NoGrad no_grad;
    const Tensor ids = tiny_ids(kBatch, kLength);
    const Tensor full = decoder.logits(ids, {.mode = GetParam().mode, .terms = GetParam().terms});
    const Generator generator(decoder, 6);
    DecodeState state(decoder, GetParam().mode, kBatch, GetParam().terms);
    Tensor logits;
    int64_t at = 0;
    for (const int64_t length : {3, 1, 1, 7, 1, 2, 8}) {
        logits = generator.advance(state, ids.sliced(1, at, length));
        at += length;
    }
    ASSERT_EQ(at, kLength);
    EXPECT_LT(relative_error(logits, full.sliced(1, kLength - 1, 1).reshaped(logits.shape())), 1e-12);
}

TEST_P(Generation, MemoryIsConstantWithoutSoftmaxLayers) {
    const Decoder decoder = make(DType::f32);
    const Generator generator(decoder);
    DecodeState state(decoder, GetParam().mode, 1, GetParam().terms);
    const int64_t before = state.bytes();
    for (int64_t t = 0; t < 100; ++t) generator.advance(state, tiny_ids(1, 1));
    const bool grows = GetParam().mode == AttentionMode::Softmax || !GetParam().spec.softmax_layers.empty();
    EXPECT_EQ(state.bytes() > before, grows);
    EXPECT_GE(state.bytes(), before);
}

INSTANTIATE_TEST_SUITE_P(Variants, Generation, testing::ValuesIn(kVariants),
                         [](const auto& p) { return std::string(p.param.name); });

TEST(DecodeState, BytesAreThoseOfStateAndRing) {
    Decoder decoder = test::tiny_decoder(test::tiny_config(true, 2), DType::f32);
    decoder.linearize(test::tiny_spec(), 1);
    // A layer: S 4 heads x 12 features x 6, z 4 x 12, ring of 8 keys and values for 2 KV heads x 6.
    EXPECT_EQ(DecodeState(decoder, AttentionMode::Linearized).bytes(), 2 * 4 * (4 * 12 * 6 + 4 * 12 + 2 * 2 * 8 * 6));
    EXPECT_EQ(DecodeState(decoder, AttentionMode::Softmax).bytes(), 0);
}

TEST(DecodeState, BatchesDoNotMix) {
    Decoder decoder = test::tiny_decoder(test::tiny_config(), DType::f32);
    decoder.linearize(test::tiny_spec(), 1);
    const Tensor ids = tiny_ids(2, 14);
    const Generator generator(decoder);
    DecodeState both(decoder, AttentionMode::Linearized, 2), second(decoder, AttentionMode::Linearized, 1);
    Tensor of_both, of_second;
    for (const auto& [start, length] : {std::pair<int64_t, int64_t>{0, 12}, {12, 1}, {13, 1}}) {
        of_both = generator.advance(both, ids.sliced(1, start, length));
        of_second = generator.advance(second, ids.sliced(0, 1, 1).sliced(1, start, length));
    }
    EXPECT_LT(relative_error(of_both.sliced(0, 1, 1), of_second), 1e-6);
}

TEST(Generator, RefusesTokensBeyondTheModel) {
    DecoderConfig config = test::tiny_config();
    config.max_positions = 10;
    const Decoder decoder = test::tiny_decoder(config, DType::f32);
    const Generator generator(decoder);
    DecodeState state(decoder, AttentionMode::Softmax);
    generator.advance(state, tiny_ids(1, 10));
    EXPECT_NE(test::error_of(ErrorKind::Usage, [&] { generator.advance(state, tiny_ids(1, 1)); }).find("11 tokens"),
              std::string::npos);
    EXPECT_THROW(generator.advance(state, tiny_ids(2, 1)), Error);
}

}  // namespace
}  // namespace lc::models
