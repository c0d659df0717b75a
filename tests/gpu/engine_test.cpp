// Continuous batching on a GPU: every request is the full forward's, and its company changes nothing.
#include "tests/gpu/gpu.h"
#include "tests/models/engine_tools.h"

namespace lc::models {
namespace {

using lc::test::kGpu;
using lc::test::kGpuBf16;
using lc::test::kGpuF32;
using lc::test::OnGpu;
using test::decode_variants;
using test::decoder_with_text;
using test::DecodeVariant;
using test::mixed_requests;
using test::prompt_of;
using test::run_all;
using test::tiny_tokenizer;

class EngineOnGpu : public OnGpu {};

Request request(int64_t length, uint64_t seed, int64_t tokens, double temperature) {
    return {.prompt = prompt_of(length, seed),
            .options = {.max_new_tokens = tokens,
                        .sampling = {.temperature = temperature, .logit_bias = {}, .seed = 1, .request = seed}}};
}

TEST_F(EngineOnGpu, GreedyIdsAreThoseOfTheFullForward) {
    for (const DecodeVariant& variant : decode_variants()) {
        SCOPED_TRACE(variant.name);
        const Decoder gpu = decoder_with_text(variant.spec, kGpuF32);
        Engine engine(gpu, tiny_tokenizer(), {.mode = variant.mode, .slots = 5, .prefill_chunk = 20});
        for (int64_t length = 1; length <= 60; length += 3)
            engine.submit(request(length, static_cast<uint64_t>(length), 7, 0));
        const auto results = run_all(engine);
        ASSERT_EQ(results.size(), 20u);
        for (const auto& [id, finished] : results) {
            const int64_t length = 1 + 3 * id;
            EXPECT_EQ(finished.error, "");
            test::expect_greedy(gpu, variant.mode, prompt_of(length, static_cast<uint64_t>(length)),
                                finished.result.ids, 1e-4f);
        }
    }
}

// With penalties and bias, whose tables appear while the others run, and the step is recorded anew.
TEST_F(EngineOnGpu, ResultsDoNotDependOnTheCompany) {
    for (const Placement& placement : {kGpuF32, kGpuBf16})
        for (const DecodeVariant& variant : decode_variants()) {
            SCOPED_TRACE(variant.name);
            const Decoder gpu = decoder_with_text(variant.spec, placement);
            const EngineOptions options{.mode = variant.mode, .slots = 6, .prefill_chunk = 16};
            std::vector<Request> requests = mixed_requests();
            requests[3].options.sampling.logit_bias = {{5, 2.0}, {7, -INFINITY}};
            Engine together(gpu, tiny_tokenizer(), options);
            for (const Request& one : requests) together.submit(one);
            const auto results = run_all(together);
            for (size_t i = 0; i < requests.size(); ++i) {
                Engine alone(gpu, tiny_tokenizer(), options);
                alone.submit(requests[i]);
                EXPECT_EQ(run_all(alone).at(0).result.ids, results.at(static_cast<int64_t>(i)).result.ids) << i;
            }
        }
}

TEST_F(EngineOnGpu, DrawsByTheRulesOfTheHost) {
    const NoGrad no_grad;
    for (const DecodeVariant& variant : decode_variants()) {
        SCOPED_TRACE(variant.name);
        const Decoder gpu = decoder_with_text(variant.spec, kGpuF32);
        Engine engine(gpu, tiny_tokenizer(), {.mode = variant.mode, .slots = 4});
        const std::vector<Request> requests = mixed_requests();
        for (const Request& one : requests) engine.submit(one);
        int64_t differ = 0, drawn = 0;
        for (const auto& [id, finished] : run_all(engine)) {
            const Request& of = requests[static_cast<size_t>(id)];
            const std::vector<int32_t>& ids = finished.result.ids;
            std::vector<int32_t> all = of.prompt;
            all.insert(all.end(), ids.begin(), ids.end());
            const Tensor logits = gpu.logits(Tensor::from(all, {1, std::ssize(all)}), {.mode = variant.mode.mode});
            for (size_t i = 0; i < ids.size(); ++i, ++drawn) {
                const int64_t position = std::ssize(of.prompt) + static_cast<int64_t>(i);
                const auto row = logits.sliced(1, position - 1, 1).to_vector<float>();
                differ += sample(row, {of.prompt, std::span(ids).first(i)}, of.options.sampling, position) != ids[i];
            }
        }
        EXPECT_GT(drawn, 300);
        EXPECT_LE(differ, 3) << "rounding may move a border between two tokens onto a draw, hardly often";
    }
}

// Slots far apart in length, over growths of the memory that softmax layers need; and ends at end-of-text.
TEST_F(EngineOnGpu, LongAndShortTogether) {
    for (const DecodeVariant& variant : decode_variants()) {
        SCOPED_TRACE(variant.name);
        const Decoder gpu = decoder_with_text(variant.spec, kGpuF32);
        Engine engine(gpu, tiny_tokenizer(), {.mode = variant.mode, .slots = 3});
        std::vector<std::vector<int32_t>> prompts;
        for (const int64_t length : {250, 3, 500, 40, 511}) prompts.push_back(prompt_of(length, 9));
        for (const auto& prompt : prompts) engine.submit(test::greedy(prompt, 20));
        const auto results = run_all(engine);
        for (const auto& [id, finished] : results) {
            const auto& prompt = prompts[static_cast<size_t>(id)];
            EXPECT_EQ(std::ssize(finished.result.ids), std::min<int64_t>(20, 512 - std::ssize(prompt)));
            test::expect_greedy(gpu, variant.mode, prompt, finished.result.ids, 1e-4f);
        }
        Request again = test::greedy(prompts[1], 20);
        again.options.eos_ids = {results.at(1).result.ids[6]};
        engine.submit(again);
        const auto& ids = results.at(1).result.ids;
        const auto end = std::find(ids.begin(), ids.end(), ids[6]) + 1;
        EXPECT_EQ(run_all(engine).at(5).result.ids, std::vector<int32_t>(ids.begin(), end));
    }
}

TEST_F(EngineOnGpu, AConversationGoesOnAfterEveryAnswer) {
    for (const DecodeVariant& variant : decode_variants()) {
        SCOPED_TRACE(variant.name);
        const Decoder gpu = decoder_with_text(variant.spec, kGpuF32);
        Conversation talk(gpu, tiny_tokenizer(), variant.mode, 16);
        for (const int64_t length : {5, 1, 30}) {
            const std::vector<int32_t> before = talk.ids();
            std::vector<int32_t> prompt = prompt_of(length, 4);
            const GenerateOptions options{.max_new_tokens = 9, .sampling = {.temperature = 0, .logit_bias = {}}};
            const std::vector<int32_t> ids = talk.reply(prompt, options).ids;
            prompt.insert(prompt.begin(), before.begin(), before.end());
            test::expect_greedy(gpu, variant.mode, prompt, ids, 1e-4f);
            EXPECT_EQ(talk.state().position(), std::ssize(talk.ids()) - 1) << "the last id has not been read";
        }
    }
}

}  // namespace
}  // namespace lc::models
