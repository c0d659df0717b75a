// Model directories: written, read back, and refused when they do not fit.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>

#include "autograd/node.h"
#include "io/json.h"
#include "io/safetensors.h"
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
namespace fs = std::filesystem;

std::vector<std::vector<float>> values_of(const Decoder& decoder) {
    std::vector<std::vector<float>> values;
    for (const NamedTensor& parameter : decoder.base_parameters())
        values.push_back(parameter.tensor.to_vector<float>());
    return values;
}

std::string load_error(const fs::path& directory) {
    return error_of(ErrorKind::BadInput, [&] { Decoder::load(directory); });
}

TEST(Load, SavedModelsReadBackTheSame) {
    for (const bool tied : {true, false}) {
        const TemporaryDirectory directory;
        const Decoder decoder = tiny_decoder(tiny_config(tied), DType::f32);
        save_base(decoder, directory.path(), DType::f32);
        const Decoder again = Decoder::load(directory.path());
        EXPECT_EQ(values_of(again), values_of(decoder));
        EXPECT_EQ(again.config().tie_embeddings, tied);
        EXPECT_FALSE(requires_grad(again.base_parameters()[0].tensor));
        EXPECT_TRUE(fs::exists(directory.path() / "model.safetensors"));
        EXPECT_EQ(Decoder::load(directory.path(), {.placement = {.dtype = DType::f64}}).dtype(), DType::f64);
    }
}

TEST(Load, ShardsAndSixteenBits) {
    const TemporaryDirectory directory;
    const Decoder decoder = tiny_decoder(tiny_config(false), DType::f32);
    save_base(decoder, directory.path(), DType::bf16, 4096);
    EXPECT_TRUE(fs::exists(directory.path() / "model.safetensors.index.json"));
    EXPECT_FALSE(fs::exists(directory.path() / "model.safetensors"));
    int64_t shards = 0;
    for (const auto& entry : fs::directory_iterator(directory.path()))
        if (entry.path().extension() == ".safetensors") {
            EXPECT_LE(fs::file_size(entry.path()), 4096u + 2048u);  // data and header
            ++shards;
        }
    EXPECT_GE(shards, 5);
    const Decoder again = Decoder::load(directory.path());
    const auto wanted = decoder.base_parameters(), got = again.base_parameters();
    for (size_t i = 0; i < wanted.size(); ++i)
        EXPECT_EQ(got[i].tensor.to_vector<float>(), wanted[i].tensor.to(DType::bf16).to_vector<float>())
            << wanted[i].name;
}

TEST(Load, PartsHoldTheirLayersOnly) {
    const TemporaryDirectory directory;
    const Decoder whole = tiny_decoder(tiny_config(false, 4), DType::f32);
    save_base(whole, directory.path(), DType::f32);
    const Decoder part = Decoder::load(directory.path(), {.layers = {1, 3}});
    EXPECT_EQ(part.num_layers(), 2);
    EXPECT_EQ(part.base_parameters().size(), 2u * 9);
    EXPECT_EQ(part.base_parameters()[0].name, "model.layers.1.input_layernorm.weight");
    EXPECT_EQ(part.layer(0).up.to_vector<float>(), whole.layer(1).up.to_vector<float>());
    // Conversion draws the same numbers for a layer in a part and in the whole.
    AttentionSpec spec = test::tiny_spec();
    spec.init = FeatureInit::normal;
    Decoder a = part, b = whole;
    a.linearize(spec, 5), b.linearize(spec, 5);
    EXPECT_EQ(a.layer(1).maps.wq.to_vector<float>(), b.layer(2).maps.wq.to_vector<float>());
    EXPECT_EQ(a.feature_map_parameters(1)[0].name, "model.layers.2.self_attn.feature_map_q.mlp.layer");
    EXPECT_THAT(error_of(ErrorKind::Usage,
                         [&] {
                             Decoder::load(directory.path(), {.layers = {2, 5}});
                         }),
                HasSubstr("layers 2..5 do not exist: the model has 4"));
    EXPECT_THROW(part.layer(2), std::out_of_range);
    EXPECT_THROW(part.project(2, Tensor::zeros({1, 1, 24}, DType::f32)), Error);
}

TEST(Load, ConfigThatDoesNotFitTheWeights) {
    const TemporaryDirectory directory;
    save_base(tiny_decoder(tiny_config(), DType::f32), directory.path(), DType::f32);
    const io::Json good = io::read_json_file(directory.path() / "config.json");
    const auto error_with = [&](const char* key, const io::Json& value) {
        io::Json config = good;
        config[key] = value;
        std::ofstream(directory.path() / "config.json") << config;
        return load_error(directory.path());
    };
    EXPECT_THAT(error_with("intermediate_size", 33),
                AllOf(HasSubstr("model.safetensors: tensor 'model.layers.0.mlp.gate_proj.weight' must be [33,24]"),
                      HasSubstr("got [32,24]")));
    EXPECT_THAT(error_with("num_key_value_heads", 4),
                HasSubstr("k_proj.weight' must be [24,24] by config.json, got [12,24]"));
    EXPECT_THAT(error_with("num_hidden_layers", 3), HasSubstr("model.layers.2.input_layernorm.weight"));
    EXPECT_THAT(error_with("num_hidden_layers", 1),
                AllOf(HasSubstr("model.layers.1."), HasSubstr("no part of the model")));
    EXPECT_THAT(error_with("tie_word_embeddings", false), HasSubstr("lm_head.weight"));
    EXPECT_THAT(error_with("vocab_size", "many"), HasSubstr("vocab_size"));
    EXPECT_THAT(error_with("model_type", "gpt2"), HasSubstr("gpt2"));
}

TEST(Load, StrangeTensors) {
    const TemporaryDirectory directory;
    const Decoder decoder = tiny_decoder(tiny_config(), DType::f32);
    save_base(decoder, directory.path(), DType::f32);
    const auto rewrite = [&](const std::string& name, const Tensor& tensor) {
        std::vector<std::pair<std::string, Tensor>> tensors;
        for (const NamedTensor& parameter : decoder.base_parameters())
            if (parameter.name != name) tensors.emplace_back(parameter.name, parameter.tensor);
        tensors.emplace_back(name, tensor);
        io::write_safetensors(directory.path() / "model.safetensors", tensors);
    };
    rewrite("model.layers.0.self_attn.q_proj.bias", Tensor::zeros({24}, DType::f32));
    EXPECT_THAT(load_error(directory.path()),
                HasSubstr("'model.layers.0.self_attn.q_proj.bias' is no part of the model"));
    rewrite("model.norm.weight", Tensor::zeros({24}, DType::i32));
    EXPECT_THAT(load_error(directory.path()), AllOf(HasSubstr("'model.norm.weight'"), HasSubstr("floating-point")));
    // Harmless: what old converters left, and a copy of the tied embedding.
    rewrite("model.layers.0.self_attn.rotary_emb.inv_freq", Tensor::zeros({3}, DType::f32));
    EXPECT_NO_THROW(Decoder::load(directory.path()));
    rewrite("lm_head.weight", Tensor::zeros({40, 24}, DType::f32));
    EXPECT_NO_THROW(Decoder::load(directory.path()));
}

TEST(Load, NothingThere) {
    const TemporaryDirectory directory;
    EXPECT_THAT(load_error(directory.path()), HasSubstr("config.json"));
    save_base(tiny_decoder(tiny_config(), DType::f32), directory.path(), DType::f32);
    fs::remove(directory.path() / "model.safetensors");
    EXPECT_THAT(load_error(directory.path()), HasSubstr("safetensors"));
}

TEST(ModelHash, TellsWeightsAndConfigsApart) {
    const TemporaryDirectory a, b;
    const Decoder decoder = tiny_decoder(tiny_config(), DType::f32);
    save_base(decoder, a.path(), DType::f32), save_base(decoder, b.path(), DType::f32);
    const std::string hash = model_hash(a.path());
    EXPECT_EQ(hash.size(), 32u);
    EXPECT_EQ(model_hash(b.path()), hash);
    test::disturb({decoder.base_parameters().back()}, 1e-3);
    save_base(decoder, b.path(), DType::f32);
    EXPECT_NE(model_hash(b.path()), hash);
    std::ofstream(a.path() / "config.json", std::ios::app) << "\n";
    EXPECT_NE(model_hash(a.path()), hash);
}

}  // namespace
}  // namespace lc::models
