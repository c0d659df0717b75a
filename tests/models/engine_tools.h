// Requests and how an engine runs them, for tests of it.
#pragma once
#include <map>

#include "models/generation/engine.h"
#include "tests/models/generation_tools.h"

namespace lc::test {

inline models::Request greedy(std::vector<int32_t> prompt, int64_t tokens) {
    return {.prompt = std::move(prompt), .options = {.max_new_tokens = tokens, .sampling = {.temperature = 0}}};
}

inline std::map<int64_t, models::Finished> run_all(models::Engine& engine) {
    std::map<int64_t, models::Finished> results;
    while (engine.step())
        for (models::Finished& finished : engine.take_finished()) results[finished.id] = std::move(finished);
    EXPECT_EQ(engine.running() + engine.waiting(), 0);
    return results;
}

// Prompts of 1 to `longest` tokens at once; each is continued greedily by fewest + length % spread ids, those of the full forward.
inline void expect_full_forward(models::Engine& engine, const models::Decoder& decoder, models::DecodeMode mode,
                                int64_t longest, int64_t fewest, int64_t spread) {
    const auto prompt = [](int64_t length) { return prompt_of(length, static_cast<uint64_t>(length)); };
    const auto tokens = [&](int64_t length) { return fewest + length % spread; };
    for (int64_t length = 1; length <= longest; ++length) engine.submit(greedy(prompt(length), tokens(length)));
    const auto results = run_all(engine);
    ASSERT_EQ(std::ssize(results), longest);
    for (const auto& [id, finished] : results) {
        const int64_t length = id + 1;
        EXPECT_EQ(finished.error, "");
        ASSERT_EQ(std::ssize(finished.result.ids), tokens(length));
        expect_greedy(decoder, mode, prompt(length), finished.result.ids);
    }
}

// Of every length and kind of sampling.
inline std::vector<models::Request> mixed_requests() {
    std::vector<models::Request> requests;
    for (uint64_t i = 0; i < 21; ++i) {
        models::Request request =
            greedy(prompt_of(1 + static_cast<int64_t>(i * i % 37), i), 5 + static_cast<int64_t>(i * 7 % 30));
        request.options.sampling = {.temperature = i % 3 == 0 ? 0 : 0.5 * static_cast<double>(i % 5 + 1),
                                    .top_k = static_cast<int64_t>(i % 4 * 10),
                                    .top_p = i % 2 ? 0.9 : 1,
                                    .frequency_penalty = i % 7 == 0 ? 0.5 : 0.0,
                                    .logit_bias = {},
                                    .seed = 17,
                                    .request = i};
        requests.push_back(std::move(request));
    }
    return requests;
}

}  // namespace lc::test
