// A GGUF file gives the model that its Hugging Face directory gives.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>

#include "autograd/grad_mode.h"
#include "models/export.h"
#include "models/model_source.h"
#include "models/run.h"
#include "tests/io/gguf_bytes.h"
#include "tests/models/tiny.h"

namespace lc::models {
namespace {

using io::test::gguf_f32;
using io::test::gguf_text;
using io::test::gguf_u32;
using test::error_of;
using testing::HasSubstr;

// As llama.cpp's converter does it: row (2 i + p) of a head is row (p d/2 + i).
Tensor pairs_of_halves(const Tensor& weight, int64_t heads) {
    const int64_t d = weight.size(0) / heads;
    Tensor result = Tensor::empty(weight.shape(), DType::f32);
    for (int64_t h = 0; h < heads; ++h)
        for (int64_t p = 0; p < 2; ++p)
            for (int64_t i = 0; i < d / 2; ++i)
                result.sliced(0, h * d + 2 * i + p, 1).copy_from(weight.sliced(0, h * d + p * d / 2 + i, 1));
    return result;
}

class Gguf : public testing::TestWithParam<bool> {
  protected:
    Gguf() : decoder_(test::tiny_decoder(test::tiny_config(GetParam(), 2), DType::f32)) {
        const DecoderConfig& c = decoder_.config();
        pairs_ = {gguf_text("general.architecture", "llama"),
                  gguf_u32("llama.embedding_length", static_cast<uint32_t>(c.hidden_size)),
                  gguf_u32("llama.feed_forward_length", static_cast<uint32_t>(c.intermediate_size)),
                  gguf_u32("llama.block_count", 2),
                  gguf_u32("llama.attention.head_count", static_cast<uint32_t>(c.num_heads)),
                  gguf_u32("llama.attention.head_count_kv", static_cast<uint32_t>(c.num_kv_heads)),
                  gguf_u32("llama.context_length", static_cast<uint32_t>(c.max_positions)),
                  gguf_f32("llama.attention.layer_norm_rms_epsilon", static_cast<float>(c.norm_eps)),
                  gguf_f32("llama.rope.freq_base", 100)};
        const std::pair<std::string, std::string> names[] = {
            {"model.layers.", "blk."},        {"model.embed_tokens", "token_embd"},
            {"model.norm", "output_norm"},    {"lm_head", "output"},
            {"input_layernorm", "attn_norm"}, {"post_attention_layernorm", "ffn_norm"},
            {"self_attn.q_proj", "attn_q"},   {"self_attn.k_proj", "attn_k"},
            {"self_attn.v_proj", "attn_v"},   {"self_attn.o_proj", "attn_output"},
            {"mlp.gate_proj", "ffn_gate"},    {"mlp.up_proj", "ffn_up"},
            {"mlp.down_proj", "ffn_down"}};
        for (const NamedTensor& weight : decoder_.base_parameters()) {
            std::string name = weight.name;
            for (const auto& [from, to] : names)
                if (const size_t at = name.find(from); at != std::string::npos) name.replace(at, from.size(), to);
            Tensor tensor = weight.tensor.detach();
            if (name.ends_with("attn_q.weight")) tensor = pairs_of_halves(tensor, c.num_heads);
            if (name.ends_with("attn_k.weight")) tensor = pairs_of_halves(tensor, c.num_kv_heads);
            parts_.push_back(io::test::f32_part(name, tensor));
        }
    }
    std::filesystem::path write() const {
        const auto path = directory_.path() / "model.gguf";
        std::ofstream(path, std::ios::binary) << io::test::gguf_bytes(pairs_, parts_);
        return path;
    }
    Decoder decoder_;
    std::vector<std::string> pairs_;
    std::vector<io::test::GgufPart> parts_;
    test::TemporaryDirectory directory_;
};
INSTANTIATE_TEST_SUITE_P(All, Gguf, testing::Bool(), [](const auto& p) { return p.param ? "tied" : "untied"; });

TEST_P(Gguf, WeightsAreThoseOfTheDirectory) {
    const Decoder again = load_model({.directory = write()}, {});
    const auto wanted = decoder_.base_parameters(), got = again.base_parameters();
    ASSERT_EQ(got.size(), wanted.size());
    for (size_t i = 0; i < got.size(); ++i) {
        EXPECT_EQ(got[i].name, wanted[i].name);
        EXPECT_EQ(got[i].tensor.to_vector<float>(), wanted[i].tensor.to_vector<float>()) << got[i].name;
    }
    const NoGrad no_grad;
    // the epsilon was rounded to f32 on its way
    EXPECT_LT(test::relative_error(again.logits(test::tiny_ids(2, 9), {}), decoder_.logits(test::tiny_ids(2, 9), {})),
              1e-6);
    const Decoder part = Decoder::load(write(), {.layers = {1, 2}});
    EXPECT_EQ(part.layer(0).k.weight.to_vector<float>(), decoder_.layer(1).k.weight.to_vector<float>());
}

TEST_P(Gguf, RunsAreTiedToTheFile) {
    const auto path = write();
    Decoder decoder = Decoder::load(path);
    decoder.linearize(test::tiny_spec(), 1);
    save_feature_maps(decoder, directory_.path(), {.base_model = "m", .base_hash = model_hash(path)});
    EXPECT_TRUE(load_model({.directory = path}, directory_.path(), {}).attention());
    std::ofstream(path, std::ios::app) << " ";
    EXPECT_THAT(error_of(ErrorKind::BadInput, [&] { load_model({.directory = path}, directory_.path(), {}); }),
                HasSubstr("another base model"));
    EXPECT_THAT(
        error_of(ErrorKind::BadInput, [&] { export_merged(path, directory_.path(), directory_.path() / "out"); }),
        HasSubstr("not a GGUF file"));
}

TEST_P(Gguf, OtherTensorsAreRefused) {
    const auto parts = parts_;
    const auto refusal = [&] { return error_of(ErrorKind::BadInput, [&] { Decoder::load(write()); }); };
    parts_.push_back(io::test::f32_part("blk.0.attn_q.bias", Tensor::zeros({24}, DType::f32)));
    EXPECT_THAT(refusal(), HasSubstr("tensor 'blk.0.attn_q.bias' is no part"));
    parts_ = parts;
    std::erase_if(parts_, [](const auto& part) { return part.name == "blk.1.ffn_up.weight"; });
    EXPECT_THAT(refusal(), HasSubstr("tensor 'blk.1.ffn_up.weight' is missing"));
    parts_ = parts;
    for (auto& part : parts_)
        if (part.name == "blk.1.attn_v.weight") part.shape = {24, 12};
    EXPECT_THAT(refusal(),
                testing::AllOf(HasSubstr("blk.1.attn_v.weight"), HasSubstr("[12,24]"), HasSubstr("[24,12]")));
}

}  // namespace
}  // namespace lc::models
