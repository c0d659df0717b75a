// A request's result is its own: the full forward's, whoever else runs and whenever they came.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <numeric>

#include "io/text.h"
#include "tests/assets.h"
#include "tests/models/engine_tools.h"

namespace lc::models {
namespace {

using test::decoder_with_text;
using test::DecodeVariant;
using test::error_of;
using test::greedy;
using test::mixed_requests;
using test::prompt_of;
using test::run_all;
using test::tiny_tokenizer;
using testing::HasSubstr;

class EngineOf : public testing::TestWithParam<DecodeVariant> {
  protected:
    const Decoder decoder_ = decoder_with_text(GetParam().spec);
    EngineOptions with(int64_t slots, int64_t chunk = 512) const {
        return {.mode = GetParam().mode, .slots = slots, .prefill_chunk = chunk};
    }
};

// Prompts of 1 to 300 tokens, eleven at a time, read in pieces of 50: whatever is decoded beside whatever is read.
TEST_P(EngineOf, GreedyIdsAreThoseOfTheFullForward) {
    Engine engine(decoder_, tiny_tokenizer(), with(11, 50));
    test::expect_full_forward(engine, decoder_, GetParam().mode, 300, 3, 5);
}

// Neither the number of slots nor the order of arrival, nor when the others come, changes a single id.
TEST_P(EngineOf, ResultsDoNotDependOnTheCompany) {
    const std::vector<Request> requests = mixed_requests();
    std::vector<std::vector<int32_t>> alone;
    for (const Request& request : requests) {
        Engine engine(decoder_, tiny_tokenizer(), with(1, 16));
        engine.submit(request);
        alone.push_back(run_all(engine).at(0).result.ids);
    }
    for (const int64_t slots : {2, 8, 21}) {
        std::vector<size_t> order(requests.size());
        std::iota(order.begin(), order.end(), size_t{0});
        std::rotate(order.begin(), order.begin() + slots, order.end());
        if (slots == 8) std::reverse(order.begin(), order.end());
        Engine engine(decoder_, tiny_tokenizer(), with(slots, 16));
        std::map<int64_t, Finished> results;
        for (size_t next = 0; next < order.size() || engine.running() + engine.waiting() > 0;) {
            for (int64_t i = 0; i < 3 && next < order.size(); ++i) engine.submit(requests[order[next++]]);
            engine.step();
            for (Finished& finished : engine.take_finished()) results[finished.id] = std::move(finished);
        }
        for (size_t i = 0; i < order.size(); ++i)
            EXPECT_EQ(results.at(static_cast<int64_t>(i)).result.ids, alone[order[i]])
                << slots << " slots, " << order[i];
    }
}

// The logits themselves, bit by bit: a sequence alone in a step, and in any place among others at other positions.
TEST_P(EngineOf, AStepHasTheSameBitsInAnyCompany) {
    const Generator generator(decoder_);
    const auto read = [&](int64_t length) {
        DecodeState state(decoder_, GetParam().mode.mode, 1, GetParam().mode.terms);
        generator.feed(state, Tensor::from(prompt_of(length, 5), {1, length}));
        return state;
    };
    const auto step = [&](int64_t place, int64_t others) {
        std::vector<DecodeState> states;
        std::vector<int32_t> ids;
        for (int64_t i = 0; i <= others; ++i)
            states.push_back(read(i == place ? 30 : 3 + 5 * i)),
                ids.push_back(i == place ? 9 : static_cast<int32_t>(i));
        std::vector<DecodeState*> pointers;
        for (DecodeState& state : states) pointers.push_back(&state);
        std::vector<float> rows;
        for (int64_t t = 0; t < 9; ++t) {  // over a border of blocks
            const Tensor logits = generator.step(pointers, ids, Engine::kCpuRows);
            const auto row = logits.sliced(0, place, 1).to_vector<float>();
            rows.insert(rows.end(), row.begin(), row.end());
        }
        return rows;
    };
    const std::vector<float> alone = step(0, 0);
    for (const auto& [place, others] : {std::pair<int64_t, int64_t>{0, 1}, {1, 1}, {3, 5}, {7, 7}, {0, 7}}) {
        const std::vector<float> row = step(place, others);
        EXPECT_EQ(std::memcmp(row.data(), alone.data(), alone.size() * sizeof(float)), 0) << place << " of " << others;
    }
}

TEST_P(EngineOf, MemoryIsBoundedByTheSlots) {
    Engine engine(decoder_, tiny_tokenizer(), with(4));
    const bool grows = GetParam().mode.mode == AttentionMode::Softmax || !GetParam().spec.softmax_layers.empty();
    const int64_t before = engine.state_bytes();
    for (uint64_t i = 0; i < 12; ++i) engine.submit(greedy(prompt_of(40, i), 60));
    int64_t most = 0;
    while (engine.step()) most = std::max(most, engine.state_bytes());
    EXPECT_EQ(most > before, grows);
    EXPECT_EQ(engine.state_bytes(), before) << "a free slot keeps nothing of its sequence";
    EXPECT_EQ(engine.tokens_read(), 12 * 40);
    EXPECT_EQ(engine.tokens_made(), 12 * 60);
}

INSTANTIATE_TEST_SUITE_P(Variants, EngineOf, testing::ValuesIn(test::decode_variants()),
                         [](const auto& p) { return std::string(p.param.name); });

class EngineTest : public testing::Test {
  protected:
    const Decoder decoder_ = decoder_with_text(test::tiny_spec());
    const DecodeMode mode_{AttentionMode::Linearized};
    Engine make(int64_t slots, int64_t chunk = 512) const {
        return Engine(decoder_, tiny_tokenizer(), {.mode = mode_, .slots = slots, .prefill_chunk = chunk});
    }
    // A text of some length whose greedy continuation the tests then cut.
    Generation reference(int64_t tokens = 40) const {
        return generate(decoder_, tiny_tokenizer(), mode_, prompt_of(9, 1),
                        {.max_new_tokens = tokens, .sampling = {.temperature = 0}});
    }
    Finished run_one(const GenerateOptions& options) const {
        Engine engine(decoder_, tiny_tokenizer(), {.mode = mode_});
        engine.submit({.prompt = prompt_of(9, 1), .options = options});
        return run_all(engine).at(0);
    }
};

TEST_F(EngineTest, ALongPromptDoesNotStopTheOthers) {
    Engine engine = make(3, 10);
    engine.submit(greedy(prompt_of(5, 1), 60));
    engine.step();
    engine.submit(greedy(prompt_of(200, 2), 5));
    for (int round = 0; round < 15; ++round) {
        const int64_t made = engine.tokens_made(), read = engine.tokens_read();
        engine.step();
        EXPECT_EQ(engine.tokens_made(), made + 1) << "one token a step, whatever is read";
        EXPECT_EQ(engine.tokens_read(), read + 10);
    }
}

TEST_F(EngineTest, ShortPromptsShareARound) {
    Engine engine = make(8, 64);
    for (uint64_t i = 0; i < 8; ++i) engine.submit(greedy(prompt_of(8, i), 5));
    engine.step();
    EXPECT_EQ(engine.tokens_read(), 64);
    EXPECT_EQ(engine.tokens_made(), 16) << "the prompts' own and one step";
}

TEST_F(EngineTest, EndsAtEosAndStopStringsWhereverTokensEnd) {
    const Generation all = reference();
    const auto cut_at = [&](const std::string& stop) { return all.text.substr(0, all.text.find(stop)); };
    for (const size_t start : {all.text.size() / 4, all.text.size() / 2})
        for (const size_t length : {1, 2, 5}) {
            size_t begin = start;
            while ((all.text[begin] & 0xC0) == 0x80) ++begin;
            size_t end = begin + length;
            while (end < all.text.size() && (all.text[end] & 0xC0) == 0x80) ++end;
            const std::string stop = all.text.substr(begin, end - begin);
            const Finished found =
                run_one({.max_new_tokens = 40, .sampling = {.temperature = 0}, .stop_strings = {stop}});
            EXPECT_EQ(found.result.text, cut_at(stop)) << io::printable(stop);
            EXPECT_EQ(found.result.finish_reason, "stop");
            EXPECT_LE(found.result.ids.size(), all.ids.size());
        }
    const Finished eos = run_one({.max_new_tokens = 40, .sampling = {.temperature = 0}, .eos_ids = {all.ids[7]}});
    const auto first = std::find(all.ids.begin(), all.ids.end(), all.ids[7]);
    EXPECT_EQ(eos.result.ids, std::vector<int32_t>(all.ids.begin(), first + 1));
    EXPECT_EQ(eos.result.finish_reason, "stop");
}

TEST_F(EngineTest, AStopStringMayBeTheFirstToken) {
    const Generation all = reference(1);
    ASSERT_FALSE(all.text.empty());
    const Finished found = run_one({.max_new_tokens = 40, .sampling = {.temperature = 0}, .stop_strings = {all.text}});
    EXPECT_EQ(found.result.text, "");
    EXPECT_EQ(found.result.ids, all.ids);
    EXPECT_EQ(found.result.finish_reason, "stop");
    EXPECT_EQ(found.error, "");
}

TEST_F(EngineTest, StreamsWholeCodePointsThatMakeUpTheText) {
    Engine engine = make(4);
    std::vector<std::string> streamed(6);
    for (size_t i = 0; i < streamed.size(); ++i) {
        Request request = greedy(prompt_of(4, i), 120);
        request.options.sampling = {
            .temperature = 3, .logit_bias = {}, .seed = 3, .request = i};  // bytes of every kind
        request.on_text = [&streamed, i](std::string_view piece) {
            EXPECT_EQ(io::first_invalid_utf8(piece), std::nullopt);
            streamed[i] += piece;
        };
        engine.submit(std::move(request));
    }
    for (const auto& [id, finished] : run_all(engine)) {
        EXPECT_EQ(streamed[static_cast<size_t>(id)], finished.result.text);
        EXPECT_EQ(finished.result.text, tiny_tokenizer().decode(finished.result.ids, true));
    }
}

TEST_F(EngineTest, CancelFreesTheSlot) {
    Engine engine = make(1);
    const int64_t first = engine.submit(greedy(prompt_of(5, 1), 300)),
                  second = engine.submit(greedy(prompt_of(5, 2), 4)), third = engine.submit(greedy(prompt_of(5, 3), 4));
    for (int i = 0; i < 10; ++i) engine.step();
    engine.cancel(first), engine.cancel(second), engine.cancel(77);
    const auto results = run_all(engine);
    EXPECT_EQ(results.at(first).result.finish_reason, "cancelled");
    EXPECT_EQ(results.at(first).result.ids.size(), 11u);
    EXPECT_EQ(results.at(second).result.ids.size(), 0u) << "it never ran";
    EXPECT_EQ(results.at(third).result.ids.size(), 4u);
    EXPECT_EQ(results.at(third).result.finish_reason, "length");
}

TEST_F(EngineTest, ARequestThatFailsFailsAlone) {
    Engine engine = make(3);
    Request banned = greedy(prompt_of(5, 1), 10);
    for (int32_t id = 0; id < 283; ++id) banned.options.sampling.logit_bias.push_back({id, -INFINITY});
    engine.submit(greedy(prompt_of(9, 1), 40)), engine.submit(banned), engine.submit(greedy(prompt_of(9, 1), 40));
    const auto results = run_all(engine);
    EXPECT_THAT(results.at(1).error, HasSubstr("logit_bias leaves no token"));
    EXPECT_EQ(results.at(1).result.finish_reason, "error");
    EXPECT_EQ(results.at(0).result.ids, results.at(2).result.ids);
    test::expect_greedy(decoder_, mode_, prompt_of(9, 1), results.at(0).result.ids);
}

TEST_F(EngineTest, EndsAtTheModelsLimit) {
    Engine engine = make(2);
    engine.submit(greedy(prompt_of(505, 1), 100)), engine.submit(greedy(prompt_of(511, 1), 100));
    const auto results = run_all(engine);
    EXPECT_EQ(results.at(0).result.ids.size(), 7u);
    EXPECT_EQ(results.at(1).result.ids.size(), 1u);
    EXPECT_EQ(results.at(0).result.finish_reason, "length");
}

TEST_F(EngineTest, Refusals) {
    Engine engine = make(2);
    const auto refused = [&](Request request) {
        return error_of(ErrorKind::Usage, [&] { engine.submit(std::move(request)); });
    };
    EXPECT_THAT(refused(greedy({}, 5)), HasSubstr("no tokens"));
    EXPECT_THAT(refused(greedy(prompt_of(512, 1), 5)), HasSubstr("max_position_embeddings 512"));
    EXPECT_THAT(refused(greedy(prompt_of(5, 1), 0)), HasSubstr("max_new_tokens"));
    EXPECT_THAT(refused(greedy({1, 283}, 5)), HasSubstr("token 283"));
    EXPECT_THAT(refused(greedy({-1}, 5)), HasSubstr("token -1"));
    Request request = greedy({1}, 5);
    request.options.sampling.top_p = 0;
    EXPECT_THAT(refused(request), HasSubstr("top_p"));
    EXPECT_EQ(engine.step(), false) << "nothing of it stayed";
    EXPECT_THROW(make(0), Error);
    EXPECT_THAT(error_of(ErrorKind::Resource, [&] { make(int64_t{1} << 40); }), HasSubstr("fit"));
    EXPECT_THAT(error_of(ErrorKind::Resource,
                         [&] { Engine(decoder_, tiny_tokenizer(), {.mode = {}, .slots = int64_t{1} << 40}); }),
                HasSubstr("fit"));
}

// Keys and values of softmax layers count with all slots as long as the longest request may become, and grow no further.
TEST_F(EngineTest, KeysThatOutgrowTheMemoryAreRefused) {
    const int64_t token = DecodeState(decoder_, AttentionMode::Softmax).key_bytes(1);
    const int64_t fixed = decoder_.num_layers() * static_cast<int64_t>(sizeof(LayerCache));
    const EngineOptions options{
        .mode = {AttentionMode::Softmax}, .slots = 4, .prefill_chunk = 16, .memory = 4 * (fixed + 40 * token)};
    Engine engine(decoder_, tiny_tokenizer(), options);
    EXPECT_THAT(error_of(ErrorKind::Resource, [&] { engine.submit(greedy(prompt_of(5, 1), 76)); }),
                testing::AllOf(HasSubstr("at 81 tokens"), HasSubstr("2 fit")));
    for (int i = 0; i < 4; ++i) engine.submit(greedy(prompt_of(5, 1), 35));
    int64_t most = 0;
    while (engine.step()) most = std::max(most, engine.state_bytes());
    EXPECT_EQ(most, 4 * 40 * token);
    EXPECT_EQ(engine.take_finished().size(), 4u);
}

// Real weights, with maps as conversion makes them, for prompts of these lengths.
void check_on_asset(const char* model, const DecodeVariant& variant, int64_t window,
                    const std::vector<int64_t>& lengths) {
    const auto assets = test::assets_dir();
    if (!assets) GTEST_SKIP() << test::kNoAssets;
    Decoder decoder = Decoder::load(*assets / model);
    const io::Tokenizer tokenizer = io::Tokenizer::load(*assets / model / "tokenizer.json");
    AttentionSpec spec = variant.spec;
    spec.window_size = window;
    decoder.linearize(spec, 1);
    const auto prompt = [&](int64_t length) {
        return test::tiny_ids(1, length, decoder.config().vocab_size, 7).to_vector<int32_t>();
    };
    Engine engine(decoder, tokenizer, {.mode = variant.mode, .slots = 24, .prefill_chunk = 100});
    for (const int64_t length : lengths) engine.submit(greedy(prompt(length), 8));
    const auto results = run_all(engine);
    ASSERT_EQ(results.size(), lengths.size());
    for (const auto& [id, finished] : results)
        test::expect_greedy(decoder, variant.mode, prompt(lengths[static_cast<size_t>(id)]), finished.result.ids);
}

class EngineOnAssets : public testing::TestWithParam<DecodeVariant> {};

TEST_P(EngineOnAssets, Stories260kOneTo300) {
    std::vector<int64_t> lengths(300);
    std::iota(lengths.begin(), lengths.end(), int64_t{1});
    check_on_asset("stories260k", GetParam(), 16, lengths);
}

TEST_P(EngineOnAssets, Teacher28mAtTheBordersOfBlocks) {
    check_on_asset("teacher-28m", GetParam(), 64, {1, 2, 57, 63, 64, 65, 121, 127, 128, 129, 192, 300});
}

INSTANTIATE_TEST_SUITE_P(Variants, EngineOnAssets, testing::ValuesIn(test::decode_variants()),
                         [](const auto& p) { return std::string(p.param.name); });

}  // namespace
}  // namespace lc::models
