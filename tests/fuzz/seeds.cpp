// Writes the inputs from which fuzzing begins: fuzz_seeds FOLDER makes FOLDER/TARGET/NAME, small and valid each.
#include <fmt/format.h>

#include <filesystem>
#include <string>

#include "io/file.h"
#include "models/attention/attention_spec.h"
#include "models/generation/state_file.h"
#include "tests/fuzz/support.h"
#include "tests/fuzz/targets.h"
#include "tests/io/gguf_bytes.h"
#include "tests/io/safetensors_bytes.h"
#include "tests/io/tokenizer/small.h"
#include "tests/io/torch_bytes.h"

namespace lc::fuzz {
namespace {

namespace make = io::test;
using io::Json;

class Seeds {
  public:
    explicit Seeds(std::filesystem::path folder) : folder_(std::move(folder)) {}
    void add(std::string_view target, std::string_view name, std::string_view bytes) const {
        std::filesystem::create_directories(folder_ / target);
        io::write_file_atomic(folder_ / target / name, bytes);
    }
    void add_json(std::string_view target, std::string_view name, const Json& json) const {
        add(target, name, json.dump());
    }

  private:
    std::filesystem::path folder_;
};

void add_weights(const Seeds& seeds) {
    const char* header =
        R"({"__metadata__":{"format":"pt"},"a":{"dtype":"F32","shape":[2,1],"data_offsets":[0,8]},)"
        R"("b":{"dtype":"BOOL","shape":[1],"data_offsets":[8,9]},"c":{"dtype":"I16","shape":[0],"data_offsets":[9,9]}})";
    seeds.add("safetensors", "three", make::safetensors_bytes(header, std::string("\0\0\x80?\0\0\xC0\x7F\1", 9)));
    seeds.add("safetensors", "scalar",
              make::safetensors_bytes(R"({"x":{"dtype":"BF16","shape":[],"data_offsets":[0,2]}})", "ab"));
    seeds.add("safetensors", "foreign",
              make::safetensors_bytes(R"({"x":{"dtype":"F8_E4M3","shape":[2],"data_offsets":[0,2]}})", "ab"));
    const Json map = {{"a", "model-00001-of-00002.safetensors"},
                      {"b", "model-00001-of-00002.safetensors"},
                      {"c", "model-00002-of-00002.safetensors"}};
    seeds.add_json("index", "whole", {{"metadata", {{"total_size", 11}}}, {"weight_map", map}});
    seeds.add_json("index", "traversal", {{"weight_map", {{"a", "../model-00001-of-00002.safetensors"}}}});

    const std::string storage = make::storage_of("FloatStorage", "0", 12),
                      half = make::storage_of("HalfStorage", "1", 3);
    const std::string tensors = "}(" + make::text_of("layers.0.w") + make::tensor_of(storage, 2, {2, 3}, {3, 1}) +
                                make::text_of("b") + make::tensor_of(half, 0, {3}, {1}) + "u";
    const std::string state =
        "}(" + make::text_of("model_state_dict") + tensors + make::text_of("step") + make::integer_of(7) + "u";
    seeds.add("pickle", "state", make::pickle_of(state));
    seeds.add("pickle", "tuple", make::pickle_of("(" + make::integer_of(-1) + make::integer_of(300) + "N\x88t"));
    seeds.add("torch_checkpoint", "pickle", "P" + make::pickle_of(state));
    seeds.add("torch_checkpoint", "bare", "P" + make::pickle_of(tensors));
    const Tensor small = Tensor::full({2, 2}, 1, DType::f32);
    seeds.add("torch_checkpoint", "archive", make::torch_bytes({{"w", small}}));
    seeds.add("torch_checkpoint", "wide", make::zip_bytes({{"a/data.pkl", make::pickle_of("}")}}, {.wide = true}));
}

std::vector<std::string> gguf_pairs() {
    return {make::gguf_text("general.architecture", "llama"),
            make::gguf_u32("llama.block_count", 1),
            make::gguf_u32("llama.context_length", 8),
            make::gguf_u32("llama.embedding_length", 4),
            make::gguf_u32("llama.feed_forward_length", 8),
            make::gguf_u32("llama.attention.head_count", 2),
            make::gguf_u32("llama.attention.head_count_kv", 1),
            make::gguf_f32("llama.attention.layer_norm_rms_epsilon", 1e-5f)};
}

void add_gguf(const Seeds& seeds) {
    auto pairs = gguf_pairs();
    for (const std::string& pair : {make::gguf_text("tokenizer.ggml.model", "llama"),
                                    make::gguf_texts("tokenizer.ggml.tokens", {"<unk>", "<s>", "</s>", "a", "▁", "▁a"}),
                                    make::gguf_numbers<float>("tokenizer.ggml.scores", 6, {0, 0, 0, -2, -3, -1}),
                                    make::gguf_numbers<int32_t>("tokenizer.ggml.token_type", 5, {2, 3, 3, 1, 1, 1}),
                                    make::gguf_u32("tokenizer.ggml.bos_token_id", 1)})
        pairs.push_back(pair);
    seeds.add("gguf", "sentencepiece",
              make::gguf_bytes(
                  pairs, {{.name = "w", .shape = {32}, .type = io::kGgufQ4_0, .bytes = std::string(18, '\x11')},
                          {.name = "x", .shape = {1, 32}, .type = io::kGgufQ8_0, .bytes = std::string(34, '\x22')},
                          {.name = "rope_freqs.weight", .shape = {1}, .bytes = make::raw(1.0f)}}));
    pairs = gguf_pairs();
    for (const std::string& pair :
         {make::gguf_text("tokenizer.ggml.model", "gpt2"), make::gguf_text("tokenizer.ggml.pre", "smollm"),
          make::gguf_texts("tokenizer.ggml.tokens", {"a", "b", "ab", "Ġ", "<|end|>"}),
          make::gguf_texts("tokenizer.ggml.merges", {"a b"}),
          make::gguf_numbers<int32_t>("tokenizer.ggml.token_type", 5, {1, 1, 1, 1, 3}),
          make::gguf_bool("tokenizer.ggml.add_bos_token", false)})
        pairs.push_back(pair);
    seeds.add("gguf", "byte_level",
              make::gguf_bytes(
                  pairs, {{.name = "w", .shape = {2, 32}, .type = io::kGgufQ4_1, .bytes = std::string(40, '\x33')},
                          {.name = "h", .shape = {3}, .type = io::kGgufF16, .bytes = "abcdef"},
                          {.name = "k", .shape = {256}, .type = 12, .bytes = std::string(144, 'k')}}));
}

void add_descriptions(const Seeds& seeds) {
    const Json llama = {{"architectures", Json::array({"LlamaForCausalLM"})},
                        {"model_type", "llama"},
                        {"hidden_size", 64},
                        {"intermediate_size", 128},
                        {"num_hidden_layers", 2},
                        {"num_attention_heads", 4},
                        {"num_key_value_heads", 2},
                        {"vocab_size", 100},
                        {"max_position_embeddings", 128},
                        {"rms_norm_eps", 1e-5},
                        {"rope_theta", 10000.0},
                        {"hidden_act", "silu"},
                        {"torch_dtype", "bfloat16"},
                        {"tie_word_embeddings", true},
                        {"bos_token_id", 1},
                        {"eos_token_id", {2, 3}}};
    seeds.add_json("config", "llama", llama);
    Json llama3 = llama;
    llama3["rope_scaling"] = {{"rope_type", "llama3"},
                              {"factor", 8.0},
                              {"low_freq_factor", 1.0},
                              {"high_freq_factor", 4.0},
                              {"original_max_position_embeddings", 64}};
    seeds.add_json("config", "llama3", llama3);
    Json newer = llama;
    newer.erase("rope_theta"), newer.erase("torch_dtype");
    newer["rope_parameters"] = {{"rope_type", "default"}, {"rope_theta", 1e6}}, newer["dtype"] = "float16",
    newer["head_dim"] = 32;
    newer["model_type"] = "mistral", newer["architectures"] = Json::array({"MistralForCausalLM"}),
    newer["sliding_window"] = 32;
    newer["lolcats"] = {
        {"version", 1}, {"attention", models::AttentionSpec{}.to_json()}, {"feature_maps", "feature_maps.safetensors"}};
    seeds.add_json("config", "mistral", newer);
    for (const char* type : {"qwen2", "qwen3", "phi", "gemma"}) {
        Json family = llama;
        family["model_type"] = type, family["partial_rotary_factor"] = 0.5, family["attention_bias"] = true;
        seeds.add_json("config", type, family);
    }
    seeds.add_json("config", "generation",
                   {{"do_sample", true},
                    {"temperature", 0.6},
                    {"top_p", 0.9},
                    {"top_k", 50},
                    {"min_p", 0.1},
                    {"repetition_penalty", 1.1},
                    {"max_new_tokens", 10},
                    {"eos_token_id", 2}});
    seeds.add_json("config", "attention", models::AttentionSpec{.softmax_layers = {0, 1}}.to_json());
    seeds.add_json("adapter", "peft",
                   {{"peft_type", "LORA"},
                    {"task_type", "CAUSAL_LM"},
                    {"r", 2},
                    {"lora_alpha", 4},
                    {"lora_dropout", 0.0},
                    {"target_modules", Json::array({"q_proj"})},
                    {"bias", "none"},
                    {"base_model_name_or_path", "x"},
                    {"rank_pattern", Json::object()},
                    {"use_dora", false},
                    {"init_lora_weights", true}});
    seeds.add("checkpoint", "state", checkpoint_state());
    seeds.add("checkpoint", "manifest", "M" + checkpoint_manifest());
}

std::string field(char number, std::string_view bytes) {
    return std::string(1, static_cast<char>(number << 3 | 2)) + static_cast<char>(bytes.size()) + std::string(bytes);
}
std::string piece(std::string_view text, float score, char type) {
    return field(1, field(1, text) + "\x15" + make::raw(score) + "\x18" + type);
}

void add_tokenizers(const Seeds& seeds) {
    seeds.add_json("tokenizer_json", "byte_fallback", make::byte_fallback({"▁", "a", "b"}, {{"a", "b"}, {"▁", "ab"}}));
    // Few pieces, so that most bytes are structure.
    Json json = make::byte_level();
    json["model"]["vocab"] = {{"a", 0}, {"b", 1}, {"ab", 2}, {"Ġ", 3}, {"<s>", 4}};
    json["model"]["merges"] = Json::array({"a b"});
    json["added_tokens"] = {make::added_token(4, "<s>"), make::added_token(5, " x", false)};
    json["post_processor"] = make::template_with_bos("<s>", 4);
    seeds.add_json("tokenizer_json", "gpt2", json);
    json["pre_tokenizer"] =
        make::sequence("pretokenizers", {{{"type", "Digits"}, {"individual_digits", true}},
                                         {{"type", "Split"},
                                          {"pattern", {{"Regex", "\\s+|\\p{L}+"}}},
                                          {"behavior", "MergedWithNext"},
                                          {"invert", true}},
                                         {{"type", "ByteLevel"}, {"add_prefix_space", true}, {"use_regex", false}}});
    json["normalizer"] = make::sequence(
        "normalizers", {{{"type", "NFC"}}, {{"type", "Replace"}, {"pattern", {{"String", "q"}}}, {"content", "b"}}});
    json["model"]["ignore_merges"] = true;
    seeds.add_json("tokenizer_json", "sequence", json);
    json["pre_tokenizer"] = {
        {"type", "Metaspace"}, {"replacement", "Ġ"}, {"prepend_scheme", "first"}, {"split", false}};
    json["decoder"] = {{"type", "Metaspace"}, {"replacement", "Ġ"}, {"prepend_scheme", "first"}};
    json["model"]["unk_token"] = "<s>", json["model"]["fuse_unk"] = true;
    json["added_tokens"][1]["normalized"] = json["added_tokens"][1]["lstrip"] = json["added_tokens"][1]["single_word"] =
        true;
    seeds.add_json("tokenizer_json", "metaspace", json);

    const std::string pieces = piece("<unk>", 0, 2) + piece("<s>", 0, 3) + piece("a", -3, 1) + piece("b", -4, 1) +
                               piece("ab", -1, 1) + piece("<0x0A>", 0, 6) + piece("\u2581", -5, 1) +
                               piece("<td>", 0, 4);
    const std::string trainer = field(2, std::string("\x18\x02\x98\x02\x01", 5));
    seeds.add("tokenizer_model", "sentencepiece", pieces + trainer + field(3, std::string("\x18\x01\x20\x00", 4)));
    seeds.add("tokenizer_model", "tiktoken", "YQ== 0\nYg== 1\nYWI= 2\n");
    seeds.add("encode", "ascii", "The eee <bos> x1  x2 12 123 ab\r\n\t");
    seeds.add("encode", "marks",
              "▁▁▁ <0x0A>\xC3\xA9 e\u0301\u0323 \u1100\u1161\u11A8 \u4e2d\u6587 \U0001F642 \xFF\xE2\x80");
}

void add_data(const Seeds& seeds) {
    const std::string alpaca = R"({"instruction": "Say a.", "input": "", "output": "a"})";
    seeds.add("dataset", "alpaca_lines", "\1" + alpaca + "\n\n" + alpaca + "\r\n");
    seeds.add("dataset", "alpaca_array", "\5[" + alpaca + ", " + alpaca + "]");
    seeds.add("dataset", "completions", "\2{\"prompt\": \"a\", \"completion\": \"b\"}\n{\"prompt\": 1}\n");
    seeds.add("dataset", "jsonl", "\3\xEF\xBB\xBF{\"text\": \"a\\u00e9\"}\n{\"text\": \"\"}\n");
    seeds.add("dataset", "text", "\4one\n<|endoftext|>\ntwo");
    seeds.add("dataset", "nul", std::string("\4one\n\0\ntwo", 10));
    seeds.add(
        "batch", "requests",
        std::string(
            R"({"prompt": "a", "id": "x", "temperature": 0.5, "top_k": 3, "top_p": 0.9, "min_p": 0.1, "seed": 3})") +
            "\n" + R"({"prompt": "b", "stop": ["c"], "logit_bias": {"5": "-inf", "7": 1.5}, "max_new_tokens": 2})" +
            "\n");
    seeds.add("batch", "results",
              R"({"id": 1, "text": "a", "finish_reason": "stop", "prompt_tokens": 1, "new_tokens": 1, "key": "00"})"
              "\n"
              R"({"id": "x", "error": "no", "key": "11"})"
              "\n");
    seeds.add("conversation", "saved", saved_conversation());
}

}  // namespace
}  // namespace lc::fuzz

int main(int count, char** arguments) {
    if (count != 2) {
        fmt::print(stderr, "usage: fuzz_seeds FOLDER\n");
        return 2;
    }
    const lc::fuzz::Seeds seeds(arguments[1]);
    lc::fuzz::add_weights(seeds);
    lc::fuzz::add_gguf(seeds);
    lc::fuzz::add_descriptions(seeds);
    lc::fuzz::add_tokenizers(seeds);
    lc::fuzz::add_data(seeds);
    return 0;
}
