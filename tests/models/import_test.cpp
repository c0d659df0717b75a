// The authors' checkpoints as runs: what torch.save wrote is what the decoder computes with.
#include "models/import.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <fstream>

#include "io/json.h"
#include "models/model_source.h"
#include "models/run.h"
#include "tests/io/torch_bytes.h"
#include "tests/models/tiny.h"

namespace lc::models {
namespace {

namespace fs = std::filesystem;
using test::error_of;
using test::TemporaryDirectory;
using testing::AllOf;
using testing::HasSubstr;

const fs::path kGolden = LC_SOURCE_DIR "/tests/golden/torch_checkpoint";

class Import : public testing::Test {
  protected:
    Import() {
        save_base(test::tiny_decoder(test::tiny_config(), DType::f32), model_.path(), DType::f32);
        const io::Json values = io::read_json_file(kGolden / "values.json");
        for (const char* file : {"transfer", "finetune", "both", "t2r"})
            for (const auto& [name, value] : values[file].items())
                golden_[std::string(file) + ":" + name] = value[2].get<std::vector<float>>();
    }
    fs::path run() const { return out_.path() / "run"; }
    ImportReport import(const std::vector<fs::path>& files, const ImportOptions& options = {}) const {
        return import_checkpoints(model_.path(), files, run(), options);
    }
    Decoder load() const { return load_model({.directory = model_.path()}, run(), {}); }
    // "golden": the file's; "ours": the decoder's, rows as they lie.
    void expect_golden(const std::vector<NamedTensor>& parameters, const std::string& file, const std::string& prefix,
                       const std::string& strip, const std::string& infix) const {
        for (const NamedTensor& parameter : parameters) {
            std::string name = parameter.name.substr(strip.size());
            if (!infix.empty()) name.insert(name.size() - std::string("weight").size(), infix);
            const auto wanted = golden_.find(file + ":" + prefix + name);
            ASSERT_NE(wanted, golden_.end()) << prefix + name;
            EXPECT_EQ(parameter.tensor.to_vector<float>(), wanted->second) << name;
        }
    }
    TemporaryDirectory model_, out_;
    std::map<std::string, std::vector<float>> golden_;
};

TEST_F(Import, TransferAloneGivesTheHybrid) {
    const ImportReport report = import({kGolden / "transfer.pt"});
    EXPECT_EQ(report.layers, 2);
    EXPECT_EQ(report.lora_rank, 0);
    const Decoder decoder = load();
    EXPECT_EQ(*decoder.attention(), report.attention);
    EXPECT_EQ(decoder.attention()->kind, AttentionKind::hybrid);
    EXPECT_EQ(decoder.attention()->feature_dim, 3);
    EXPECT_EQ(decoder.attention()->window_size, 64);
    EXPECT_EQ(decoder.attention()->activation, kernels::FeatureActivation::softmax_dim);
    EXPECT_FALSE(decoder.lora());
    expect_golden(decoder.feature_map_parameters(), "transfer", "model.", "model.", "");
    EXPECT_EQ(io::read_feature_maps(run()).step, 900);
}

TEST_F(Import, TwoFilesAreBothStages) {
    const ImportReport report = import({kGolden / "transfer.pt", kGolden / "finetune.pt"},
                                       {.window = kernels::WindowKind::sliding, .window_size = 4});
    EXPECT_EQ(report.lora_rank, 2);
    const Decoder decoder = load();
    EXPECT_EQ(decoder.attention()->window, kernels::WindowKind::sliding);
    EXPECT_EQ(decoder.lora()->alpha, 4) << "twice the rank";
    EXPECT_EQ(decoder.lora_parameters().size(), 16u);
    expect_golden(decoder.feature_map_parameters(), "transfer", "model.", "model.", "");
    expect_golden(decoder.lora_parameters(), "finetune", "base_model.model.model.", "base_model.model.model.",
                  "default.");
}

TEST_F(Import, OneFileOfBothStages) {
    import({kGolden / "both.pt"}, {.lora_alpha = 3});
    const Decoder decoder = load();
    EXPECT_EQ(decoder.lora()->alpha, 3);
    expect_golden(decoder.feature_map_parameters(), "both", "base_model.model.model.", "model.", "");
    expect_golden(decoder.lora_parameters(), "both", "base_model.model.model.", "base_model.model.model.", "default.");
}

TEST_F(Import, T2rIsKnownByItsBiases) {
    import({kGolden / "t2r.pt"});
    const Decoder decoder = load();
    EXPECT_EQ(decoder.attention()->kind, AttentionKind::linear) << "no window factors";
    EXPECT_EQ(decoder.attention()->activation, kernels::FeatureActivation::relu);
    EXPECT_EQ(decoder.attention()->bias, FeatureBias::head_scalar);
    expect_golden(decoder.feature_map_parameters(), "t2r", "model.", "model.", "");
}

// Files made here, with one thing wrong.
class ImportOfMade : public Import {
  protected:
    using Tensors = std::vector<std::pair<std::string, Tensor>>;
    static Tensors good() {
        Tensors tensors;
        for (int i = 0; i < 2; ++i) {
            const std::string name = fmt::format("model.layers.{}.self_attn.", i);
            tensors.emplace_back(name + "window_factors", Tensor::zeros({1, 4, 1, 1}, DType::f32));
            tensors.emplace_back(name + "feature_map_q.mlp.layer", Tensor::full({4, 6, 5}, 0.5, DType::f32));
            tensors.emplace_back(name + "feature_map_k.mlp.layer", Tensor::full({4, 6, 5}, 0.25, DType::f32));
            tensors.emplace_back(name + "v_proj.lora_A.default.weight", Tensor::full({2, 24}, 1, DType::f32));
            tensors.emplace_back(name + "v_proj.lora_B.default.weight", Tensor::full({12, 2}, 1, DType::f32));
        }
        return tensors;
    }
    fs::path write(const Tensors& tensors, const char* name = "model.pt") const {
        std::ofstream(out_.path() / name, std::ios::binary) << io::test::torch_bytes(tensors);
        return out_.path() / name;
    }
    std::string refusal(const Tensors& tensors) const {
        std::string message = error_of(ErrorKind::BadInput, [&] { import({write(tensors)}); });
        EXPECT_FALSE(fs::exists(run()));
        EXPECT_THAT(message, HasSubstr("model.pt"));
        return message;
    }
    static Tensor& named(Tensors& tensors, const std::string& end) {
        for (auto& [name, tensor] : tensors)
            if (name.ends_with(end)) return tensor;
        throw std::runtime_error(end);
    }
    static void rename(Tensors& tensors, const std::string& from, const std::string& to) {
        for (auto& [name, tensor] : tensors)
            if (const size_t at = name.find(from); at != std::string::npos) name.replace(at, from.size(), to);
    }
};

TEST_F(ImportOfMade, SpellingsAndSoftmaxLayers) {
    Tensors tensors = good();
    rename(tensors, "window_factors", "window_factor");
    rename(tensors, "model.layers.", "module.model.model.layers.");
    std::erase_if(tensors, [](const auto& item) { return item.first.find("layers.0.") != std::string::npos; });
    const ImportReport report = import({write(tensors)}, {.feature_map = "exp_dim"});
    EXPECT_EQ(report.layers, 1);
    EXPECT_EQ(report.attention.softmax_layers, std::vector<int64_t>{0});
    EXPECT_EQ(report.attention.activation, kernels::FeatureActivation::exp_dim);
    EXPECT_EQ(load().layer(1).maps.wk.to_vector<float>(), std::vector<float>(4 * 6 * 5, 0.25f));
    EXPECT_FALSE(load().layer(0).linearized);
}

TEST_F(ImportOfMade, TheAuthorsWindowIsRemembered) {
    import({write(good())}, {.window = kernels::WindowKind::sliding, .reference = true});
    EXPECT_TRUE(load().attention()->reference);
}

TEST_F(ImportOfMade, KeyMapsOfKvHeadsAreSeen) {
    Tensors tensors = good();
    for (auto& [name, tensor] : tensors)
        if (name.ends_with("feature_map_k.mlp.layer")) tensor = Tensor::full({2, 6, 5}, 2, DType::f32);
    EXPECT_EQ(import({write(tensors)}).attention.heads, FeatureHeads::kv);
    EXPECT_EQ(load().layer(0).maps.wk.shape(), Shape({2, 6, 5}));
}

TEST_F(ImportOfMade, LaterFilesReplace) {
    Tensors changed = good();
    changed.resize(2);
    named(changed, "window_factors").fill(3);
    import({write(good()), write(changed, "second.pt")});
    EXPECT_EQ(load().layer(0).mix_logit.to_vector<float>(), std::vector<float>(4, 3));
    EXPECT_EQ(load().layer(1).mix_logit.to_vector<float>(), std::vector<float>(4, 0));
}

TEST_F(ImportOfMade, WhatDoesNotFitIsRefused) {
    const std::pair<std::function<void(Tensors&)>, std::vector<const char*>> faults[] = {
        {[](Tensors& t) { t.emplace_back("model.layers.0.mlp.up_proj.weight", Tensor::zeros({1}, DType::f32)); },
         {"layers.0.mlp.up_proj.weight", "no feature map"}},
        {[](Tensors& t) { t.emplace_back("lm_head.weight", Tensor::zeros({1}, DType::f32)); }, {"lm_head.weight"}},
        {[](Tensors& t) { t.emplace_back("model.layers.x.self_attn.window_factors", Tensor::zeros({1}, DType::f32)); },
         {"layers.x."}},
        {[](Tensors& t) { t.emplace_back("model.layers.-1.self_attn.window_factors", Tensor::zeros({1}, DType::f32)); },
         {"layers.-1."}},
        {[](Tensors& t) {
             t.emplace_back("model.layers.99999999999999999999.self_attn.window_factors",
                            Tensor::zeros({1}, DType::f32));
         },
         {"layers.99999999999999999999."}},
        {[](Tensors& t) { rename(t, "layers.1.", "layers.2."); }, {"has layer 2", "layers 0 to 1"}},
        {[](Tensors& t) {
             named(t, "window_factors") = Tensor::zeros({1, 2, 1, 1}, DType::f32);
         },
         {"layers.0.self_attn.window_factors", "[1,4,1,1]", "[1,2,1,1]"}},
        {[](Tensors& t) {
             named(t, "window_factors") = Tensor::full({1, 4, 1, 1}, NAN, DType::f32);
         },
         {"window_factors", "nan", "element 0"}},
        {[](Tensors& t) {
             named(t, "feature_map_q.mlp.layer") = Tensor::zeros({4, 30}, DType::f32);
         },
         {"feature_map_q", "[H,D,F]", "[4,30]"}},
        {[](Tensors& t) {
             named(t, "feature_map_k.mlp.layer") = Tensor::zeros({3, 6, 5}, DType::f32);
         },
         {"feature_map_k", "[4,6,5]", "[3,6,5]"}},
        {[](Tensors& t) { rename(t, "layers.1.self_attn.feature_map_k", "layers.1.self_attn.feature_map_q"); },
         {"twice"}},
        {[](Tensors& t) { t.erase(t.begin() + 7); }, {"layers.1.self_attn.feature_map_k.mlp.layer", "missing"}},
        {[](Tensors& t) { t.erase(t.begin() + 9); }, {"v_proj", "layer 1", "one half"}},
        {[](Tensors& t) {
             t[8].second = Tensor::zeros({3, 24}, DType::f32);
         },
         {"layer 1", "[2,In]", "[3,24]"}},
        {[](Tensors& t) {
             t[3].second = Tensor::zeros({2, 20}, DType::f32);
         },
         {"v_proj.lora_A", "[2,24]", "[2,20]"}},
        {[](Tensors& t) {
             std::erase_if(t, [](const auto& item) { return item.first.find("lora") == std::string::npos; });
         },
         {"no feature maps", "attention transfer"}},
    };
    for (const auto& [change, parts] : faults) {
        Tensors tensors = good();
        change(tensors);
        const std::string message = refusal(tensors);
        for (const char* part : parts) EXPECT_THAT(message, HasSubstr(part));
    }
}

TEST_F(ImportOfMade, UsageIsRefused) {
    EXPECT_THAT(error_of(ErrorKind::Usage, [&] { import({}); }), HasSubstr("no checkpoint"));
    EXPECT_THAT(error_of(ErrorKind::Usage, [&] { import({write(good())}, {.feature_map = "gelu"}); }),
                HasSubstr("gelu"));
    fs::create_directory(run());
    EXPECT_THAT(error_of(ErrorKind::Usage, [&] { import({write(good())}); }), HasSubstr("exists"));
}

}  // namespace
}  // namespace lc::models
