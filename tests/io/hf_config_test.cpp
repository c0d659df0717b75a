#include "io/hf_config.h"

#include <cmath>

#include "core/log.h"
#include "io/file.h"
#include "io/json.h"
#include "tests/assets.h"
#include "tests/io/faults.h"

namespace lc::io {
namespace {

namespace fs = std::filesystem;
using test::expect_refused;

// Llama 3.1 8B, classic spelling.
const char* const kLlama = R"({
  "architectures": ["LlamaForCausalLM"], "model_type": "llama", "attention_bias": false, "mlp_bias": false,
  "bos_token_id": 128000, "eos_token_id": [128001, 128008, 128009], "hidden_act": "silu", "hidden_size": 4096,
  "intermediate_size": 14336, "max_position_embeddings": 131072, "num_attention_heads": 32, "num_hidden_layers": 32,
  "num_key_value_heads": 8, "rms_norm_eps": 1e-05, "rope_theta": 500000.0, "tie_word_embeddings": false,
  "rope_scaling": {"factor": 8.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
                   "original_max_position_embeddings": 8192, "rope_type": "llama3"},
  "torch_dtype": "bfloat16", "vocab_size": 128256, "use_cache": true, "transformers_version": "4.43.0"})";

// kLlama with members replaced or added ("key": value) and others removed.
Json llama(std::string_view changes, const std::vector<std::string>& removed = {}) {
    Json json = parse_json(kLlama, "llama");
    for (const std::string& key : removed) json.erase(key);
    json.update(parse_json(fmt::format("{{{}}}", changes), "changes"));
    return json;
}

Json changed(Json json, std::string_view changes) {
    json.update(parse_json(fmt::format("{{{}}}", changes), "changes"));
    return json;
}

const char* const kNewRope = R"("rope_parameters": {"rope_theta": 500000.0, "factor": 8.0, "high_freq_factor": 4.0,
    "low_freq_factor": 1.0, "original_max_position_embeddings": 8192, "rope_type": "llama3"}, "dtype": "bfloat16")";

const char* const kQwen2Window = R"("architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2",
    "sliding_window": 1024, "use_sliding_window": true, "max_window_layers": 28)";
const char* const kQwen3 = R"("architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "head_dim": 96,
    "sliding_window": null, "use_sliding_window": false)";
const char* const kGemma = R"("architectures": ["GemmaForCausalLM"], "model_type": "gemma",
    "hidden_act": "gelu_pytorch_tanh", "head_dim": 256)";

// Phi-2's shape.
Json phi(std::string_view changes, const std::vector<std::string>& removed = {}) {
    Json json = llama(R"("architectures": ["PhiForCausalLM"], "model_type": "phi", "hidden_act": "gelu_new",
        "hidden_size": 2560, "num_key_value_heads": null, "layer_norm_eps": 1e-05, "rope_scaling": null,
        "eos_token_id": null, "bos_token_id": null)",
                      {"rms_norm_eps", "attention_bias", "mlp_bias"});
    json = changed(std::move(json), changes);
    for (const std::string& key : removed) json.erase(key);
    return json;
}

TEST(HfConfig, ClassicSpelling) {
    const HfConfig config = parse_hf_config(llama(""), "config.json");
    EXPECT_EQ(config.hidden_size, 4096);
    EXPECT_EQ(config.head_dim, 128);
    EXPECT_EQ(config.num_key_value_heads, 8);
    EXPECT_EQ(config.rope.type, RopeType::llama3);
    EXPECT_EQ(config.rope.theta, 500000);
    EXPECT_EQ(config.rope.factor, 8);
    EXPECT_EQ(config.eos_token_ids, (std::vector<int64_t>{128001, 128008, 128009}));
    EXPECT_EQ(config.bos_token_ids, (std::vector<int64_t>{128000}));
    EXPECT_EQ(config.torch_dtype, "bfloat16");
    EXPECT_FALSE(config.uses_rope_parameters);
}

TEST(HfConfig, BothSpellingsMeanTheSame) {
    const HfConfig older = parse_hf_config(llama(""), "a");
    const HfConfig newer = parse_hf_config(llama(kNewRope, {"rope_theta", "rope_scaling", "torch_dtype"}), "b");
    EXPECT_EQ(newer.rope, older.rope);
    EXPECT_EQ(newer.torch_dtype, older.torch_dtype);
    EXPECT_TRUE(newer.uses_rope_parameters);
    EXPECT_EQ(parse_hf_config(llama(kNewRope), "both").rope, older.rope);
    EXPECT_EQ(parse_hf_config(llama(kNewRope, {"rope_theta"}), "both").rope, older.rope);
    EXPECT_EQ(parse_hf_config(llama(R"("rope_scaling": null)"), "c").rope.type, RopeType::standard);
    EXPECT_EQ(parse_hf_config(llama("", {"rope_scaling", "rope_theta"}), "d").rope.theta, 10000);
    const char* legacy = R"("rope_scaling": {"type": "default"})";
    EXPECT_EQ(parse_hf_config(llama(legacy), "e").rope.type, RopeType::standard);
}

TEST(HfConfig, DefaultsOfWhatIsAbsent) {
    const HfConfig config = parse_hf_config(
        llama("", {"num_key_value_heads", "tie_word_embeddings", "bos_token_id", "eos_token_id", "torch_dtype"}), "a");
    EXPECT_EQ(config.num_key_value_heads, 32);
    EXPECT_FALSE(config.tie_word_embeddings);
    EXPECT_TRUE(config.eos_token_ids.empty());
    EXPECT_EQ(config.torch_dtype, "");
    EXPECT_EQ(parse_hf_config(llama(R"("head_dim": 96, "hidden_size": 5000)"), "b").head_dim, 96);
}

TEST(HfConfig, WrittenAndReadBack) {
    const std::vector<Json> inputs = {
        llama(""),
        llama(kNewRope, {"rope_theta", "rope_scaling", "torch_dtype"}),
        llama(R"("architectures": ["MistralForCausalLM"], "model_type": "mistral",
                                               "sliding_window": 4096, "rope_scaling": null, "eos_token_id": 2)"),
        llama(R"("attention_bias": true, "mlp_bias": true, "rope_scaling":
                                               {"rope_type": "linear", "factor": 2.5})"),
        llama(R"("rope_scaling": {"rope_type": "yarn", "factor": 4.0, "beta_fast": 16.0, "beta_slow": 1.0,
                                               "attention_factor": 1.25, "truncate": false,
                                               "original_max_position_embeddings": 4096})"),
        llama(kQwen2Window),
        llama(kQwen3),
        phi(R"("partial_rotary_factor": 0.4, "hidden_act": "gelu_pytorch_tanh")", {"num_key_value_heads"}),
        phi(R"("rope_parameters": {"rope_type": "default", "rope_theta": 1e4,
                                             "partial_rotary_factor": 0.25}, "hidden_act": "gelu_pytorch_tanh")",
            {"num_key_value_heads", "rope_theta", "rope_scaling", "partial_rotary_factor", "torch_dtype"}),
        llama(kGemma, {"rope_scaling"})};
    for (const Json& input : inputs) {
        const Json written = parse_hf_config(input, "a").to_json();
        for (const auto& [key, value] : written.items()) {
            if (input.contains(key)) {
                EXPECT_EQ(value, input[key]) << key;
            }
        }
        EXPECT_EQ(parse_hf_config(written, "b").to_json(), written);
        EXPECT_EQ(written.contains("rope_parameters"), input.contains("rope_parameters"));
    }
}

TEST(HfConfig, Families) {
    EXPECT_EQ(parse_hf_config(llama(""), "a").block, BlockConfig{});
    const BlockConfig biased = parse_hf_config(llama(R"("attention_bias": true)"), "a").block;
    EXPECT_TRUE(biased.qkv_bias && biased.o_bias && !biased.mlp_bias);

    const HfConfig qwen2 =
        parse_hf_config(llama(R"("architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2")"), "a");
    EXPECT_TRUE(qwen2.block.qkv_bias && !qwen2.block.o_bias && !qwen2.block.qk_norm);
    const HfConfig qwen3 = parse_hf_config(llama(kQwen3), "a");
    EXPECT_TRUE(qwen3.block.qk_norm && !qwen3.block.qkv_bias);
    EXPECT_EQ(qwen3.head_dim, 96);
    EXPECT_EQ(parse_hf_config(llama(R"("architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3",
                                       "hidden_size": 1000)"),
                              "a")
                  .head_dim,
              128);

    const HfConfig phi2 = parse_hf_config(phi(R"("partial_rotary_factor": 0.4)"), "a");
    const HfConfig of_v5 = parse_hf_config(phi(R"("partial_rotary_factor": 0.5, "rope_parameters":
                                                  {"rope_type": "default", "rope_theta": 1e4,
                                                   "partial_rotary_factor": 0.4})",
                                               {"rope_theta", "rope_scaling"}),
                                           "a");
    EXPECT_EQ(of_v5.block.rotary_fraction, 0.4);
    EXPECT_EQ(phi2.head_dim, 80);
    EXPECT_EQ(phi2.num_key_value_heads, 32);
    EXPECT_EQ(phi2.block.norm, NormKind::layer);
    EXPECT_TRUE(phi2.block.parallel && phi2.block.head_bias && !phi2.block.gated);
    EXPECT_EQ(phi2.block.rotary_fraction, 0.4);
    EXPECT_EQ(parse_hf_config(phi(""), "a").block.rotary_fraction, 0.5);

    const HfConfig gemma = parse_hf_config(llama(kGemma, {"rope_scaling", "tie_word_embeddings", "head_dim"}), "a");
    EXPECT_EQ(gemma.head_dim, 256);
    EXPECT_TRUE(gemma.tie_word_embeddings && gemma.block.scaled_embedding && gemma.block.gated);
    EXPECT_EQ(gemma.block.norm_offset, 1);
    for (const char* words : {R"("hidden_act": "gelu")", R"("hidden_act": "gelu", "hidden_activation": null)",
                              R"("hidden_act": "gelu", "hidden_activation": "gelu_pytorch_tanh")"})
        EXPECT_EQ(parse_hf_config(changed(llama(kGemma), words), "a").block, gemma.block) << words;
}

TEST(HfConfig, SlidingWindows) {
    const auto window = [](const Json& json) {
        const HfConfig config = parse_hf_config(json, "a");
        std::string layers;
        for (const bool sliding : config.window_layers) layers += sliding ? 's' : '.';
        return fmt::format("{} {}", config.sliding_window, layers);
    };
    const Json mistral = llama(R"("architectures": ["MistralForCausalLM"], "model_type": "mistral",
                                  "num_hidden_layers": 4)");
    const Json qwen = changed(llama(kQwen2Window), R"("num_hidden_layers": 4)");
    EXPECT_EQ(window(changed(mistral, R"("sliding_window": 4096)")), "4096 ssss");
    EXPECT_EQ(window(changed(mistral, R"("sliding_window": null)")), "0 ");
    EXPECT_EQ(window(llama(R"("sliding_window": 4096)")), "0 ");  // Llama has none
    EXPECT_EQ(window(qwen), "0 ");                                // layers 28 and on
    EXPECT_EQ(window(changed(qwen, R"("max_window_layers": 3)")), "1024 ...s");
    EXPECT_EQ(window(changed(qwen, R"("max_window_layers": 3, "use_sliding_window": false)")), "0 ");
    EXPECT_EQ(window(changed(qwen, R"("layer_types": ["full_attention", "sliding_attention", "full_attention",
                                                      "full_attention"])")),
              "1024 .s..");
}

TEST(HfConfig, RopeScalings) {
    const auto rope = [](const char* object) {
        return parse_hf_config(llama(fmt::format("\"rope_scaling\": {{{}}}", object)), "a").rope;
    };
    EXPECT_EQ(rope(R"("type": "linear", "factor": 2)").type, RopeType::linear);
    EXPECT_EQ(rope(R"("type": "dynamic", "factor": 2)").type, RopeType::dynamic);
    const RopeConfig yarn = rope(R"("rope_type": "yarn", "factor": 4)");
    EXPECT_EQ(yarn.original_max_position_embeddings, 131072);
    EXPECT_EQ(yarn.beta_fast, 32);
    EXPECT_NEAR(yarn.attention_factor, 0.1 * std::log(4.0) + 1, 1e-15);
    EXPECT_NEAR(rope(R"("rope_type": "yarn", "factor": 4, "mscale": 2, "mscale_all_dim": 0.5)").attention_factor,
                (0.2 * std::log(4.0) + 1) / (0.05 * std::log(4.0) + 1), 1e-15);
    EXPECT_EQ(rope(R"("rope_type": "yarn", "factor": 4, "mscale": 2)").attention_factor, yarn.attention_factor);
    EXPECT_EQ(rope(R"("rope_type": "yarn", "factor": 4, "attention_factor": 1.5)").attention_factor, 1.5);
}

struct Case {
    std::string changes;
    std::vector<std::string> removed;
    std::vector<std::string> says;
};

const std::vector<Case>& malformed() {
    static const std::vector<Case> cases = {
        // absent
        {"", {"architectures"}, {"'architectures'", "missing"}},
        {"", {"model_type"}, {"'model_type'", "missing"}},
        {"", {"hidden_size"}, {"'hidden_size'", "missing"}},
        {"", {"intermediate_size"}, {"'intermediate_size'", "missing"}},
        {"", {"num_hidden_layers"}, {"'num_hidden_layers'", "missing"}},
        {"", {"num_attention_heads"}, {"'num_attention_heads'", "missing"}},
        {"", {"vocab_size"}, {"'vocab_size'", "missing"}},
        {"", {"max_position_embeddings"}, {"'max_position_embeddings'", "missing"}},
        {"", {"rms_norm_eps"}, {"'rms_norm_eps'", "missing"}},
        {"", {"hidden_act"}, {"'hidden_act'", "missing"}},
        {R"("num_hidden_layers": null)", {}, {"'num_hidden_layers'", "missing"}},
        // of the wrong type
        {R"("hidden_size": "4096")", {}, {"'hidden_size'", "integer", "\"4096\""}},
        {R"("hidden_size": 4096.0)", {}, {"'hidden_size'", "integer", "4096.0"}},
        {R"("vocab_size": 18446744073709551616)", {}, {"'vocab_size'", "integer"}},
        {R"("num_hidden_layers": true)", {}, {"'num_hidden_layers'", "true"}},
        {R"("rms_norm_eps": "1e-5")", {}, {"'rms_norm_eps'", "number"}},
        {R"("rope_theta": [1])", {}, {"'rope_theta'", "number", "an array"}},
        {R"("rope_scaling": "llama3")", {}, {"'rope_scaling'", "an object"}},
        {R"("rope_scaling": {"rope_type": 3})", {}, {"'rope_scaling.rope_type'", "a string"}},
        {R"("tie_word_embeddings": 1)", {}, {"'tie_word_embeddings'", "true or false"}},
        {R"("architectures": "LlamaForCausalLM")", {}, {"'architectures'", "an array"}},
        {R"("architectures": [1])", {}, {"'architectures'", "strings"}},
        {R"("architectures": [])", {}, {"'architectures'", "one architecture"}},
        {R"("eos_token_id": "</s>")", {}, {"'eos_token_id'", "</s>"}},
        {R"("eos_token_id": [1, "x"])", {}, {"'eos_token_id'", "\"x\""}},
        {R"("torch_dtype": 16)", {}, {"'torch_dtype'", "a string"}},
        // out of range
        {R"("num_hidden_layers": 0)", {}, {"'num_hidden_layers'", "[1, 1024]", "0"}},
        {R"("num_hidden_layers": 1025)", {}, {"'num_hidden_layers'", "1025"}},
        {R"("vocab_size": 16777217)", {}, {"'vocab_size'", "16777217"}},
        {R"("hidden_size": -4096)", {}, {"'hidden_size'", "-4096"}},
        {R"("hidden_size": 4100)", {}, {"'hidden_size'", "multiple of num_attention_heads = 32", "4100"}},
        {R"("hidden_size": 96)", {}, {"'hidden_size'", "head_dim 3", "even"}},
        {R"("num_key_value_heads": 5)", {}, {"'num_key_value_heads'", "divisor", "32", "5"}},
        {R"("num_key_value_heads": 64)", {}, {"'num_key_value_heads'", "64"}},
        {R"("num_key_value_heads": 0)", {}, {"'num_key_value_heads'", "0"}},
        {R"("head_dim": 127)", {}, {"'head_dim'", "even", "127"}},
        {R"("head_dim": 0)", {}, {"'head_dim'", "0"}},
        {R"("rms_norm_eps": 0)", {}, {"'rms_norm_eps'", "0"}},
        {R"("rms_norm_eps": -1e-5)", {}, {"'rms_norm_eps'", "-1e-05"}},
        {R"("rope_theta": 0)", {}, {"'rope_theta'", "0"}},
        {R"("max_position_embeddings": 0)", {}, {"'max_position_embeddings'", "0"}},
        {R"("eos_token_id": 128256)", {}, {"'eos_token_id'", "128255", "128256"}},
        {R"("bos_token_id": -1)", {}, {"'bos_token_id'", "-1"}},
        {R"("eos_token_id": [128256])", {}, {"'eos_token_id'", "128256"}},
        // rope
        {R"("rope_scaling": {"rope_type": "longrope", "factor": 2})",
         {},
         {"'rope_scaling.rope_type'", "longrope", "not supported"}},
        {R"("rope_scaling": {"type": "su"})", {}, {"'rope_scaling.type'", "su", "not supported"}},
        {R"("rope_scaling": {"type": "linear"})", {}, {"'rope_scaling.factor'", "missing"}},
        {R"("rope_scaling": {"type": "dynamic", "factor": 0.5})", {}, {"'rope_scaling.factor'", "0.5"}},
        {R"("rope_scaling": {"type": "yarn", "factor": 2, "beta_fast": 1, "beta_slow": 1})",
         {},
         {"'rope_scaling.beta_fast'", "above beta_slow = 1"}},
        {R"("rope_scaling": {"rope_type": "spiral"})", {}, {"'rope_scaling.rope_type'", "spiral"}},
        {R"("rope_scaling": {"factor": 2})", {}, {"'rope_scaling.rope_type'", "missing"}},
        {R"("rope_scaling": {"type": "default", "rope_type": "llama3"})", {}, {"'rope_scaling.type'", "differ"}},
        {R"("rope_scaling": {"rope_type": "llama3"})", {}, {"'rope_scaling.factor'", "missing"}},
        {R"("rope_scaling": {"rope_type": "llama3", "factor": 8, "low_freq_factor": 4, "high_freq_factor": 4,
            "original_max_position_embeddings": 8192})",
         {},
         {"'rope_scaling.high_freq_factor'", "above low_freq_factor = 4"}},
        {R"("rope_parameters": {"full_attention": {"rope_type": "default"}})",
         {},
         {"'rope_parameters.rope_type'", "missing"}},
        {R"("rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5})",
         {"rope_scaling"},
         {"'rope_parameters.partial_rotary_factor'", "0.5"}},
        // two spellings that contradict
        {R"("rope_parameters": {"rope_type": "default", "rope_theta": 1e4})",
         {"rope_scaling"},
         {"'rope_theta'", "'rope_parameters.rope_theta'", "500000", "10000"}},
        {R"("rope_parameters": {"rope_type": "default", "rope_theta": 500000})",
         {},
         {"'rope_scaling'", "'rope_parameters'"}},
        {R"("dtype": "float32")", {}, {"'torch_dtype'", "'dtype'", "float32", "bfloat16"}},
        // other models
        {R"("architectures": ["Phi3ForCausalLM"], "model_type": "phi3")", {}, {"Phi3ForCausalLM", "fused projections"}},
        {R"("architectures": ["Gemma2ForCausalLM"], "model_type": "gemma2")", {}, {"Gemma2ForCausalLM", "soft-capped"}},
        {R"("architectures": ["PhiForCausalLM"], "model_type": "phi", "hidden_act": "gelu_new")",
         {},
         {"'layer_norm_eps'", "missing"}},
        {R"("architectures": ["PhiForCausalLM"], "model_type": "phi", "hidden_act": "gelu_new", "layer_norm_eps": 1e-5,
            "tie_word_embeddings": true)",
         {},
         {"'tie_word_embeddings'", "bias"}},
        {R"("architectures": ["PhiForCausalLM"], "model_type": "phi", "hidden_act": "gelu_new", "layer_norm_eps": 1e-5,
            "qk_layernorm": true)",
         {},
         {"'qk_layernorm'", "false"}},
        {R"("architectures": ["PhiForCausalLM"], "model_type": "phi", "hidden_act": "gelu_new", "layer_norm_eps": 1e-5,
            "partial_rotary_factor": 0.01)",
         {},
         {"'partial_rotary_factor'", "0.01", "128"}},
        {R"("architectures": ["PhiForCausalLM"], "model_type": "phi", "hidden_act": "gelu_new", "layer_norm_eps": 1e-5,
            "partial_rotary_factor": 0.5, "rope_scaling": {"rope_type": "linear", "factor": 2,
            "partial_rotary_factor": 0.25})",
         {},
         {"'partial_rotary_factor'", "0.25", "0.5"}},
        {R"("architectures": ["PhiForCausalLM"], "model_type": "phi", "hidden_act": "gelu", "layer_norm_eps": 1e-5)",
         {},
         {"'hidden_act'", "gelu_new"}},
        {R"("architectures": ["GemmaForCausalLM"], "model_type": "gemma", "hidden_act": "silu")",
         {},
         {"'hidden_act'", "gelu_pytorch_tanh", "silu"}},
        {R"("architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "use_sliding_window": true,
            "sliding_window": 64, "layer_types": ["full_attention"])",
         {},
         {"'layer_types'", "32 layers", "1"}},
        {R"("architectures": ["BertModel"])", {}, {"'architectures'", "BertModel"}},
        {R"("model_type": "mistral")", {}, {"'model_type'", "llama", "mistral"}},
        {R"("quantization_config": {"quant_method": "gptq", "bits": 4})", {}, {"'quantization_config'", "gptq"}},
        {R"("hidden_act": "gelu")", {}, {"'hidden_act'", "silu", "gelu"}},
        {R"("architectures": ["MistralForCausalLM"], "model_type": "mistral", "attention_bias": true)",
         {},
         {"'attention_bias'", "false", "true"}},
        {R"("architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "mlp_bias": true)",
         {},
         {"'mlp_bias'", "false"}},
        {R"("rope_interleaved": true)", {}, {"'rope_interleaved'"}},
        {R"("partial_rotary_factor": 0.5)", {}, {"'partial_rotary_factor'", "0.5"}},
        {R"("torch_dtype": "int8")", {}, {"'torch_dtype'", "int8"}},
        {R"("architectures": ["MistralForCausalLM"], "model_type": "mistral", "sliding_window": 0)",
         {},
         {"'sliding_window'", "0"}},
    };
    return cases;
}

TEST(HfConfig, Malformed) {
    const test::ScratchDir dir;
    for (const Case& c : malformed()) {
        SCOPED_TRACE(c.changes + (c.removed.empty() ? "" : " without " + c.removed[0]));
        const fs::path path = dir.write("config.json", llama(c.changes, c.removed).dump());
        std::vector<std::string> says = c.says;
        says.push_back(path.string());
        expect_refused([&] { load_hf_config(path); }, says);
    }
    expect_refused([&] { load_hf_config(dir.write("config.json", "[]")); }, {"config.json", "JSON object"});
    expect_refused([&] { load_hf_config(dir / "none.json"); }, {"none.json", "cannot be opened"});
    const test::ScratchDir adapter;
    adapter.write("adapter_config.json", "{}");
    expect_refused([&] { load_hf_config(adapter.path()); }, {adapter.path().string(), "an adapter and no model"});
}

TEST(HfConfig, GenerationDefaults) {
    const test::ScratchDir dir;
    EXPECT_FALSE(load_generation_config(dir.path()).temperature);
    dir.write("generation_config.json",
              R"({"eos_token_id": [2, 3], "do_sample": true, "temperature": 0.6, "top_p": 0.9, "top_k": 50, "x": 1})");
    const GenerationConfig config = load_generation_config(dir.path());
    EXPECT_EQ(config.eos_token_ids, (std::vector<int64_t>{2, 3}));
    EXPECT_EQ(config.temperature, 0.6);
    EXPECT_EQ(config.top_p, 0.9);
    EXPECT_EQ(config.top_k, 50);
    EXPECT_FALSE(config.repetition_penalty);
    const std::vector<std::pair<std::string, std::string>> bad = {
        {R"({"temperature": -1})", "'temperature'"},
        {R"({"top_p": 1.5})", "'top_p'"},
        {R"({"top_k": 0.5})", "'top_k'"},
        {R"({"eos_token_id": -2})", "'eos_token_id'"},
        {R"({"do_sample": "yes"})", "'do_sample'"},
        {R"({"repetition_penalty": 0})", "'repetition_penalty'"},
    };
    for (const auto& [text, says] : bad)
        expect_refused([&] { load_generation_config(dir.write("generation_config.json", text)); },
                       {"generation_config.json", says});
}

TEST(HfConfig, PublishedConfigsLoad) {
    const auto assets = lc::test::assets_dir();
    if (!assets) GTEST_SKIP() << lc::test::kNoAssets;
    int loaded = 0;
    for (const auto& entry : fs::directory_iterator(*assets / "configs")) {
        if (!entry.is_directory()) continue;
        const std::string name = entry.path().filename().string();
        EXPECT_GT(load_hf_config(entry.path()).head_dim, 0) << name;
        ++loaded;
    }
    EXPECT_EQ(loaded, 13);
    EXPECT_EQ(load_hf_config(*assets / "configs/Mistral-7B-v0.1").sliding_window, 4096);
    EXPECT_EQ(load_hf_config(*assets / "configs/Llama-3.2-1B").rope.factor, 32);
    const HfConfig teacher = load_hf_config(*assets / "teacher-28m");
    EXPECT_EQ(teacher.head_dim, 64);
    EXPECT_TRUE(teacher.uses_rope_parameters);
    EXPECT_TRUE(teacher.tie_word_embeddings);
    EXPECT_EQ(load_hf_config(*assets / "stories260k").head_dim, 8);
    EXPECT_EQ(load_generation_config(*assets / "stories260k").eos_token_ids, (std::vector<int64_t>{2}));
}

}  // namespace
}  // namespace lc::io
