// A conversation from a file goes on bit by bit, and only where it belongs.
#include "models/generation/state_file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>

#include "io/file.h"
#include "io/safetensors.h"
#include "tests/models/generation_tools.h"

namespace lc::models {
namespace {

using test::decoder_with_text;
using test::error_of;
using test::prompt_of;
using test::tiny_tokenizer;
using testing::AllOf;
using testing::HasSubstr;

const ModelIdentity kIdentity{"model", "run"};

GenerateOptions sampled(int64_t tokens) {
    return {.max_new_tokens = tokens, .sampling = {.temperature = 1, .logit_bias = {}, .seed = 3}};
}

class StateFileOf : public testing::TestWithParam<test::DecodeVariant> {
  protected:
    const Decoder decoder_ = decoder_with_text(GetParam().spec);
    test::TemporaryDirectory directory_;
    std::filesystem::path path() const { return directory_.path() / "talk.state"; }
};

TEST_P(StateFileOf, GoesOnWithTheSameBits) {
    Conversation unbroken(decoder_, tiny_tokenizer(), GetParam().mode);
    for (const int64_t length : {1, 14, 40}) {
        unbroken.reply(prompt_of(length, 1), sampled(7));
        save_state(unbroken, path(), {kIdentity, "chatml"});
        Conversation restored(decoder_, tiny_tokenizer(), GetParam().mode);
        EXPECT_EQ(load_state(restored, path(), kIdentity), "chatml");
        EXPECT_EQ(restored.ids(), unbroken.ids());
        EXPECT_EQ(restored.state().position(), unbroken.state().position());
        const auto saved = unbroken.state().tensors(), loaded = restored.state().tensors();
        ASSERT_EQ(saved.size(), loaded.size());
        for (size_t i = 0; i < saved.size(); ++i)
            EXPECT_EQ(saved[i].tensor.to_vector<float>(), loaded[i].tensor.to_vector<float>()) << saved[i].name;
        EXPECT_EQ(restored.reply(prompt_of(6, 2), sampled(9)).ids, unbroken.reply(prompt_of(6, 2), sampled(9)).ids);
    }
}

TEST_P(StateFileOf, IsConstantWithoutSoftmaxLayers) {
    Conversation talk(decoder_, tiny_tokenizer(), GetParam().mode);
    talk.reply(prompt_of(30, 1), sampled(5));
    save_state(talk, path(), {kIdentity, ""});
    const auto early = static_cast<int64_t>(std::filesystem::file_size(path()));
    talk.reply(prompt_of(300, 2), sampled(5));
    save_state(talk, path(), {kIdentity, ""});
    const bool grows = GetParam().mode.mode == AttentionMode::Softmax || !GetParam().spec.softmax_layers.empty();
    // 305 ids of four bytes, and a header whose numbers have another digit.
    EXPECT_EQ(static_cast<int64_t>(std::filesystem::file_size(path())) > early + 305 * 4 + 64, grows);
}

INSTANTIATE_TEST_SUITE_P(Variants, StateFileOf, testing::ValuesIn(test::decode_variants()),
                         [](const auto& p) { return std::string(p.param.name); });

class StateFile : public testing::Test {
  protected:
    StateFile() {
        Conversation talk(decoder_, tiny_tokenizer(), mode_);
        talk.reply(prompt_of(20, 1), sampled(5));
        save_state(talk, path(), {kIdentity, ""});
        const io::SafetensorsFile file(path());
        metadata_ = file.metadata();
        for (const std::string& name : file.names()) tensors_.emplace_back(name, file.read(name));
    }
    std::filesystem::path path() const { return directory_.path() / "talk.state"; }
    std::string refusal(const ModelIdentity& identity = kIdentity) const {
        Conversation talk(decoder_, tiny_tokenizer(), mode_);
        return error_of(ErrorKind::BadInput, [&] { load_state(talk, path(), identity); });
    }
    std::string refusal_with(const std::string& key, const std::string& value) const {
        io::Metadata changed = metadata_;
        changed[key] = value;
        io::write_safetensors(path(), tensors_, changed);
        return refusal();
    }
    // `change` returns what shall stand in place of the tensor; undefined: nothing.
    std::string refusal_with(const std::string& name, const std::function<Tensor(const Tensor&)>& change) const {
        std::vector<std::pair<std::string, Tensor>> changed;
        for (const auto& [known, tensor] : tensors_)
            if (const Tensor other = known == name ? change(tensor.clone()) : tensor; other.defined())
                changed.emplace_back(known, other);
        io::write_safetensors(path(), changed, metadata_);
        return refusal();
    }
    const DecodeMode mode_{AttentionMode::Linearized};
    const Decoder decoder_ = decoder_with_text(test::tiny_spec());
    test::TemporaryDirectory directory_;
    io::Metadata metadata_;
    std::vector<std::pair<std::string, Tensor>> tensors_;
};

TEST_F(StateFile, BelongsToOneModelAndRun) {
    EXPECT_THAT(refusal({"other", "run"}),
                AllOf(HasSubstr("talk.state"), HasSubstr("model_hash 'model'"), HasSubstr("other")));
    EXPECT_THAT(refusal({"model", ""}), HasSubstr("run_hash 'run'"));
    Conversation softmax(decoder_, tiny_tokenizer(), {AttentionMode::Softmax}),
        window(decoder_, tiny_tokenizer(), {AttentionMode::Linearized, Terms::WindowOnly});
    for (Conversation* other : {&softmax, &window})
        EXPECT_THAT(error_of(ErrorKind::BadInput, [&] { load_state(*other, path(), kIdentity); }),
                    HasSubstr("attention 'linearized, both'"));
}

TEST_F(StateFile, DamageIsNamed) {
    EXPECT_THAT(refusal_with("format", "pt"), HasSubstr("format 'pt'"));
    EXPECT_THAT(refusal_with("version", "2"), HasSubstr("version '2'"));
    EXPECT_THAT(refusal_with("dtype", "bf16"), HasSubstr("dtype 'bf16'"));
    for (const char* position : {"", "-1", "26", "x", "5x", "99999999999999999999"})
        EXPECT_THAT(refusal_with("position", position), HasSubstr("'position'")) << position;
    EXPECT_THAT(refusal_with("layers.1.z", [](const Tensor&) { return Tensor(); }), HasSubstr("layers.1.z"));
    EXPECT_THAT(refusal_with("ids", [](const Tensor&) { return Tensor(); }), HasSubstr("ids"));
    EXPECT_THAT(refusal_with("layers.2.s", [](const Tensor& s) { return s.sliced(2, 0, 3); }), HasSubstr("layers.2.s"));
    EXPECT_THAT(refusal_with("layers.0.ring_k", [](const Tensor& k) { return k.to(DType::bf16); }),
                AllOf(HasSubstr("layers.0.ring_k"), HasSubstr("f32"), HasSubstr("bf16")));
    EXPECT_THAT(refusal_with("layers.0.s", [](Tensor s) { return s.fill(NAN), s; }), HasSubstr("not finite"));
    EXPECT_THAT(refusal_with("ids", [](Tensor ids) { return ids.fill(283), ids; }), HasSubstr("id 283"));
    EXPECT_THAT(refusal_with("ids", [](Tensor ids) { return ids.fill(-1), ids; }), HasSubstr("id -1"));
    EXPECT_THAT(refusal_with("ids", [](const Tensor& ids) { return ids.to(DType::f32); }), HasSubstr("I32"));
    EXPECT_THAT(refusal_with("ids", [](const Tensor&) { return Tensor::zeros({600}, DType::i32); }), HasSubstr("600"));
    auto more = tensors_;
    more.emplace_back("layers.9.s", Tensor::zeros({1}, DType::f32));
    io::write_safetensors(path(), more, metadata_);
    EXPECT_THAT(refusal(), HasSubstr("tensors"));
}

TEST_F(StateFile, OtherFilesAreRefused) {
    io::write_safetensors(path(), tensors_, {});
    EXPECT_THAT(refusal(), HasSubstr("no saved conversation"));
    std::ofstream(path()) << "hello";
    EXPECT_THAT(refusal(), HasSubstr("talk.state"));
    std::filesystem::remove(path());
    EXPECT_THAT(refusal(), HasSubstr("talk.state"));
}

TEST_F(StateFile, CutAnywhereItIsRefused) {
    const std::string bytes = io::read_file(path(), 1 << 24);
    for (size_t i = 0; i < 40; ++i) {
        std::ofstream(path(), std::ios::binary) << bytes.substr(0, bytes.size() * i / 40);
        EXPECT_THAT(refusal(), HasSubstr("talk.state"));
    }
}

}  // namespace
}  // namespace lc::models
