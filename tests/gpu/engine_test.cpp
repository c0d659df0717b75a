// Continuous batching on a GPU: every request is the full forward's, and its company changes nothing.
#include "models/generation/engine.h"

#include "core/allocator.h"
#include "tests/gpu/gpu.h"
#include "tests/models/generation_tools.h"

namespace lc::models {
namespace {

using lc::test::kGpu;
using lc::test::kGpuBf16;
using lc::test::kGpuF32;
using lc::test::OnGpu;
using test::decode_variants;
using test::decoder_with_text;
using test::DecodeVariant;
using test::prompt_of;
using test::tiny_tokenizer;

class EngineOnGpu : public OnGpu {};

Request request(int64_t length, uint64_t seed, int64_t tokens, double temperature) {
    return {.prompt = prompt_of(length, seed),
            .options = {.max_new_tokens = tokens,
                        .sampling = {.temperature = temperature, .logit_bias = {}, .seed = 1, .request = seed}}};
}

std::vector<std::vector<int32_t>> run(Engine& engine, size_t count) {
    std::vector<std::vector<int32_t>> ids(count);
    while (engine.step())
        for (const Finished& finished : engine.take_finished()) {
            EXPECT_EQ(finished.error, "");
            ids[static_cast<size_t>(finished.id)] = finished.result.ids;
        }
    return ids;
}

TEST_F(EngineOnGpu, GreedyIdsAreThoseOfTheFullForward) {
    for (const DecodeVariant& variant : decode_variants()) {
        SCOPED_TRACE(variant.name);
        const Decoder gpu = decoder_with_text(variant.spec, kGpuF32);
        Engine engine(gpu, tiny_tokenizer(), {.mode = variant.mode, .slots = 5, .prefill_chunk = 20});
        for (int64_t length = 1; length <= 60; length += 3)
            engine.submit(request(length, static_cast<uint64_t>(length), 7, 0));
        const auto ids = run(engine, 20);
        for (size_t i = 0; i < ids.size(); ++i) {
            const auto length = 1 + 3 * static_cast<int64_t>(i);
            test::expect_greedy(gpu, variant.mode, prompt_of(length, static_cast<uint64_t>(length)), ids[i], 1e-4f);
        }
    }
}

TEST_F(EngineOnGpu, ResultsDoNotDependOnTheCompany) {
    for (const Placement& placement : {kGpuF32, kGpuBf16})
        for (const DecodeVariant& variant : decode_variants()) {
            SCOPED_TRACE(variant.name);
            const Decoder gpu = decoder_with_text(variant.spec, placement);
            const EngineOptions options{.mode = variant.mode, .slots = 6, .prefill_chunk = 16};
            Engine together(gpu, tiny_tokenizer(), options);
            for (uint64_t i = 0; i < 12; ++i) together.submit(request(1 + static_cast<int64_t>(5 * i % 23), i, 12, 1));
            const auto ids = run(together, 12);
            for (uint64_t i = 0; i < 12; ++i) {
                Engine alone(gpu, tiny_tokenizer(), options);
                alone.submit(request(1 + static_cast<int64_t>(5 * i % 23), i, 12, 1));
                EXPECT_EQ(run(alone, 1)[0], ids[i]) << "request " << i;
            }
        }
}

}  // namespace
}  // namespace lc::models
