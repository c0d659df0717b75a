// Merged exports: one directory that gives what base model and run gave, that appears whole or not at all.
#include "models/export.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>

#include "autograd/grad_mode.h"
#include "io/feature_maps.h"
#include "io/json.h"
#include "io/safetensors_model.h"
#include "models/model_source.h"
#include "models/run.h"
#include "tests/models/tiny.h"

namespace lc::models {
namespace {

namespace fs = std::filesystem;
using test::error_of;
using test::TemporaryDirectory;
using test::tiny_config;
using test::tiny_decoder;
using testing::AllOf;
using testing::HasSubstr;

class Export : public testing::Test {
  protected:
    // A base model in `dtype`, and a run on it whose maps and pairs are not at their start.
    void make(bool tied, DType dtype, const std::optional<AttentionSpec>& spec, bool lora) {
        Decoder decoder = tiny_decoder(tiny_config(tied, 3), DType::f32);
        save_base(decoder, model(), dtype);
        decoder = Decoder::load(model());
        const RunInfo info{.base_model = "tiny", .base_hash = model_hash(model()), .step = 7, .validation_loss = {}};
        if (spec) {
            decoder.linearize(*spec, 1);
            test::disturb(decoder.feature_map_parameters(), 0.3);
            save_feature_maps(decoder, run(), info);
        }
        if (!lora) return;
        decoder.add_lora({.rank = 2, .alpha = 3, .targets = {"q_proj", "o_proj"}}, 2);
        test::disturb(decoder.lora_parameters(), 0.2);
        save_adapter(decoder, run(), info);
    }
    // The run belongs to the base model as it is now.
    void rename_base() const {
        io::FeatureMapsFile maps = io::read_feature_maps(run());
        io::PeftAdapter adapter = io::read_peft_adapter(run());
        maps.base_hash = adapter.base_hash = model_hash(model());
        io::write_feature_maps(run() / io::kFeatureMapsName, maps);
        io::write_peft_adapter(run(), adapter);
    }
    fs::path model() const { return model_.path(); }
    fs::path run() const { return run_.path(); }
    fs::path out() const { return out_.path() / "merged"; }
    static std::vector<float> logits(const Decoder& decoder) {
        const NoGrad no_grad;
        return decoder.logits(test::tiny_ids(2, 14), {.mode = mode_of(decoder)}).to_vector<float>();
    }
    // What base and run give when they are merged in memory, f32.
    std::vector<float> wanted() const {
        Decoder decoder = load_model({.directory = model()}, run(), {});
        decoder.merge_lora();
        return logits(decoder);
    }
    io::Json config_of(const fs::path& directory) const { return io::read_json_file(directory / "config.json"); }
    static std::vector<std::string> files_of(const fs::path& directory) {
        std::vector<std::string> names;
        for (const auto& entry : fs::directory_iterator(directory)) names.push_back(entry.path().filename().string());
        std::sort(names.begin(), names.end());
        return names;
    }
    TemporaryDirectory model_, run_, out_;
};

struct Case {
    const char* name;
    bool tied;
    void (*change)(AttentionSpec&);
    int64_t shard_bytes;
};
std::ostream& operator<<(std::ostream& out, const Case& c) {
    return out << c.name;
}
class ExportVariants : public Export, public testing::WithParamInterface<Case> {};

TEST_P(ExportVariants, LoadsAsTheModelThatRunAndBaseWere) {
    AttentionSpec spec = test::tiny_spec();
    GetParam().change(spec);
    make(GetParam().tied, DType::f32, spec, true);
    const ExportReport report = export_merged(model(), run(), out(), {.shard_bytes = GetParam().shard_bytes});
    EXPECT_EQ(report.merged, 2 * (3 - static_cast<int64_t>(spec.softmax_layers.size())));
    EXPECT_TRUE(report.feature_maps);
    EXPECT_EQ(logits(load_model({.directory = out()}, {})), wanted());
    const io::SafetensorsModel before(model()), after(out());
    EXPECT_EQ(after.names(), before.names());
    EXPECT_EQ(after.total_bytes(), report.weight_bytes);
    EXPECT_EQ(after.files().size(), report.weight_files);
    // Without our section it is an ordinary model of the same softmax family.
    EXPECT_EQ(logits(Decoder::load(out())).size(), wanted().size());
}

INSTANTIATE_TEST_SUITE_P(
    All, ExportVariants,
    testing::Values(
        Case{"tied", true, [](AttentionSpec&) {}, 1 << 30}, Case{"untied", false, [](AttentionSpec&) {}, 1 << 30},
        Case{"kv_maps_sliding", false,
             [](AttentionSpec& s) { s.heads = FeatureHeads::kv, s.window = kernels::WindowKind::sliding; }, 1 << 30},
        Case{"kept_layer_in_shards", true, [](AttentionSpec& s) { s.softmax_layers = {1}; }, 9000},
        Case{"pure_linear_a_file_each", false, [](AttentionSpec& s) { s.kind = AttentionKind::linear; }, 1}),
    [](const auto& p) { return std::string(p.param.name); });

TEST_F(Export, ShardsAreNoLargerThanAskedFor) {
    make(false, DType::f32, test::tiny_spec(), true);
    const ExportReport report = export_merged(model(), run(), out(), {.shard_bytes = 9000});
    const io::SafetensorsModel files(out());
    EXPECT_GT(files.files().size(), 3u);
    for (const io::SafetensorsFile& file : files.files()) {
        int64_t bytes = 0;
        for (const io::TensorInfo& tensor : file.tensors()) bytes += tensor.bytes();
        EXPECT_LE(bytes, 9000) << file.path();
    }
    EXPECT_EQ(io::read_json_file(out() / "model.safetensors.index.json")["metadata"]["total_size"],
              report.weight_bytes);
}

// Frozen weights keep their bits, merged ones are the f32 merge rounded once; config.json keeps its own spelling.
TEST_F(Export, StoredDtypesAreKeptOrChosen) {
    make(false, DType::bf16, test::tiny_spec(), true);
    io::Json config = config_of(model());
    config.erase("torch_dtype");
    config["dtype"] = "bfloat16", config["some_key_of_theirs"] = {1, 2};
    std::ofstream(model() / "config.json") << config.dump();
    rename_base();
    export_merged(model(), run(), out());
    export_merged(model(), run(), out_.path() / "f32", {.dtype = DType::f32});
    const io::SafetensorsModel base(model()), kept(out()), wide(out_.path() / "f32");
    for (const std::string& name : base.names()) {
        EXPECT_EQ(kept.info(name).dtype, "BF16");
        EXPECT_EQ(wide.info(name).dtype, "F32");
        const bool merged = name.ends_with("q_proj.weight") || name.ends_with("o_proj.weight");
        EXPECT_EQ(wide.read(name, DType::f32).to_vector<float>() == base.read(name, DType::f32).to_vector<float>(),
                  !merged)
            << name;
        EXPECT_EQ(kept.read(name, DType::f32).to_vector<float>(),
                  wide.read(name).to(DType::bf16).to(DType::f32).to_vector<float>())
            << name;
    }
    EXPECT_EQ(logits(load_model({.directory = out_.path() / "f32"}, {})), wanted());
    io::Json written = config_of(out());
    written.erase("lolcats");
    EXPECT_EQ(written, config);
    EXPECT_EQ(config_of(out_.path() / "f32")["dtype"], "float32");
    EXPECT_FALSE(config_of(out_.path() / "f32").contains("torch_dtype"));
}

TEST_F(Export, SideFilesTravelAndNothingElse) {
    make(true, DType::f32, test::tiny_spec(), false);
    std::ofstream(model() / "tokenizer.json") << "{\"any\": 1}";
    std::ofstream(model() / "LICENSE") << "free";
    std::ofstream(model() / "notes.txt") << "private";
    export_merged(model(), run(), out());
    EXPECT_THAT(files_of(out()), testing::ElementsAre("LICENSE", "config.json", "feature_maps.safetensors",
                                                      "model.safetensors", "tokenizer.json"));
    EXPECT_EQ(io::read_file(out() / "tokenizer.json", 100), "{\"any\": 1}");
    EXPECT_EQ(io::read_feature_maps(out()).base_hash, "");
    EXPECT_EQ(config_of(out())["lolcats"]["base_model_hash"], model_hash(model()));
}

TEST_F(Export, RunOfSoftmaxAttentionBecomesAnOrdinaryModel) {
    make(true, DType::f32, std::nullopt, true);
    EXPECT_FALSE(export_merged(model(), run(), out()).feature_maps);
    EXPECT_FALSE(config_of(out()).contains("lolcats"));
    EXPECT_EQ(logits(load_model({.directory = out()}, {})), wanted());
}

TEST_F(Export, WhatCannotBeMergedLeavesNothingBehind) {
    make(true, DType::f32, test::tiny_spec(), true);
    const auto nothing_left = [&] { EXPECT_THAT(files_of(out_.path()), testing::IsEmpty()); };
    EXPECT_THAT(error_of(ErrorKind::Usage, [&] { export_merged(model(), run(), out(), {.shard_bytes = 0}); }),
                HasSubstr("at least 1"));
    EXPECT_THAT(error_of(ErrorKind::BadInput, [&] { export_merged(model(), run() / "none", out()); }),
                HasSubstr("no such run"));
    nothing_left();
    // A tensor of the last layer that does not fit.
    io::FeatureMapsFile maps = io::read_feature_maps(run());
    const io::FeatureMapsFile good = maps;
    ASSERT_EQ(maps.tensors.back().first, "model.layers.2.self_attn.window_factors");
    maps.tensors.back().second = Tensor::zeros({1, 3, 1, 1}, DType::f32);
    io::write_feature_maps(run() / io::kFeatureMapsName, maps);
    EXPECT_THAT(error_of(ErrorKind::BadInput, [&] { export_merged(model(), run(), out()); }),
                AllOf(HasSubstr("layers.2.self_attn.window_factors"), HasSubstr("[1,4,1,1]"), HasSubstr("[1,3,1,1]")));
    nothing_left();
    io::write_feature_maps(run() / io::kFeatureMapsName, good);
    std::ofstream(model() / "config.json", std::ios::app) << "\n";
    EXPECT_THAT(error_of(ErrorKind::BadInput, [&] { export_merged(model(), run(), out()); }),
                HasSubstr("another base model"));
    nothing_left();
    fs::create_directory(out());
    EXPECT_THAT(error_of(ErrorKind::Usage, [&] { export_merged(model(), run(), out()); }), HasSubstr("exists"));
}

TEST_F(Export, AnExportIsNoBaseModel) {
    make(true, DType::f32, test::tiny_spec(), false);
    export_merged(model(), run(), out());
    EXPECT_THAT(error_of(ErrorKind::BadInput, [&] { export_merged(out(), run(), out_.path() / "b"); }),
                HasSubstr("merged export already"));
    EXPECT_THAT(error_of(ErrorKind::BadInput, [&] { load_model({.directory = out()}, run(), {}); }),
                HasSubstr("linearized already"));
    const Decoder random = load_model({.directory = out(), .random_seed = 3}, {});
    EXPECT_EQ(random.attention()->window_size, 4);
}

struct Fault {
    const char* name;
    void (*change)(io::Json& section);
    std::vector<const char*> parts;
};

TEST_F(Export, SectionsThatDoNotFitAreRefused) {
    make(true, DType::f32, test::tiny_spec(), false);
    export_merged(model(), run(), out());
    const io::Json good = config_of(out());
    const Fault faults[] = {
        {"version", [](io::Json& s) { s["version"] = 2; }, {"lolcats.version", "must be 1", "got 2"}},
        {"no version", [](io::Json& s) { s.erase("version"); }, {"lolcats.version", "missing"}},
        {"elsewhere",
         [](io::Json& s) { s["feature_maps"] = "../feature_maps.safetensors"; },
         {"lolcats.feature_maps", "must be \"feature_maps.safetensors\"", "../"}},
        {"number", [](io::Json& s) { s["feature_maps"] = 1; }, {"lolcats.feature_maps", "string"}},
        {"no attention", [](io::Json& s) { s.erase("attention"); }, {"lolcats.attention", "missing"}},
        {"other window",
         [](io::Json& s) { s["attention"]["window_size"] = 8; },
         {"feature_maps.safetensors", "lolcats.attention", "\"window_size\":8", "\"window_size\":4"}},
        {"unknown kind", [](io::Json& s) { s["attention"]["attention"] = "flash"; }, {"config.json", "flash"}},
        {"list", [](io::Json& s) { s = io::Json::array({1}); }, {"lolcats", "object"}},
    };
    for (const Fault& fault : faults) {
        io::Json config = good;
        fault.change(config["lolcats"]);
        std::ofstream(out() / "config.json") << config.dump();
        const std::string message = error_of(ErrorKind::BadInput, [&] { load_model({.directory = out()}, {}); });
        for (const char* part : fault.parts) EXPECT_THAT(message, HasSubstr(part)) << fault.name;
    }
    std::ofstream(out() / "config.json") << good.dump();
    fs::remove(out() / "feature_maps.safetensors");
    EXPECT_THAT(error_of(ErrorKind::BadInput, [&] { load_model({.directory = out()}, {}); }),
                HasSubstr("feature_maps.safetensors"));
}

}  // namespace
}  // namespace lc::models
