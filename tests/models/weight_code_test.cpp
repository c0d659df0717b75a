// Weights in eight bits: the model whose weights are what the codes stand for, loaded layer by layer, and what it refuses.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "autograd/grad_mode.h"
#include "autograd/node.h"
#include "models/generation/generator.h"
#include "models/run.h"
#include "tests/models/families.h"
#include "tests/models/tiny.h"

namespace lc::models {
namespace {

using test::error_of;
using test::relative_error;
using test::TemporaryDirectory;
using test::tiny_config;
using test::tiny_decoder;
using test::tiny_ids;
using testing::HasSubstr;

constexpr WeightCode kCodes[] = {WeightCode::int8, WeightCode::fp8};

// Matrices of the layers as the codes have them, in the model's own dtype.
void round_trip(const Decoder& decoder, WeightCode code) {
    for (NamedTensor parameter : decoder.base_parameters()) {
        const bool matrix = parameter.tensor.rank() == 2 && parameter.name.find(".layers.") != std::string::npos;
        if (!matrix) continue;
        const Tensor codes = Tensor::empty(parameter.tensor.shape(), DType::u8);
        const Tensor scale = Tensor::empty({codes.size(0)}, DType::f32);
        const Tensor decoded = Tensor::empty(codes.shape(), parameter.tensor.dtype());
        kernels::encode_weights(
            {.w = parameter.tensor.view(), .codes = codes.view(), .scale = scale.view(), .code = code}, {});
        kernels::decode_weights({.codes = codes.view(), .scale = scale.view(), .w = decoded.view(), .code = code}, {});
        parameter.tensor.copy_from(decoded);
    }
}

class CodedFamily : public testing::TestWithParam<std::string> {};

TEST_P(CodedFamily, ComputesWithWhatTheCodesStandFor) {
    const NoGrad no_grad;
    const test::Family family = test::read_family(GetParam());
    const Tensor ids = Tensor::from(std::span(family.ids).first(6), {1, 6});
    for (const WeightCode code : kCodes) {
        const Placement place{.device = {}, .dtype = DType::f64};
        Decoder coded = test::family_decoder(family, place);
        const Decoder plain = test::family_decoder(family, place);
        const Tensor exact = plain.logits(ids, {});
        coded.encode_projections(code);
        round_trip(plain, code);
        const Tensor logits = coded.logits(ids, {});
        EXPECT_LT(relative_error(logits, plain.logits(ids, {})), 1e-12) << name_of(code);
        EXPECT_GT(relative_error(logits, exact), 1e-6) << "as if nothing had been rounded";
        EXPECT_EQ(coded.layer(0).up.dtype(), DType::u8);
        EXPECT_EQ(coded.lm_head().dtype(), DType::f64);
    }
}

// Those whose blocks differ.
INSTANTIATE_TEST_SUITE_P(All, CodedFamily,
                         testing::Values("gemma_7b", "llama3", "llama_biases", "phi15", "qwen2", "qwen3"),
                         [](const auto& tested) { return tested.param; });

TEST(CodedWeights, AStepEqualsTheForwardPass) {
    const NoGrad no_grad;
    for (const WeightCode code : kCodes) {
        Decoder decoder = tiny_decoder(tiny_config(), DType::f64);
        decoder.linearize(test::tiny_spec(), 1);
        decoder.encode_projections(code);
        const Tensor ids = tiny_ids(2, 21);
        const Generator generator(decoder);
        DecodeState state(decoder, AttentionMode::Linearized, 2);
        generator.feed(state, ids.sliced(1, 0, 9));
        const Tensor full = decoder.logits(ids, {.mode = AttentionMode::Linearized});
        for (int64_t t = 9; t < 21; ++t)
            EXPECT_LT(relative_error(generator.advance(state, ids.sliced(1, t, 1)),
                                     full.sliced(1, t, 1).contiguous().reshaped({2, 40})),
                      1e-11)
                << t;
    }
}

TEST(CodedWeights, ReadLayerByLayerTheyAreTheSame) {
    const TemporaryDirectory directory;
    for (const bool tied : {true, false}) {
        save_base(tiny_decoder(tiny_config(tied, 3), DType::f32), directory.path(), DType::f32);
        for (const WeightCode code : kCodes) {
            Decoder after = Decoder::load(directory.path());
            after.encode_projections(code);
            Decoder during = Decoder::load(directory.path(), {.weight_code = code});
            EXPECT_EQ(during.layer(2).down.dtype(), DType::u8);
            EXPECT_EQ(during.layer(2).q.weight.dtype(), DType::f32) << "an adapter may change it";
            during.encode_projections(code);
            const NoGrad no_grad;
            const Tensor ids = tiny_ids(1, 12);
            EXPECT_EQ(during.logits(ids, {}).to_vector<float>(), after.logits(ids, {}).to_vector<float>());
        }
    }
}

TEST(CodedWeights, AreNoBaseForAnythingElse) {
    Decoder decoder = tiny_decoder(tiny_config(), DType::f32);
    decoder.add_lora({}, 1);
    const auto refusal = [&](auto&& body) { return error_of(ErrorKind::Internal, body); };
    EXPECT_THAT(refusal([&] { decoder.encode_projections(WeightCode::int8); }), HasSubstr("must be merged before"));
    decoder = tiny_decoder(tiny_config(), DType::f32);
    decoder.encode_projections(WeightCode::int8);
    decoder.encode_projections(WeightCode::int8);  // again: nothing to do
    EXPECT_THAT(refusal([&] { decoder.encode_projections(WeightCode::fp8); }), HasSubstr("int8 already"));
    EXPECT_THAT(refusal([&] { decoder.base_parameters(); }), HasSubstr("int8"));
    decoder.add_lora({}, 1);
    EXPECT_THAT(refusal([&] { decoder.merge_lora(); }), HasSubstr("into codes"));
    decoder = tiny_decoder(tiny_config(), DType::f32);
    decoder.set_trainable({decoder.base_parameters()[0]});  // the embedding
    decoder.encode_projections(WeightCode::int8);
    EXPECT_THAT(refusal([&] { decoder.logits(tiny_ids(1, 4), {}); }), HasSubstr("no gradients"));
}

}  // namespace
}  // namespace lc::models
