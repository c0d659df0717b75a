#include "io/peft_adapter.h"

#include <cmath>
#include <functional>
#include <limits>

#include "io/json.h"
#include "io/safetensors.h"
#include "tests/io/faults.h"

namespace lc::io {
namespace {

namespace fs = std::filesystem;
using test::expect_refused;
using test::ScratchDir;
using Tensors = std::vector<std::pair<std::string, Tensor>>;

const std::string kQ = "base_model.model.model.layers.0.self_attn.q_proj.lora_";
const std::string kV = "base_model.model.model.layers.11.self_attn.v_proj.lora_";

Json good_config() {
    return parse_json(R"({"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 2, "lora_alpha": 4, "lora_dropout": 0.05,
        "target_modules": ["q_proj", "v_proj"], "bias": "none", "base_model_name_or_path": "some/model",
        "inference_mode": true, "fan_in_fan_out": false, "use_rslora": false, "use_dora": false, "modules_to_save": null,
        "rank_pattern": {}, "alpha_pattern": {}, "layers_to_transform": null, "init_lora_weights": true})",
                      "good");
}

Tensors good_tensors() {
    return {{kQ + "A.weight", Tensor::full({2, 6}, 0.5, DType::bf16)},
            {kQ + "B.weight", Tensor::full({8, 2}, 0.25, DType::bf16)},
            {kV + "A.weight", Tensor::full({2, 6}, 1, DType::f32)},
            {kV + "B.weight", Tensor::full({4, 2}, 2, DType::f32)}};
}

void write(const ScratchDir& dir, const Json& config, const Tensors& tensors) {
    dir.write("adapter_config.json", config.dump());
    write_safetensors(dir / "adapter_model.safetensors", tensors, {{"format", "pt"}});
}

TEST(PeftAdapter, ReadsWhatPeftWrites) {
    const ScratchDir dir;
    write(dir, good_config(), good_tensors());
    const PeftAdapter adapter = read_peft_adapter(dir.path());
    EXPECT_EQ(adapter.r, 2);
    EXPECT_EQ(adapter.alpha, 4);
    EXPECT_EQ(adapter.dropout, 0.05);
    EXPECT_EQ(adapter.base_model, "some/model");
    EXPECT_EQ(adapter.base_hash, "");
    ASSERT_EQ(adapter.modules.size(), 2u);
    const LoraPair& q = adapter.modules.at("layers.0.self_attn.q_proj");
    EXPECT_EQ(q.a.dtype(), DType::f32);
    EXPECT_EQ(q.a.shape(), (Shape{2, 6}));
    EXPECT_EQ(q.b.to_vector<float>(), std::vector<float>(16, 0.25f));
}

TEST(PeftAdapter, RoundTrip) {
    const ScratchDir dir;
    PeftAdapter adapter{.r = 3, .alpha = 1.5, .dropout = 0, .target_modules = {"o_proj"}, .base_hash = "0123"};
    adapter.modules["layers.2.self_attn.o_proj"] = {Tensor::full({3, 5}, -1, DType::f32),
                                                    Tensor::zeros({7, 3}, DType::f32)};
    write_peft_adapter(dir / "run/adapter", adapter);
    const PeftAdapter read = read_peft_adapter(dir / "run/adapter");
    EXPECT_EQ(read.r, 3);
    EXPECT_EQ(read.alpha, 1.5);
    EXPECT_EQ(read.target_modules, adapter.target_modules);
    EXPECT_EQ(read.base_model, "");
    EXPECT_EQ(read.base_hash, "0123");
    const LoraPair& pair = read.modules.at("layers.2.self_attn.o_proj");
    EXPECT_EQ(pair.a.to_vector<float>(), std::vector<float>(15, -1.0f));
    EXPECT_EQ(pair.b.shape(), (Shape{7, 3}));
    adapter.r = 4;
    expect_refused([&] { write_peft_adapter(dir / "bad", adapter); }, {"o_proj", "r = 4"}, ErrorKind::Internal);
}

TEST(PeftAdapterMalformed, Config) {
    const std::vector<std::pair<std::string, std::vector<std::string>>> cases = {
        {R"("peft_type": "IA3")", {"'peft_type'", "LORA", "IA3"}},
        {R"("peft_type": null)", {"'peft_type'", "missing"}},
        {R"("task_type": "SEQ_CLS")", {"'task_type'", "SEQ_CLS"}},
        {R"("r": 0)", {"'r'", "0"}},
        {R"("r": "8")", {"'r'", "\"8\""}},
        {R"("lora_alpha": null)", {"'lora_alpha'", "missing"}},
        {R"("lora_dropout": 1.5)", {"'lora_dropout'", "1.5"}},
        {R"("target_modules": "all-linear")", {"'target_modules'", "an array"}},
        {R"("target_modules": [])", {"'target_modules'", "empty"}},
        {R"("bias": "all")", {"'bias'", "none", "all"}},
        {R"("use_dora": true)", {"'use_dora'", "true"}},
        {R"("use_rslora": true)", {"'use_rslora'", "true"}},
        {R"("lora_bias": true)", {"'lora_bias'"}},
        {R"("fan_in_fan_out": true)", {"'fan_in_fan_out'"}},
        {R"("modules_to_save": ["lm_head"])", {"'modules_to_save'"}},
        {R"("layer_replication": [[0, 4]])", {"'layer_replication'"}},
        {R"("rank_pattern": {"q_proj": 4})", {"'rank_pattern'"}},
        {R"("alpha_pattern": {"q_proj": 4})", {"'alpha_pattern'"}},
        {R"("init_lora_weights": "pissa_niter_4")", {"'init_lora_weights'", "pissa"}},
        {R"("init_lora_weights": "lora_ga")", {"'init_lora_weights'", "lora_ga"}},
        {R"("init_lora_weights": 1)", {"'init_lora_weights'", "1"}},
        {R"("layers_to_transform": [0])", {"'layers_to_transform'"}},
        {R"("layers_to_transform": 0)", {"'layers_to_transform'"}},
        {R"("exclude_modules": ["q_proj"])", {"'exclude_modules'"}},
        {R"("exclude_modules": ".*11.*")", {"'exclude_modules'"}},
        {R"("megatron_config": {"tp": 2})", {"'megatron_config'"}},
        {R"("trainable_token_indices": [1])", {"'trainable_token_indices'"}},
        {R"("loftq_config": {"loftq_bits": 4})", {"'loftq_config'"}},
        {R"("corda_config": {"corda_method": "ipm"})", {"'corda_config'"}},
        {R"("lora_ga_config": {"direction": "ArB2r"})", {"'lora_ga_config'"}},
        {R"("monteclora_config": {"n": 4})", {"'monteclora_config'"}},
        {R"("kasa_config": {"beta": 1})", {"'kasa_config'"}},
        {R"("alora_invocation_tokens": [1, 2])", {"'alora_invocation_tokens'"}},
        {R"("use_qalora": true)", {"'use_qalora'"}},
        {R"("target_parameters": ["mlp.experts.gate_up_proj"])", {"'target_parameters'"}},
        {R"("use_bdlora": {"nblocks": 2})", {"'use_bdlora'"}},
        {R"("arrow_config": {"top_k": 3})", {"'arrow_config'"}},
        {R"("an_option_of_tomorrow": 1)", {"'an_option_of_tomorrow'", "not supported"}},
    };
    for (const auto& [change, says] : cases) {
        SCOPED_TRACE(change);
        const ScratchDir dir;
        Json config = good_config();
        config.update(parse_json("{" + change + "}", "change"));
        write(dir, config, good_tensors());
        std::vector<std::string> all = says;
        all.push_back((dir / "adapter_config.json").string());
        expect_refused([&] { read_peft_adapter(dir.path()); }, all);
    }
}

// Options that say where an adapter comes from or how it was trained; those of newer versions that are off.
TEST(PeftAdapter, OptionsWithoutMeaningForTheFunction) {
    const ScratchDir dir;
    Json config = good_config();
    config.update(parse_json(R"({"auto_mapping": {"base_model_class": "LlamaForCausalLM"}, "peft_version": "0.21.2",
        "revision": "main", "layers_pattern": "layers", "megatron_core": "megatron.core", "eva_config": {"rho": 2},
        "velora_config": {"groups": 8}, "qalora_group_size": 16, "ensure_weight_tying": true, "merge_weights": true,
        "init_lora_weights": "gaussian", "loftq_config": {}, "an_option_of_tomorrow": false, "another": null})",
                             "change"));
    write(dir, config, good_tensors());
    EXPECT_EQ(read_peft_adapter(dir.path()).modules.size(), 2u);
}

TEST(PeftAdapterMalformed, Tensors) {
    const float nan = std::numeric_limits<float>::quiet_NaN();
    struct Case {
        const char* what;
        std::function<void(Tensors&)> spoil;
        std::vector<std::string> says;
    };
    const std::vector<Case> cases = {
        {"no tensors", [](Tensors& t) { t.clear(); }, {"no tensors"}},
        {"missing B", [](Tensors& t) { t.erase(t.begin() + 1); }, {"'layers.0.self_attn.q_proj'", "lora_B"}},
        {"missing A", [](Tensors& t) { t.erase(t.begin() + 2); }, {"'layers.11.self_attn.v_proj'", "lora_A"}},
        {"A of another rank",
         [](Tensors& t) {
             t[0].second = Tensor::zeros({3, 6}, DType::f32);
         },
         {kQ + "A.weight", "[r = 2, in]", "[3,6]"}},
        {"B of another rank",
         [](Tensors& t) {
             t[1].second = Tensor::zeros({8, 3}, DType::f32);
         },
         {kQ + "B.weight", "[out, r = 2]", "[8,3]"}},
        {"one dimension", [](Tensors& t) { t[0].second = Tensor::zeros({2}, DType::f32); }, {kQ + "A.weight", "[2]"}},
        {"empty",
         [](Tensors& t) {
             t[0].second = Tensor::zeros({2, 0}, DType::f32);
         },
         {kQ + "A.weight", "[2,0]"}},
        {"integers",
         [](Tensors& t) {
             t[0].second = Tensor::zeros({2, 6}, DType::i32);
         },
         {kQ + "A.weight", "I32"}},
        {"NaN", [&](Tensors& t) { t[2].second.fill(nan); }, {kV + "A.weight", "nan", "element 0"}},
        {"infinity", [](Tensors& t) { t[1].second.fill(INFINITY); }, {kQ + "B.weight", "inf"}},
        {"adapter name kept", [](Tensors& t) { t[0].first = kQ + "A.default.weight"; }, {kQ + "A.default.weight"}},
        {"DoRA magnitude",
         [](Tensors& t) { t.emplace_back(kQ + "magnitude_vector", Tensor::zeros({8}, DType::f32)); },
         {kQ + "magnitude_vector"}},
        {"whole module",
         [](Tensors& t) { t.emplace_back("base_model.model.lm_head.weight", Tensor::zeros({8}, DType::f32)); },
         {"lm_head.weight"}},
        {"not a target",
         [](Tensors& t) { t[0].first = "base_model.model.model.layers.0.mlp.up_proj.lora_A.weight"; },
         {"up_proj", "target_modules"}},
    };
    for (const Case& c : cases) {
        SCOPED_TRACE(c.what);
        const ScratchDir dir;
        Tensors tensors = good_tensors();
        c.spoil(tensors);
        write(dir, good_config(), tensors);
        std::vector<std::string> says = c.says;
        says.push_back((dir / "adapter_model.safetensors").string());
        expect_refused([&] { read_peft_adapter(dir.path()); }, says);
    }
}

TEST(PeftAdapterMalformed, Files) {
    const ScratchDir dir;
    expect_refused([&] { read_peft_adapter(dir.path()); }, {"adapter_config.json", "cannot be opened"});
    dir.write("adapter_config.json", good_config().dump());
    expect_refused([&] { read_peft_adapter(dir.path()); }, {"adapter_model.safetensors", "cannot be opened"});
    dir.write("adapter_model.bin", "pickle");
    expect_refused([&] { read_peft_adapter(dir.path()); }, {"adapter_model.bin", "convert to safetensors"});
    dir.write("adapter_model.safetensors", "cut");
    expect_refused([&] { read_peft_adapter(dir.path()); }, {"adapter_model.safetensors", "3 bytes"});
}

}  // namespace
}  // namespace lc::io
