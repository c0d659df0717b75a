// Run directories: what training saves is what generation gets, and nothing else is accepted.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>

#include "autograd/grad_mode.h"
#include "io/feature_maps.h"
#include "io/json.h"
#include "io/peft_adapter.h"
#include "models/run.h"
#include "tests/models/tiny.h"

namespace lc::models {
namespace {

using test::error_of;
using test::TemporaryDirectory;
using test::tiny_config;
using test::tiny_decoder;
using testing::AllOf;
using testing::HasSubstr;

struct Case {
    const char* name;
    void (*change)(AttentionSpec&);
    bool lora;
};
std::ostream& operator<<(std::ostream& out, const Case& c) {
    return out << c.name;
}

// A linearized decoder with maps and pairs that are not at their start.
Decoder trained(const AttentionSpec& spec, bool lora, int64_t layers = 2) {
    Decoder decoder = tiny_decoder(tiny_config(true, layers), DType::f32);
    decoder.linearize(spec, 1);
    test::disturb(decoder.feature_map_parameters(), 0.3);
    if (!lora) return decoder;
    decoder.add_lora({.rank = 2, .alpha = 3, .targets = {"q_proj", "v_proj"}}, 2);
    test::disturb(decoder.lora_parameters(), 0.2);
    return decoder;
}

void save(const Decoder& decoder, const std::filesystem::path& run, const std::string& hash = "abc") {
    const RunInfo info{.base_model = "tiny", .base_hash = hash, .step = 7, .validation_loss = 0.5};
    save_feature_maps(decoder, run, info);
    if (decoder.lora()) save_adapter(decoder, run, info);
}

class RunRoundTrip : public testing::TestWithParam<Case> {};

TEST_P(RunRoundTrip, AppliedToTheBaseGivesTheSameModel) {
    AttentionSpec spec = test::tiny_spec();
    GetParam().change(spec);
    const Decoder decoder = trained(spec, GetParam().lora);
    const TemporaryDirectory run;
    save(decoder, run.path());
    Decoder again = tiny_decoder(tiny_config(), DType::f32);
    apply_run(again, run.path(), "abc");
    EXPECT_EQ(*again.attention(), *decoder.attention());
    EXPECT_EQ(again.lora().has_value(), GetParam().lora);
    const NoGrad no_grad;
    const Decoder::ForwardOptions options{.mode = AttentionMode::Linearized};
    EXPECT_EQ(again.logits(test::tiny_ids(2, 14), options).to_vector<float>(),
              decoder.logits(test::tiny_ids(2, 14), options).to_vector<float>());
    const io::FeatureMapsFile file = io::read_feature_maps(run.path());
    EXPECT_EQ(file.step, 7);
    EXPECT_EQ(file.validation_loss, 0.5);
    EXPECT_EQ(file.base_model, "tiny");
}

INSTANTIATE_TEST_SUITE_P(
    Variants, RunRoundTrip,
    testing::Values(Case{"maps_only", [](AttentionSpec&) {}, false}, Case{"with_adapter", [](AttentionSpec&) {}, true},
                    Case{"kv_maps", [](AttentionSpec& s) { s.heads = FeatureHeads::kv; }, false},
                    Case{"kept_layer", [](AttentionSpec& s) { s.softmax_layers = {0}; }, true},
                    Case{"linear_with_scalar_bias",
                         [](AttentionSpec& s) {
                             s.kind = AttentionKind::linear, s.activation = kernels::FeatureActivation::relu;
                             s.bias = FeatureBias::head_scalar;
                         },
                         false},
                    Case{"vector_bias", [](AttentionSpec& s) { s.bias = FeatureBias::vector; }, false}),
    [](const auto& p) { return std::string(p.param.name); });

TEST(Run, TensorsHaveTheShapesOfTheAuthorsFiles) {
    AttentionSpec spec = test::tiny_spec();
    spec.bias = FeatureBias::vector, spec.feature_dim = 3;
    const TemporaryDirectory run;
    save(trained(spec, false, 1), run.path());
    std::vector<std::string> lines;
    for (const auto& [name, tensor] : io::read_feature_maps(run.path()).tensors)
        lines.push_back(name + " " + tensor.shape().str());
    EXPECT_THAT(lines, testing::ElementsAre("model.layers.0.self_attn.feature_map_k.mlp.bias [1,4,1,3]",
                                            "model.layers.0.self_attn.feature_map_k.mlp.layer [4,6,3]",
                                            "model.layers.0.self_attn.feature_map_q.mlp.bias [1,4,1,3]",
                                            "model.layers.0.self_attn.feature_map_q.mlp.layer [4,6,3]",
                                            "model.layers.0.self_attn.window_factors [1,4,1,1]"));
}

TEST(Run, PartsOfAModelTakeTheirLayers) {
    const TemporaryDirectory model, run;
    const Decoder decoder = trained(test::tiny_spec(), true, 3);
    save_base(decoder, model.path(), DType::f32);
    save(decoder, run.path());
    Decoder part = Decoder::load(model.path(), {.layers = {1, 2}});
    apply_run(part, run.path(), "");
    EXPECT_EQ(part.layer(0).maps.wk.to_vector<float>(), decoder.layer(1).maps.wk.to_vector<float>());
    EXPECT_EQ(part.layer(0).v.lora_b.to_vector<float>(), decoder.layer(1).v.lora_b.to_vector<float>());
}

// Whatever is wrong, the decoder stays as it was.
class RunRefused : public testing::Test {
  protected:
    std::string refusal(const std::string& hash = "abc", int64_t layers = 2) {
        Decoder decoder = tiny_decoder(tiny_config(true, layers), DType::f32);
        const std::string message = error_of(ErrorKind::BadInput, [&] { apply_run(decoder, run_.path(), hash); });
        EXPECT_FALSE(decoder.attention().has_value());
        EXPECT_FALSE(decoder.layer(0).linearized);
        return message;
    }
    void edit_maps(const std::function<void(io::FeatureMapsFile&)>& change) {
        io::FeatureMapsFile file = io::read_feature_maps(run_.path());
        change(file);
        io::write_feature_maps(run_.path() / io::kFeatureMapsName, file);
    }
    void edit_adapter(const std::function<void(io::PeftAdapter&)>& change) {
        io::PeftAdapter adapter = io::read_peft_adapter(run_.path());
        change(adapter);
        io::write_peft_adapter(run_.path(), adapter);
    }
    TemporaryDirectory run_;
};

TEST_F(RunRefused, OtherBaseModel) {
    save(trained(test::tiny_spec(), false), run_.path(), "the base that it was");
    EXPECT_THAT(refusal("another"), AllOf(HasSubstr("another base model"), HasSubstr("the base that it was")));
}

TEST_F(RunRefused, OtherBaseModelOfTheAdapter) {
    save(trained(test::tiny_spec(), true), run_.path());
    edit_adapter([](io::PeftAdapter& adapter) { adapter.base_hash = "def"; });
    EXPECT_THAT(refusal(), AllOf(HasSubstr("adapter_config.json"), HasSubstr("another base model")));
}

TEST_F(RunRefused, MissingAndExtraLayers) {
    save(trained(test::tiny_spec(), false), run_.path());
    EXPECT_THAT(refusal("abc", 3), HasSubstr("'model.layers.2.self_attn.feature_map_q.mlp.layer' is missing"));
    EXPECT_THAT(refusal("abc", 1),
                AllOf(HasSubstr("'model.layers.1.self_attn."), HasSubstr("does not fit this model")));
    edit_maps([](io::FeatureMapsFile& file) { file.tensors.pop_back(); });
    EXPECT_THAT(refusal(), HasSubstr("'model.layers.1.self_attn.window_factors' is missing"));
}

TEST_F(RunRefused, WrongShapes) {
    save(trained(test::tiny_spec(), false), run_.path());
    edit_maps([](io::FeatureMapsFile& file) {
        for (auto& [name, tensor] : file.tensors)
            if (name.ends_with("feature_map_k.mlp.layer")) tensor = tensor.sliced(0, 0, 2).clone();
    });
    EXPECT_THAT(refusal(), HasSubstr("feature_map_k.mlp.layer' must be [4,6,6] for this model, got [2,6,6]"));
}

TEST_F(RunRefused, AttentionThatCannotBeRun) {
    save(trained(test::tiny_spec(), false), run_.path());
    edit_maps([](io::FeatureMapsFile& file) { file.attention = R"({"window_size": 4, "softmax_layers": [9]})"; });
    EXPECT_THAT(refusal(), HasSubstr("softmax_layers must lie in 0 to 1"));
    edit_maps([](io::FeatureMapsFile& file) { file.attention = R"({"window_size": 4, "gated": true})"; });
    EXPECT_THAT(refusal(), HasSubstr("unknown key 'gated'"));
}

TEST_F(RunRefused, AdaptersThatDoNotFit) {
    save(trained(test::tiny_spec(), true), run_.path());
    const io::PeftAdapter good = io::read_peft_adapter(run_.path());
    const auto with = [&](const std::function<void(io::PeftAdapter&)>& change) {
        io::write_peft_adapter(run_.path(), good);
        edit_adapter(change);
        return refusal();
    };
    EXPECT_THAT(with([](auto& a) { a.modules.erase("layers.1.self_attn.q_proj"); }),
                HasSubstr("layers.1.self_attn.q_proj.lora_A.weight' is missing"));
    EXPECT_THAT(with([](auto& a) { a.modules["layers.5.self_attn.q_proj"] = a.modules["layers.1.self_attn.q_proj"]; }),
                HasSubstr("does not fit this model"));
    EXPECT_THAT(with([](auto& a) {
                    a.modules["layers.0.self_attn.v_proj"].b = Tensor::zeros({24, 2}, DType::f32);
                }),
                HasSubstr("must be [12,2] for this model, got [24,2]"));
    EXPECT_THAT(with([](auto& a) {
                    a.target_modules.push_back("up_proj");
                    a.modules["layers.0.mlp.up_proj"] = a.modules["layers.1.self_attn.q_proj"];
                }),
                HasSubstr("'up_proj'"));
}

TEST_F(RunRefused, NoRun) {
    EXPECT_THAT(refusal(), HasSubstr("feature_maps.safetensors"));
    Decoder decoder = tiny_decoder(tiny_config(), DType::f32);
    EXPECT_THAT(error_of(ErrorKind::BadInput, [&] { apply_run(decoder, run_.path() / "nowhere", ""); }),
                HasSubstr("no such run directory"));
}

TEST(Run, OnlyWholeLinearizedModelsAreSaved) {
    const TemporaryDirectory run;
    const Decoder plain = tiny_decoder(tiny_config(), DType::f32);
    EXPECT_THROW(save_feature_maps(plain, run.path(), {}), Error);
    EXPECT_THROW(save_adapter(trained(test::tiny_spec(), false), run.path(), {}), Error);
}

}  // namespace
}  // namespace lc::models
