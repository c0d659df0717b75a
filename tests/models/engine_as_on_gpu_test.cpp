// The engine's way on a GPU, on a CPU: one step for all slots, tokens drawn where the logits are, the host one step behind.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/models/engine_tools.h"

namespace lc::models {
namespace {

using test::decoder_with_text;
using test::DecodeVariant;
using test::greedy;
using test::mixed_requests;
using test::prompt_of;
using test::run_all;
using test::tiny_tokenizer;
using testing::HasSubstr;

class EngineAsOnGpu : public testing::TestWithParam<DecodeVariant> {
  protected:
    const Decoder decoder_ = decoder_with_text(GetParam().spec);
    EngineOptions with(int64_t slots, int64_t chunk = 16) const {
        return {.mode = GetParam().mode, .slots = slots, .prefill_chunk = chunk, .as_on_gpu = true};
    }
};

TEST_P(EngineAsOnGpu, GreedyIdsAreThoseOfTheFullForward) {
    Engine engine(decoder_, tiny_tokenizer(), with(7));
    test::expect_full_forward(engine, decoder_, GetParam().mode, 60, 1, 6);
}

// Slots change hands while a step of the one before is still under way, with tables of penalties that others do not have.
TEST_P(EngineAsOnGpu, ResultsDoNotDependOnTheCompany) {
    const std::vector<Request> requests = mixed_requests();
    Engine together(decoder_, tiny_tokenizer(), with(4));
    for (const Request& request : requests) together.submit(request);
    const auto results = run_all(together);
    for (size_t i = 0; i < requests.size(); ++i) {
        Engine alone(decoder_, tiny_tokenizer(), with(4));
        alone.submit(requests[i]);
        EXPECT_EQ(run_all(alone).at(0).result.ids, results.at(static_cast<int64_t>(i)).result.ids) << i;
    }
}

// What the device drew is what sample() draws from the logits of the full forward.
TEST_P(EngineAsOnGpu, DrawsByTheRulesOfTheHost) {
    const NoGrad no_grad;
    for (const Request& request : mixed_requests()) {
        Engine engine(decoder_, tiny_tokenizer(), with(2));
        engine.submit(request);
        const std::vector<int32_t> ids = run_all(engine).at(0).result.ids;
        std::vector<int32_t> all = request.prompt;
        all.insert(all.end(), ids.begin(), ids.end());
        const Tensor logits = decoder_.logits(Tensor::from(all, {1, std::ssize(all)}), {.mode = GetParam().mode.mode});
        int64_t differ = 0;
        for (int64_t i = 0; i < std::ssize(ids); ++i) {
            const int64_t position = std::ssize(request.prompt) + i;
            const TokenHistory history{request.prompt, std::span(ids).first(static_cast<size_t>(i))};
            differ += sample(logits.sliced(1, position - 1, 1).to_vector<float>(), history, request.options.sampling,
                             position) != ids[static_cast<size_t>(i)];
        }
        EXPECT_LE(differ, 1) << "rounding may move a border between two tokens onto a draw, hardly twice";
    }
}

TEST_P(EngineAsOnGpu, EndsWhereItMust) {
    Engine engine(decoder_, tiny_tokenizer(), with(3, 600));
    const std::vector<int32_t> prompt = prompt_of(9, 1);
    engine.submit(greedy(prompt, 30));
    const Generation all = run_all(engine).at(0).result;
    Request eos = greedy(prompt, 30), stop = greedy(prompt, 30), banned = greedy(prompt, 30);
    eos.options.eos_ids = {all.ids[7]};
    size_t letter = 1;  // bytes of the first code point
    while (letter < all.text.size() && (all.text[letter] & 0xC0) == 0x80) ++letter;
    stop.options.stop_strings = {all.text.substr(0, letter)};
    for (int32_t id = 0; id < 283; ++id) banned.options.sampling.logit_bias.push_back({id, -INFINITY});
    const int64_t first = engine.submit(eos);
    engine.submit(stop), engine.submit(banned), engine.submit(greedy(prompt_of(505, 1), 100));
    engine.submit(greedy(prompt_of(511, 1), 100)), engine.submit(greedy(prompt, 30));
    const auto results = run_all(engine);
    const auto result = [&](int64_t i) -> const Finished& { return results.at(first + i); };
    const auto end = std::find(all.ids.begin(), all.ids.end(), all.ids[7]) + 1;
    EXPECT_EQ(result(0).result.ids, std::vector<int32_t>(all.ids.begin(), end));
    EXPECT_EQ(result(0).result.finish_reason, "stop");
    EXPECT_EQ(result(1).result.text, "");
    EXPECT_THAT(result(2).error, HasSubstr("logit_bias leaves no token"));
    EXPECT_EQ(result(3).result.ids.size(), 7u) << "the model's limit";
    EXPECT_EQ(result(4).result.ids.size(), 1u);
    EXPECT_EQ(result(5).result.ids, all.ids) << "as if nobody had ended around it";
    EXPECT_EQ(engine.tokens_made(),
              30 + std::ssize(result(0).result.ids) + std::ssize(result(1).result.ids) + 7 + 1 + 30);
}

TEST_P(EngineAsOnGpu, CancelFreesTheSlot) {
    Engine engine(decoder_, tiny_tokenizer(), with(1));
    const int64_t first = engine.submit(greedy(prompt_of(5, 1), 300));
    engine.submit(greedy(prompt_of(5, 3), 4));
    for (int i = 0; i < 10; ++i) engine.step();
    engine.cancel(first);
    const auto results = run_all(engine);
    EXPECT_EQ(results.at(first).result.finish_reason, "cancelled");
    EXPECT_EQ(results.at(first).result.ids.size(), 10u) << "the host is one step behind";
    test::expect_greedy(decoder_, GetParam().mode, prompt_of(5, 3), results.at(1).result.ids);
    EXPECT_EQ(results.at(1).result.ids.size(), 4u);
}

INSTANTIATE_TEST_SUITE_P(Variants, EngineAsOnGpu, testing::ValuesIn(test::decode_variants()),
                         [](const auto& p) { return std::string(p.param.name); });

}  // namespace
}  // namespace lc::models
