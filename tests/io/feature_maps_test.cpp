#include "io/feature_maps.h"

#include <limits>

#include "io/safetensors.h"
#include "tests/io/faults.h"

namespace lc::io {
namespace {

using test::expect_refused;
using test::ScratchDir;

const std::string kName = "model.layers.0.self_attn.feature_map_q.mlp.layer";

Metadata good_metadata() {
    return {{"format", "lolcats"},
            {"version", "1"},
            {"attention", R"({"kind":"hybrid"})"},
            {"base_model", "b"},
            {"base_model_hash", "00ff"},
            {"step", "7"},
            {"validation_loss", "0.25"}};
}

TEST(FeatureMaps, RoundTrip) {
    const ScratchDir dir;
    const FeatureMapsFile maps{
        .tensors = {{kName, Tensor::full({8, 64, 64}, 0.5, DType::f32)},
                    {"model.layers.0.self_attn.window_factors", Tensor::full({1, 8, 1, 1}, -2.25, DType::f64)}},
        .attention = R"({"kind":"hybrid","window_size":64})",
        .base_model = "models/b\xC3\xA4r",
        .base_hash = "00ff",
        .step = 123456789012,
        .validation_loss = 0.1 + 0.2,
    };
    write_feature_maps(dir / kFeatureMapsName, maps);
    for (const auto& path : {dir / kFeatureMapsName, dir.path()}) {
        const FeatureMapsFile read = read_feature_maps(path);
        EXPECT_EQ(read.attention, maps.attention);
        EXPECT_EQ(read.base_model, maps.base_model);
        EXPECT_EQ(read.base_hash, maps.base_hash);
        EXPECT_EQ(read.step, maps.step);
        EXPECT_EQ(read.validation_loss, maps.validation_loss);
        ASSERT_EQ(read.tensors.size(), 2u);
        EXPECT_EQ(read.tensors[0].first, kName);
        EXPECT_EQ(read.tensors[1].second.dtype(), DType::f32);
        EXPECT_EQ(read.tensors[1].second.shape(), (Shape{1, 8, 1, 1}));
    }
    FeatureMapsFile diverged = maps;
    diverged.validation_loss = std::numeric_limits<double>::quiet_NaN();
    write_feature_maps(dir / kFeatureMapsName, diverged);
    EXPECT_FALSE(read_feature_maps(dir.path()).validation_loss);
    diverged.attention = "[]";
    expect_refused([&] { write_feature_maps(dir / "x", diverged); }, {"attention"}, ErrorKind::Internal);
}

TEST(FeatureMaps, Malformed) {
    const ScratchDir dir;
    const std::vector<std::pair<Metadata, std::vector<std::string>>> cases = {
        {{{"format", "pt"}}, {"'format'", "lolcats", "pt"}},
        {{{"version", "2"}}, {"'version'", "\"1\"", "\"2\""}},
        {{{"attention", "{"}}, {"'attention'", "not valid JSON"}},
        {{{"attention", "[]"}}, {"'attention'", "JSON object"}},
        {{{"step", "7x"}}, {"'step'", "7x"}},
        {{{"step", ""}}, {"'step'", "number"}},
        {{{"step", "-1"}}, {"'step'", "-1"}},
        {{{"step", "99999999999999999999"}}, {"'step'", "99999999999999999999"}},
        {{{"validation_loss", "nan"}}, {"'validation_loss'", "finite"}},
        {{{"validation_loss", "low"}}, {"'validation_loss'", "low"}},
    };
    const Tensor good = Tensor::zeros({1, 2, 2}, DType::f32);
    const auto refuse = [&](const Metadata& metadata, const Tensor& tensor, std::vector<std::string> says) {
        const auto path = dir / "maps.safetensors";
        says.push_back(path.string());
        write_safetensors(path, {{kName, tensor}}, metadata);
        expect_refused([&] { read_feature_maps(path); }, says);
    };
    for (const auto& [changes, says] : cases) {
        Metadata metadata = good_metadata();
        for (const auto& [key, value] : changes) metadata[key] = value;
        refuse(metadata, good, says);
    }
    for (const char* key : {"format", "version", "attention", "base_model", "base_model_hash", "step"}) {
        Metadata metadata = good_metadata();
        metadata.erase(key);
        refuse(metadata, good, {key});
    }
    refuse(good_metadata(), Tensor::full({2}, std::numeric_limits<double>::infinity(), DType::bf16), {kName, "inf"});
    refuse(good_metadata(), Tensor::zeros({2}, DType::u8), {kName, "U8"});
    write_safetensors(dir / "empty", {}, good_metadata());
    expect_refused([&] { read_feature_maps(dir / "empty"); }, {"empty", "no tensors"});
    expect_refused([&] { read_feature_maps(dir.path()); }, {kFeatureMapsName, "cannot be opened"});
}

}  // namespace
}  // namespace lc::io
