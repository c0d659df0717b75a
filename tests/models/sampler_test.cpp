#include "models/generation/sampler.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <map>

#include "models/generation/stop_strings.h"
#include "tests/models/tiny.h"

namespace lc::models {
namespace {

using Logits = std::vector<float>;
using test::error_of;
using testing::HasSubstr;

// exp of these: 8, 4, 2, 1, 1 of 16.
const Logits kLogits = {std::log(8.0f), std::log(4.0f), std::log(2.0f), 0.0f, 0.0f};

std::map<int32_t, double> frequencies(const SamplingOptions& options, const std::vector<int32_t>& history = {}) {
    std::map<int32_t, double> shares;
    constexpr int64_t draws = 20000;
    for (int64_t i = 0; i < draws; ++i) shares[sample(kLogits, {history, {}}, options, i)] += 1.0 / draws;
    return shares;
}

int32_t after_prompt(const Logits& logits, const std::vector<int32_t>& prompt, const SamplingOptions& options) {
    return sample(logits, {prompt, {}}, options, 0);
}
int32_t after_generated(const Logits& logits, const std::vector<int32_t>& generated, const SamplingOptions& options) {
    return sample(logits, {{}, generated}, options, 0);
}

// A share of n draws lies within four standard deviations of its probability.
void expect_shares(const std::map<int32_t, double>& shares, const std::map<int32_t, double>& wanted) {
    EXPECT_EQ(shares.size(), wanted.size());
    for (const auto& [id, probability] : wanted) {
        const auto found = shares.find(id);
        ASSERT_NE(found, shares.end()) << id;
        EXPECT_NEAR(found->second, probability, 4 * std::sqrt(probability * (1 - probability) / 20000)) << id;
    }
}

TEST(Sampler, GreedyTakesTheLargestAndOfEqualsTheFirst) {
    SamplingOptions greedy{.temperature = 0};
    EXPECT_EQ(sample(kLogits, {}, greedy, 0), 0);
    EXPECT_EQ(sample(Logits{1, 3, 3}, {}, greedy, 0), 1);
    EXPECT_EQ(sample(Logits{-INFINITY, -5}, {}, greedy, 0), 1);
}

TEST(Sampler, DrawsByProbability) {
    expect_shares(frequencies({}), {{0, 0.5}, {1, 0.25}, {2, 0.125}, {3, 0.0625}, {4, 0.0625}});
    // Temperature 2: square roots of the weights.
    const double sum = std::sqrt(8.0) + 2 + std::sqrt(2.0) + 2;
    expect_shares(frequencies({.temperature = 2}),
                  {{0, std::sqrt(8.0) / sum}, {1, 2 / sum}, {2, std::sqrt(2.0) / sum}, {3, 1 / sum}, {4, 1 / sum}});
}

TEST(Sampler, Filters) {
    expect_shares(frequencies({.top_k = 2}), {{0, 8.0 / 12}, {1, 4.0 / 12}});
    EXPECT_EQ(frequencies({.top_k = 1}).size(), 1u);
    EXPECT_EQ(frequencies({.top_k = 4}).size(), 4u) << "of equal ones the lowest ids stay";
    expect_shares(frequencies({.top_p = 0.7}), {{0, 8.0 / 12}, {1, 4.0 / 12}});
    EXPECT_EQ(frequencies({.top_p = 0.01}).size(), 1u) << "one token always stays";
    expect_shares(frequencies({.min_p = 0.2}), {{0, 8.0 / 14}, {1, 4.0 / 14}, {2, 2.0 / 14}});
    // top-p works on what top-k left: 8 of 12 is less than 0.7, so both stay; without top-k 0.7 needs both as well.
    expect_shares(frequencies({.top_k = 3, .top_p = 0.6}), {{0, 8.0 / 12}, {1, 4.0 / 12}});
    // 8 of 14 is 0.571: top-k first makes 0.56 reachable by one token, which alone has only 0.5 of all.
    EXPECT_EQ(frequencies({.top_k = 3, .top_p = 0.56}).size(), 1u);
    EXPECT_EQ(frequencies({.top_p = 0.56}).size(), 2u);
}

TEST(Sampler, RepetitionPenaltyOncePerIdAndByTheSign) {
    const SamplingOptions options{.temperature = 0, .repetition_penalty = 2};
    EXPECT_EQ(after_prompt(Logits{3, 2, -1}, {0}, options), 1);
    EXPECT_EQ(after_prompt(Logits{3, 1.4f, -1}, {0, 0, 0}, options), 0) << "3 / 2 > 1.4";
    EXPECT_EQ(after_prompt(Logits{-1, -1.5f}, {0}, options), 1) << "-1 * 2 < -1.5";
    EXPECT_EQ(after_prompt(Logits{3, 2}, {7, -1}, options), 0) << "ids outside are nobody's";
}

TEST(Sampler, PresenceAndFrequencyCountWhatWasGenerated) {
    const SamplingOptions presence{.temperature = 0, .presence_penalty = 1},
        often{.temperature = 0, .frequency_penalty = 1};
    EXPECT_EQ(after_generated({3, 2.5f}, {0}, presence), 1);
    EXPECT_EQ(after_generated({3, 1.5f}, {0, 0, 0}, presence), 0) << "once, however often it came";
    EXPECT_EQ(after_generated({3, 1.5f}, {0}, often), 0);
    EXPECT_EQ(after_generated({3, 1.5f}, {0, 0}, often), 1);
    EXPECT_EQ(after_prompt({3, 2.9f}, {0, 0, 0}, presence), 0) << "the prompt does not count";
    EXPECT_EQ(after_prompt({3, 2.9f}, {0, 0, 0}, often), 0);
    EXPECT_EQ(after_generated({3, 2.5f}, {1, 1}, {.temperature = 0, .presence_penalty = -1}), 1)
        << "negative: a reward";
    // Repetition first, then the others: 3 / 2 - 1 < 0.6.
    EXPECT_EQ(after_generated({3, 0.6f}, {0}, {.temperature = 0, .repetition_penalty = 2, .presence_penalty = 1}), 1);
    EXPECT_EQ(after_generated({3, 2}, {7, -1}, often), 0) << "ids outside are nobody's";
}

TEST(Sampler, LogitBiasComesFirst) {
    const auto with = [](std::vector<LogitBias> bias) {
        return SamplingOptions{.temperature = 0, .repetition_penalty = 2, .logit_bias = std::move(bias)};
    };
    EXPECT_EQ(after_prompt({3, 2, 1}, {}, with({{2, 2.5}})), 2);
    EXPECT_EQ(after_prompt({3, 2, 1}, {}, with({{0, -INFINITY}})), 1);
    EXPECT_EQ(after_prompt({1, 1.2f}, {0}, with({{0, 1}})), 1)
        << "(1 + 1) / 2 < 1.2: the penalty sees the biased logit";
    EXPECT_EQ(after_prompt({-3, -2}, {}, with({{0, 0.5}, {0, 0.6}})), 0) << "entries for one id add up";
    const SamplingOptions banned{.logit_bias = {{0, -INFINITY}, {1, -INFINITY}}};
    for (int64_t position = 0; position < 50; ++position)
        EXPECT_GE(sample(kLogits, {}, banned, position), 2) << "banned tokens are never drawn";
    EXPECT_THAT(error_of(ErrorKind::Usage, [&] { sample(Logits{1, 2}, {}, banned, 7); }), HasSubstr("position 7"));
}

TEST(Sampler, ExtremesAreDefined) {
    const Logits equal = {2, 5, 5, -INFINITY};
    for (const double tiny : {1e-30, 5e-324}) {
        std::map<int32_t, int> count;
        for (int64_t i = 0; i < 200; ++i) ++count[sample(equal, {}, {.temperature = tiny}, i)];
        EXPECT_EQ(count.size(), 2u) << "only the likeliest";
        EXPECT_GT(std::min(count[1], count[2]), 60);
    }
    std::map<int32_t, int> hot;
    for (int64_t i = 0; i < 300; ++i) ++hot[sample(equal, {}, {.temperature = 1e300}, i)];
    EXPECT_EQ(hot.size(), 3u) << "-infinity stays impossible at any temperature";
    EXPECT_EQ(frequencies({.top_k = 1'000'000'000}).size(), 5u);
    EXPECT_EQ(frequencies({.min_p = 1}).size(), 1u);
    EXPECT_EQ(frequencies({.top_k = 1, .top_p = 1e-9, .min_p = 1}).size(), 1u);
}

TEST(Sampler, ParsesLogitBias) {
    EXPECT_EQ(parse_logit_bias("17=-2.5"), (LogitBias{17, -2.5}));
    EXPECT_EQ(parse_logit_bias("0=-inf"), (LogitBias{0, -INFINITY}));
    for (const char* wrong : {"", "17", "17=", "=1", "x=1", "17=1x", "17 =1", "99999999999=1", "17=1=2"})
        EXPECT_THAT(error_of(ErrorKind::Usage, [&] { parse_logit_bias(wrong); }), HasSubstr("ID=VALUE")) << wrong;
}

TEST(Sampler, IsAFunctionOfSeedRequestAndPosition) {
    const auto ids = [](SamplingOptions options) {
        std::vector<int32_t> result;
        for (int64_t i = 0; i < 64; ++i) result.push_back(sample(kLogits, {}, options, i));
        return result;
    };
    EXPECT_EQ(ids({.seed = 1}), ids({.seed = 1}));
    EXPECT_NE(ids({.seed = 1}), ids({.seed = 2}));
    EXPECT_NE(ids({.seed = 1}), ids({.seed = 1, .request = 1}));
    // Filters that remove nothing change nothing.
    EXPECT_EQ(ids({.seed = 1}), ids({.top_k = 5, .top_p = 0.999999, .min_p = 1e-9, .seed = 1}));
}

TEST(Sampler, Refusals) {
    EXPECT_THAT(error_of(ErrorKind::Usage, [] { validate({.temperature = -1}, 5); }), HasSubstr("temperature"));
    EXPECT_THAT(error_of(ErrorKind::Usage, [] { validate({.temperature = NAN}, 5); }), HasSubstr("temperature"));
    EXPECT_THAT(error_of(ErrorKind::Usage, [] { validate({.top_k = -1}, 5); }), HasSubstr("top_k"));
    EXPECT_THAT(error_of(ErrorKind::Usage, [] { validate({.top_p = 0}, 5); }), HasSubstr("top_p"));
    EXPECT_THAT(error_of(ErrorKind::Usage, [] { validate({.min_p = 2}, 5); }), HasSubstr("min_p"));
    EXPECT_THAT(error_of(ErrorKind::Usage, [] { validate({.repetition_penalty = 0}, 5); }),
                HasSubstr("repetition_penalty"));
    EXPECT_THAT(error_of(ErrorKind::Usage, [] { validate({.presence_penalty = INFINITY}, 5); }), HasSubstr("presence"));
    EXPECT_THAT(error_of(ErrorKind::Usage, [] { validate({.frequency_penalty = NAN}, 5); }), HasSubstr("frequency"));
    EXPECT_THAT(error_of(ErrorKind::Usage, [] { validate({.logit_bias = {{5, 1}}}, 5); }), HasSubstr("token 5"));
    EXPECT_THAT(error_of(ErrorKind::Usage, [] { validate({.logit_bias = {{-1, 1}}}, 5); }), HasSubstr("token -1"));
    EXPECT_THAT(error_of(ErrorKind::Usage, [] { validate({.logit_bias = {{1, INFINITY}}}, 5); }), HasSubstr("inf"));
    EXPECT_THAT(error_of(ErrorKind::Numerics, [] { sample(Logits{1, NAN}, {}, {}, 9); }), HasSubstr("position 9"));
    EXPECT_THAT(error_of(ErrorKind::Numerics, [] { sample(Logits{1, INFINITY}, {}, {}, 9); }), HasSubstr("infinite"));
    EXPECT_THROW(sample(Logits{-INFINITY, -INFINITY}, {}, {}, 0), Error);
}

// Feeds the text in pieces of every size; what is shown must not depend on it.
std::string shown(const std::vector<std::string>& stops, const std::string& text, bool* found = nullptr) {
    std::string first;
    for (size_t piece = 1; piece <= text.size(); ++piece) {
        StopStrings filter(stops);
        std::string result;
        for (size_t i = 0; i < text.size(); i += piece) result += filter.push(std::string_view(text).substr(i, piece));
        result += filter.finish();
        if (piece == 1) first = result;
        EXPECT_EQ(result, first) << "in pieces of " << piece;
        if (found) *found = filter.found();
    }
    return first;
}

TEST(StopStrings, EndTheTextWhereverPiecesEnd) {
    bool found = false;
    EXPECT_EQ(shown({"END"}, "the ENDing", &found), "the ");
    EXPECT_TRUE(found);
    EXPECT_EQ(shown({"END"}, "EN EEN ENE", &found), "EN EEN ENE");
    EXPECT_FALSE(found);
    EXPECT_EQ(shown({"\n\n", "###"}, "a\nb##\n##c###d\n\n"), "a\nb##\n##c");
    EXPECT_EQ(shown({"aab"}, "aaab"), "a") << "a partial match may start within another";
    EXPECT_EQ(shown({"xyz!", "y"}, "wxyz!"), "wx") << "the one that is complete first";
    EXPECT_EQ(shown({"y", "xy", "z"}, "wxyz"), "w");
    EXPECT_EQ(shown({}, "all of it"), "all of it");
    EXPECT_EQ(shown({"\xc3\xa9"}, "caf\xc3\xa8 caf\xc3\xa9!"), "caf\xc3\xa8 caf");
}

TEST(StopStrings, HoldBackNoMoreThanNeeded) {
    StopStrings filter({"stop"});
    EXPECT_EQ(filter.push("do not s"), "do not ");
    EXPECT_EQ(filter.push("t"), "");
    EXPECT_EQ(filter.push("art"), "start");
    EXPECT_EQ(filter.push(" st"), " ");
    EXPECT_EQ(filter.finish(), "st");
    EXPECT_THAT(error_of(ErrorKind::Usage, [] { StopStrings({""}); }), HasSubstr("empty"));
    EXPECT_THAT(error_of(ErrorKind::Usage, [] { StopStrings({"\xff"}); }), HasSubstr("UTF-8"));
}

}  // namespace
}  // namespace lc::models
