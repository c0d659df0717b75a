// A conversation's turns equal one long text, and nothing is read twice.
#include "models/generation/conversation.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/models/generation_tools.h"

namespace lc::models {
namespace {

using test::decoder_with_text;
using test::error_of;
using test::prompt_of;
using test::tiny_tokenizer;
using testing::HasSubstr;

GenerateOptions greedy(int64_t tokens) {
    return {.max_new_tokens = tokens, .sampling = {.temperature = 0}};
}

class ConversationOf : public testing::TestWithParam<test::DecodeVariant> {
  protected:
    const Decoder decoder_ = decoder_with_text(GetParam().spec);
};

TEST_P(ConversationOf, TurnsEqualTheFullForwardOfAllThatWasSaid) {
    Conversation conversation(decoder_, tiny_tokenizer(), GetParam().mode, 7);
    for (uint64_t turn = 0; turn < 5; ++turn) {
        const std::vector<int32_t> before = conversation.ids(),
                                   said = prompt_of(1 + 9 * static_cast<int64_t>(turn), turn);
        const int64_t position = conversation.state().position();
        const Generation answer = conversation.reply(said, greedy(6));
        ASSERT_EQ(answer.ids.size(), 6u);
        std::vector<int32_t> prompt = before;
        prompt.insert(prompt.end(), said.begin(), said.end());
        test::expect_greedy(decoder_, GetParam().mode, prompt, answer.ids);
        EXPECT_EQ(std::ssize(conversation.ids()), std::ssize(prompt) + 6);
        // Only the last id of the answer waits for the next turn; all others were read once.
        EXPECT_EQ(conversation.state().position(), std::ssize(conversation.ids()) - 1);
        EXPECT_EQ(conversation.state().position() - position, std::ssize(said) + 5 + (turn > 0 ? 1 : 0));
    }
}

TEST_P(ConversationOf, AStoppedAnswerLeavesAConversationThatGoesOn) {
    Conversation conversation(decoder_, tiny_tokenizer(), GetParam().mode, 10);
    int asked = 0;
    const Generation cut = conversation.reply(prompt_of(25, 1), greedy(50), {}, [&] { return ++asked > 6; });
    EXPECT_EQ(cut.finish_reason, "cancelled");
    EXPECT_EQ(cut.ids.size(), 4u) << "three times between chunks, three times between tokens, then it says yes";
    std::vector<int32_t> all = conversation.ids();
    const std::vector<int32_t> next = prompt_of(3, 2);
    const Generation answer = conversation.reply(next, greedy(5));
    all.insert(all.end(), next.begin(), next.end());
    test::expect_greedy(decoder_, GetParam().mode, all, answer.ids);

    // Stopped while it still reads: the rest of the prompt is read by the next turn.
    const Generation nothing = conversation.reply(prompt_of(30, 3), greedy(5), {}, [] { return true; });
    EXPECT_EQ(nothing.finish_reason, "cancelled");
    EXPECT_TRUE(nothing.ids.empty());
    all = conversation.ids();
    test::expect_greedy(decoder_, GetParam().mode, all, conversation.reply({}, greedy(5)).ids);
}

INSTANTIATE_TEST_SUITE_P(Variants, ConversationOf, testing::ValuesIn(test::decode_variants()),
                         [](const auto& p) { return std::string(p.param.name); });

TEST(Conversation, RefusalsLeaveItAsItWas) {
    const Decoder decoder = decoder_with_text(test::tiny_spec());
    Conversation conversation(decoder, tiny_tokenizer(), {AttentionMode::Linearized});
    EXPECT_THAT(error_of(ErrorKind::Usage, [&] { conversation.reply({}, greedy(5)); }), HasSubstr("no tokens"));
    const Generation first = conversation.reply(prompt_of(10, 1), greedy(5));
    const std::vector<int32_t> said = conversation.ids();
    EXPECT_THAT(error_of(ErrorKind::Usage, [&] { conversation.reply(prompt_of(500, 1), greedy(5)); }),
                HasSubstr("max_position_embeddings 512"));
    GenerateOptions wrong = greedy(5);
    wrong.stop_strings = {""};
    EXPECT_THAT(error_of(ErrorKind::Usage, [&] { conversation.reply(prompt_of(5, 1), wrong); }), HasSubstr("empty"));
    EXPECT_EQ(conversation.ids(), said);
    EXPECT_EQ(conversation.state().position(), std::ssize(said) - 1);
    std::vector<int32_t> all = said;
    test::expect_greedy(decoder, {AttentionMode::Linearized}, all, conversation.reply({}, greedy(5)).ids);
}

}  // namespace
}  // namespace lc::models
