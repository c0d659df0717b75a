// What the model reads, written out with its special tokens.
#include "models/generation/chat_template.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>

#include "io/json.h"
#include "io/tokenizer/bpe_trainer.h"
#include "tests/assets.h"
#include "tests/io/gguf_bytes.h"
#include "tests/models/tiny.h"

namespace lc::models {
namespace {

using test::error_of;
using testing::HasSubstr;

const io::Tokenizer& tokenizer() {
    static const io::Tokenizer tokenizer = io::Tokenizer::parse(
        io::train_byte_level_bpe("one two three",
                                 {.vocab_size = 300,
                                  .special_tokens = {"<s>", "</s>", "<|start_header_id|>", "<|end_header_id|>",
                                                     "<|eot_id|>", "<|im_start|>", "<|im_end|>"},
                                  .bos_token = "<s>"}),
        "chat");
    return tokenizer;
}

class Dialogue {
  public:
    explicit Dialogue(std::string_view name) : template_(name, tokenizer()) {}
    void user(std::string_view text, std::string_view system = {}) { append(template_.turn(text, system, said_)); }
    // An answer, with the id that ends it or without.
    void answer(std::string_view text, bool ended = true) {
        append(tokenizer().encode(text, false));
        if (ended) said_.push_back(static_cast<int32_t>(template_.end_ids().at(0)));
    }
    std::string text() const { return tokenizer().decode(said_, false); }
    std::string two_turns(std::string_view system = {}, bool ended = true) {
        user("Hi ", system), answer("Yo", ended), user("why?");
        return text();
    }

  private:
    void append(const std::vector<int32_t>& ids) { said_.insert(said_.end(), ids.begin(), ids.end()); }
    ChatTemplate template_;
    std::vector<int32_t> said_;
};

TEST(ChatTemplate, Llama3) {
    const std::string header = "<|start_header_id|>", end = "<|end_header_id|>\n\n";
    EXPECT_EQ(Dialogue("llama3").two_turns("Be brief."), "<s>" + header + "system" + end + "Be brief.<|eot_id|>" +
                                                             header + "user" + end + "Hi<|eot_id|>" + header +
                                                             "assistant" + end + "Yo<|eot_id|>" + header + "user" +
                                                             end + "why?<|eot_id|>" + header + "assistant" + end);
    EXPECT_EQ(Dialogue("llama3").two_turns().find("system"), std::string::npos);
}

TEST(ChatTemplate, Llama2) {
    EXPECT_EQ(Dialogue("llama2").two_turns("Be brief."),
              "<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nHi [/INST]Yo</s><s>[INST] why? [/INST]");
    EXPECT_EQ(Dialogue("llama2").two_turns(), "<s>[INST] Hi [/INST]Yo</s><s>[INST] why? [/INST]");
}

TEST(ChatTemplate, Mistral) {
    EXPECT_EQ(Dialogue("mistral").two_turns("Be brief."),
              "<s>[INST] Be brief.\n\nHi  [/INST]Yo</s>[INST] why? [/INST]");
    EXPECT_EQ(Dialogue("mistral").two_turns(), "<s>[INST] Hi  [/INST]Yo</s>[INST] why? [/INST]");
}

TEST(ChatTemplate, ChatMl) {
    EXPECT_EQ(Dialogue("chatml").two_turns("Be brief."),
              "<s><|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi <|im_end|>\n<|im_start|>assistant\nYo"
              "<|im_end|>\n<|im_start|>user\nwhy?<|im_end|>\n<|im_start|>assistant\n");
}

TEST(ChatTemplate, Alpaca) {
    EXPECT_EQ(
        Dialogue("alpaca").two_turns(),
        "<s>Below is an instruction that describes a task. Write a response that appropriately completes the "
        "request.\n\n### Instruction:\nHi \n\n### Response:\nYo</s>\n\n### Instruction:\nwhy?\n\n### Response:\n");
    EXPECT_EQ(ChatTemplate("alpaca", tokenizer()).stop_strings(), std::vector<std::string>{"\n\n### Instruction:"});
    EXPECT_THAT(error_of(ErrorKind::Usage, [] { Dialogue("alpaca").user("x", "Be brief."); }), HasSubstr("alpaca"));
}

TEST(ChatTemplate, AnAnswerCutShortGetsItsEnd) {
    for (const char* name : {"llama3", "llama2", "mistral", "chatml", "alpaca"})
        EXPECT_EQ(Dialogue(name).two_turns({}, false), Dialogue(name).two_turns({}, true)) << name;
}

TEST(ChatTemplate, Refusals) {
    EXPECT_THAT(error_of(ErrorKind::Usage, [] { ChatTemplate("vicuna", tokenizer()); }), HasSubstr("one of alpaca"));
    const io::Tokenizer plain = io::Tokenizer::parse(io::train_byte_level_bpe("x", {.vocab_size = 280}), "plain");
    EXPECT_THAT(error_of(ErrorKind::BadInput, [&] { ChatTemplate("llama3", plain); }), HasSubstr("<|eot_id|>"));
    EXPECT_THAT(error_of(ErrorKind::BadInput, [&] { ChatTemplate("chatml", plain); }), HasSubstr("<|im_end|>"));
    EXPECT_EQ(ChatTemplate("llama2", plain).end_ids(), std::vector<int64_t>{1}) << "the tokenizer's end of text";
}

TEST(ChatTemplate, KnowsTheModelsOwnByItsMarks) {
    const test::TemporaryDirectory directory;
    const auto config = [&](const std::string& text) {
        std::ofstream(directory.path() / "tokenizer_config.json") << text;
    };
    EXPECT_EQ(recognize_chat_template(directory.path()), std::nullopt);
    config("{}");
    EXPECT_EQ(recognize_chat_template(directory.path()), std::nullopt);
    const std::pair<const char*, const char*> known[] = {{"<|start_header_id|>' + role", "llama3"},
                                                         {"'<|im_start|>' + role", "chatml"},
                                                         {"[INST] <<SYS>> [/INST]", "llama2"},
                                                         {"[INST] ' + content", "mistral"},
                                                         {"### Instruction:", "alpaca"}};
    for (const auto& [text, name] : known) {
        config(io::Json{{"chat_template", text}}.dump());
        EXPECT_EQ(recognize_chat_template(directory.path()), name);
    }
    config(
        R"({"chat_template": [{"name": "tool", "template": "[INST]"}, {"name": "default", "template": "<|im_start|>"}]})");
    EXPECT_EQ(recognize_chat_template(directory.path()), "chatml");
    config(R"({"chat_template": "{{ something(else) }}"})");
    EXPECT_EQ(recognize_chat_template(directory.path()), std::nullopt) << "nothing is guessed";
    std::ofstream(directory.path() / "chat_template.jinja") << "<|start_header_id|>";
    EXPECT_EQ(recognize_chat_template(directory.path()), "llama3") << "the newer file wins";
    std::filesystem::remove(directory.path() / "chat_template.jinja");
    config(R"({"chat_template": 3})");
    EXPECT_THAT(error_of(ErrorKind::BadInput, [&] { recognize_chat_template(directory.path()); }),
                HasSubstr("chat_template"));
    const std::filesystem::path gguf = directory.path() / "m.gguf";
    std::ofstream(gguf, std::ios::binary)
        << io::test::gguf_bytes({io::test::gguf_text("tokenizer.chat_template", "'<|im_start|>' + role")}, {});
    EXPECT_EQ(recognize_chat_template(gguf), "chatml");
    std::ofstream(gguf, std::ios::binary) << io::test::gguf_bytes({}, {});
    EXPECT_EQ(recognize_chat_template(gguf), std::nullopt);
}

// Special tokens of a real tokenizer are single ids, BOS stands once.
TEST(ChatTemplate, OnLlama3sTokenizer) {
    const auto assets = test::assets_dir();
    if (!assets) GTEST_SKIP() << test::kNoAssets;
    const io::Tokenizer llama3 = io::Tokenizer::load(*assets / "tokenizers/llama3/tokenizer.json");
    const ChatTemplate chat("llama3", llama3);
    EXPECT_EQ(chat.end_ids(), std::vector<int64_t>{128009});
    const std::vector<int32_t> ids = chat.turn("hello", "", {});
    EXPECT_EQ(ids, (std::vector<int32_t>{128000, 128006, 882, 128007, 271, 15339, 128009, 128006, 78191, 128007, 271}));
}

}  // namespace
}  // namespace lc::models
