// Conversion: what starts where, what is trainable, what LoRA changes.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "autograd/engine.h"
#include "autograd/ops/sum.h"
#include "tests/models/tiny.h"

namespace lc::models {
namespace {

using test::error_of;
using test::relative_error;
using test::tiny_config;
using test::tiny_decoder;
using test::tiny_ids;
using test::tiny_spec;
using testing::HasSubstr;

TEST(Linearize, IdentityMapsStartAsTheFirstChannels) {
    Decoder decoder = tiny_decoder(tiny_config(), DType::f32);
    AttentionSpec spec = tiny_spec();
    spec.feature_dim = 3;
    decoder.linearize(spec, 1);
    const FeatureMaps& maps = decoder.layer(1).maps;
    EXPECT_EQ(maps.wq.shape(), Shape({4, 6, 3}));
    EXPECT_EQ(maps.wk.to_vector<float>(), maps.wq.to_vector<float>());
    for (int64_t h = 0; h < 4; ++h)
        for (int64_t d = 0; d < 6; ++d)
            for (int64_t f = 0; f < 3; ++f) EXPECT_EQ((maps.wq.as<float, 3>()(h, d, f)), d == f ? 1.0f : 0.0f);
    EXPECT_FALSE(maps.bq.defined());
    EXPECT_EQ(decoder.layer(1).mix_logit.to_vector<float>(), std::vector<float>(4, static_cast<float>(spec.mix_init)));
    EXPECT_EQ(decoder.attention()->feature_dim, 3);
}

TEST(Linearize, RandomMapsAreBoundedReproducibleAndOwnEachLayer) {
    AttentionSpec spec = tiny_spec();
    spec.init = FeatureInit::kaiming, spec.activation = kernels::FeatureActivation::relu;
    spec.bias = FeatureBias::head_scalar, spec.heads = FeatureHeads::kv;
    Decoder a = tiny_decoder(tiny_config(), DType::f32), b = tiny_decoder(tiny_config(), DType::f32);
    a.linearize(spec, 7), b.linearize(spec, 7);
    const FeatureMaps &maps = a.layer(0).maps, &others = a.layer(1).maps;
    EXPECT_EQ(maps.wq.to_vector<float>(), b.layer(0).maps.wq.to_vector<float>());
    EXPECT_NE(maps.wq.to_vector<float>(), others.wq.to_vector<float>());
    float largest = 0;
    for (const float value : maps.wq.to_vector<float>()) largest = std::max(largest, std::abs(value));
    EXPECT_LE(largest, std::sqrt(6.0 / 36));
    EXPECT_GT(largest, 0.8 * std::sqrt(6.0 / 36));
    // Key maps of a KV head: that of the first query head of its group.
    EXPECT_EQ(maps.wk.shape(), Shape({2, 6, 6}));
    for (int64_t g = 0; g < 2; ++g) {
        EXPECT_EQ(maps.wk.sliced(0, g, 1).to_vector<float>(), maps.wq.sliced(0, 2 * g, 1).to_vector<float>());
        EXPECT_EQ(maps.bk.sliced(0, g, 1).to_vector<float>(), maps.bq.sliced(0, 2 * g, 1).to_vector<float>());
    }
    EXPECT_EQ(maps.bq.shape(), Shape({4, 1}));
    b.linearize(spec, 8);
    EXPECT_NE(maps.wq.to_vector<float>(), b.layer(0).maps.wq.to_vector<float>());
}

TEST(Linearize, KeptLayersStaySoftmax) {
    Decoder decoder = tiny_decoder(tiny_config(true, 3), DType::f32);
    AttentionSpec spec = tiny_spec();
    spec.softmax_layers = {1};
    decoder.linearize(spec, 1);
    EXPECT_TRUE(decoder.layer(0).linearized && !decoder.layer(1).linearized && decoder.layer(2).linearized);
    EXPECT_TRUE(decoder.feature_map_parameters(1).empty());
    decoder.add_lora({}, 1);
    EXPECT_FALSE(decoder.layer(1).q.lora_a.defined());
    EXPECT_EQ(decoder.lora_parameters().size(), 2u * 4 * 2);
}

TEST(Linearize, NamesAreThoseOfTheFiles) {
    Decoder decoder = tiny_decoder(tiny_config(false, 1), DType::f32);
    AttentionSpec spec = tiny_spec();
    spec.activation = kernels::FeatureActivation::relu, spec.bias = FeatureBias::vector;
    decoder.linearize(spec, 1);
    decoder.add_lora({.rank = 2, .alpha = 4, .targets = {"q_proj", "o_proj"}}, 1);
    const auto names = [](const std::vector<NamedTensor>& parameters) {
        std::vector<std::string> result;
        for (const NamedTensor& parameter : parameters) result.push_back(parameter.name);
        return result;
    };
    EXPECT_THAT(names(decoder.feature_map_parameters()),
                testing::ElementsAre("model.layers.0.self_attn.feature_map_q.mlp.layer",
                                     "model.layers.0.self_attn.feature_map_q.mlp.bias",
                                     "model.layers.0.self_attn.feature_map_k.mlp.layer",
                                     "model.layers.0.self_attn.feature_map_k.mlp.bias",
                                     "model.layers.0.self_attn.window_factors"));
    EXPECT_THAT(names(decoder.lora_parameters()),
                testing::ElementsAre("base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight",
                                     "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight",
                                     "base_model.model.model.layers.0.self_attn.o_proj.lora_A.weight",
                                     "base_model.model.model.layers.0.self_attn.o_proj.lora_B.weight"));
    EXPECT_THAT(names(decoder.base_parameters()),
                testing::ElementsAre("model.embed_tokens.weight", "model.layers.0.input_layernorm.weight",
                                     "model.layers.0.self_attn.q_proj.weight", "model.layers.0.self_attn.k_proj.weight",
                                     "model.layers.0.self_attn.v_proj.weight", "model.layers.0.self_attn.o_proj.weight",
                                     "model.layers.0.post_attention_layernorm.weight",
                                     "model.layers.0.mlp.gate_proj.weight", "model.layers.0.mlp.up_proj.weight",
                                     "model.layers.0.mlp.down_proj.weight", "model.norm.weight", "lm_head.weight"));
}

// The first 2w rows see no far keys: hybrids are the teacher there, whatever maps and factors are.
TEST(Linearize, FirstTwoBlocksEqualTheTeacher) {
    Decoder decoder = tiny_decoder(tiny_config(), DType::f64);
    decoder.linearize(tiny_spec(), 1);
    test::disturb(decoder.feature_map_parameters(), 0.3);
    const NoGrad no_grad;
    const Tensor ids = tiny_ids(2, 13);
    const Tensor teacher = decoder.logits(ids, {.mode = AttentionMode::Softmax});
    const Tensor student = decoder.logits(ids, {.mode = AttentionMode::Linearized});
    EXPECT_LT(relative_error(student.sliced(1, 0, 8), teacher.sliced(1, 0, 8)), 1e-13);
    EXPECT_GT(relative_error(student.sliced(1, 8, 5), teacher.sliced(1, 8, 5)), 1e-4);
}

TEST(Linearize, TermsForDiagnosis) {
    Decoder decoder = tiny_decoder(tiny_config(), DType::f64);
    decoder.linearize(tiny_spec(), 1);
    const NoGrad no_grad;
    const Tensor ids = tiny_ids(1, 16);
    const auto logits = [&](Terms terms) {
        return decoder.logits(ids, {.mode = AttentionMode::Linearized, .terms = terms});
    };
    const Tensor both = logits(Terms::Both), window = logits(Terms::WindowOnly), linear = logits(Terms::LinearOnly);
    EXPECT_LT(relative_error(window.sliced(1, 0, 8), both.sliced(1, 0, 8)), 1e-13);
    EXPECT_GT(relative_error(window, both), 1e-4);
    EXPECT_GT(relative_error(linear, both), 1e-4);
    // Linear terms only: what the same maps give as pure linear attention.
    AttentionSpec pure = tiny_spec();
    pure.kind = AttentionKind::linear;
    decoder.linearize(pure, 1);
    EXPECT_LT(relative_error(linear, logits(Terms::Both)), 1e-14);
    EXPECT_THAT(error_of(ErrorKind::Usage, [&] { logits(Terms::WindowOnly); }), HasSubstr("purely linear"));
}

TEST(Lora, StartsAsNoChangeAndMergesIntoTheWeights) {
    Decoder decoder = tiny_decoder(tiny_config(), DType::f64);
    decoder.linearize(tiny_spec(), 1);
    const NoGrad no_grad;
    const Tensor ids = tiny_ids(1, 12);
    const Decoder::ForwardOptions linearized{.mode = AttentionMode::Linearized};
    const Tensor before = decoder.logits(ids, linearized);
    decoder.add_lora({.rank = 3, .alpha = 6}, 2);
    EXPECT_EQ(decoder.logits(ids, linearized).to_vector<double>(), before.to_vector<double>());
    EXPECT_EQ(decoder.layer(0).k.lora_scale, 2.0);
    test::disturb(decoder.lora_parameters(), 0.2);
    const Tensor adapted = decoder.logits(ids, linearized);
    EXPECT_GT(relative_error(adapted, before), 1e-3);
    decoder.merge_lora();
    EXPECT_FALSE(decoder.lora() || decoder.layer(0).q.lora_a.defined());
    EXPECT_LT(relative_error(decoder.logits(ids, linearized), adapted), 1e-12);
}

TEST(Lora, AdaptsAModelThatIsNotLinearized) {
    Decoder decoder = tiny_decoder(tiny_config(), DType::f32);
    decoder.add_lora({.rank = 2}, 1);
    EXPECT_EQ(decoder.lora_parameters().size(), static_cast<size_t>(8 * decoder.num_layers()));
    const Tensor before = decoder.logits(tiny_ids(1, 9), {}).clone();
    test::disturb(decoder.lora_parameters(), 0.2);
    EXPECT_GT(relative_error(decoder.logits(tiny_ids(1, 9), {}), before), 1e-3);
}

TEST(Lora, Refusals) {
    Decoder decoder = tiny_decoder(tiny_config(), DType::f32);
    decoder.linearize(tiny_spec(), 1);
    EXPECT_THAT(error_of(ErrorKind::Usage, [&] { decoder.add_lora({.rank = 0}, 1); }), HasSubstr("rank"));
    EXPECT_THAT(error_of(ErrorKind::Usage, [&] { decoder.add_lora({.targets = {"up_proj"}}, 1); }),
                HasSubstr("'up_proj'"));
    EXPECT_THAT(error_of(ErrorKind::Usage, [&] { decoder.add_lora({.targets = {}}, 1); }), HasSubstr("no target"));
}

TEST(Trainable, ExactlyTheGivenOnesCollectGradients) {
    Decoder decoder = tiny_decoder(tiny_config(), DType::f32);
    decoder.linearize(tiny_spec(), 1);
    decoder.add_lora({}, 1);
    const auto gradients = [&] {
        backward(sum(decoder.logits(tiny_ids(1, 12), {.mode = AttentionMode::Linearized})));
        std::vector<int> counts;
        for (auto group : {decoder.base_parameters(), decoder.feature_map_parameters(), decoder.lora_parameters()}) {
            counts.push_back(0);
            for (NamedTensor& parameter : group) {
                counts.back() += grad_of(parameter.tensor).defined();
                if (grad_of(parameter.tensor).defined()) set_grad(parameter.tensor, {});
            }
        }
        return counts;
    };
    EXPECT_TRUE(requires_grad(decoder.base_parameters()[0].tensor)) << "random decoders are there to be trained";
    decoder.set_trainable(decoder.feature_map_parameters());
    EXPECT_EQ(gradients(), (std::vector<int>{0, 6, 0}));
    decoder.set_trainable(decoder.lora_parameters());
    EXPECT_EQ(gradients(), (std::vector<int>{0, 0, 16}));
    decoder.set_trainable(decoder.base_parameters());
    EXPECT_EQ(gradients(), (std::vector<int>{20, 0, 0}));
    decoder.set_trainable({});
    EXPECT_FALSE(requires_grad(decoder.logits(tiny_ids(1, 3), {})));
    const auto old = decoder.feature_map_parameters();
    decoder.linearize(tiny_spec(), 1);
    EXPECT_THAT(error_of(ErrorKind::Internal, [&] { decoder.set_trainable(old); }),
                HasSubstr("no parameter of this decoder"));
}

// Checkpointed layers give bitwise the gradients of plain ones.
TEST(Trainable, CheckpointedLayersGiveTheSameGradients) {
    Decoder decoder = tiny_decoder(tiny_config(), DType::f32);
    decoder.linearize(tiny_spec(), 1);
    decoder.add_lora({}, 1);
    test::disturb(decoder.lora_parameters(), 0.1);
    decoder.set_trainable(decoder.lora_parameters());
    const auto gradients = [&](bool checkpoint_layers) {
        backward(sum(decoder.logits(tiny_ids(2, 15),
                                    {.mode = AttentionMode::Linearized, .checkpoint_layers = checkpoint_layers})));
        std::vector<std::vector<float>> result;
        for (NamedTensor parameter : decoder.lora_parameters()) {
            result.push_back(grad_of(parameter.tensor).to_vector<float>());
            set_grad(parameter.tensor, {});
        }
        return result;
    };
    EXPECT_EQ(gradients(true), gradients(false));
}

}  // namespace
}  // namespace lc::models
