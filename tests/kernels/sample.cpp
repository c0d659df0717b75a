// The rules of sampling that both its forms share: weights against exp, ranks against scores. What they make together is tested in
// tests/models/sampler_test.cpp, and the GPU's form against the CPU's in tests/gpu/sample_test.cpp.
#include "kernels/sample/sample_rules.h"

#include <gtest/gtest.h>

#include "tests/kernels/sample_problem.h"

namespace lc::kernels {
namespace {

TEST(SampleRules, PowersOfTwoAreExactToSevenDigitsAndNeverFall) {
    uint32_t before = 0;
    for (uint64_t i = 0; i < (uint64_t{1} << 25); i += 61) {
        const auto fraction = static_cast<uint32_t>(i << 7);
        const uint32_t power = sample_exp2(fraction);
        ASSERT_NEAR(power * 0x1p-31, std::exp2(fraction * 0x1p-32), 0x1p-26);
        ASSERT_GE(power, before);
        before = power;
    }
    EXPECT_GE(sample_exp2(0), 0x80000000u);
    EXPECT_GE(sample_exp2(0xffffff80u), before);
}

TEST(SampleRules, WeightsAreExponentials) {
    for (const double temperature : {0.1, 0.7, 1.0, 3.0}) {
        const float sharpness = sample_sharpness(temperature);
        uint64_t before = kSampleOne;
        for (float score = 4; score > -130; score -= 0.037f) {
            const uint64_t weight = sample_weight(score, 4, sharpness);
            const double exact = std::exp((double{score} - 4) / temperature) * static_cast<double>(kSampleOne);
            // The distance is rounded to f32 twice: up to 42 octaves by 2^-24 each; and the weight to an integer.
            ASSERT_NEAR(static_cast<double>(weight), exact, 6e-6 * exact + 1) << score << " at " << temperature;
            ASSERT_LE(weight, before);
            before = weight;
        }
    }
}

TEST(SampleRules, ExtremeWeightsAreDefined) {
    const float cold = sample_sharpness(5e-324), hot = sample_sharpness(1e300);
    EXPECT_EQ(sample_weight(3, 3, cold), kSampleOne);
    EXPECT_EQ(sample_weight(-0.0f, 0.0f, cold), kSampleOne);
    EXPECT_EQ(sample_weight(std::nextafter(3.0f, 0.0f), 3, cold), 0u);
    EXPECT_EQ(sample_weight(-1e38f, 3, hot), kSampleOne);
    EXPECT_EQ(sample_weight(-INFINITY, 3, hot), 0u);
    EXPECT_EQ(sample_weight(-INFINITY, 3, cold), 0u);
    EXPECT_EQ(sample_weight(-INFINITY, 3, 1), 0u);
}

TEST(SampleRules, RanksOrderScores) {
    const std::vector<float> falling = {INFINITY, 3e38f, 2, 1, 1e-45f, 0, -1e-45f, -1, -2, -3e38f, -INFINITY};
    for (size_t i = 1; i < falling.size(); ++i)
        EXPECT_LT(sample_rank(falling[i - 1]), sample_rank(falling[i])) << falling[i];
    EXPECT_EQ(sample_rank(0.0f), sample_rank(-0.0f));
}

TEST(SampleRules, OddProblemsAreAnsweredOrRefused) {
    int drawn = 0, refused = 0, idle = 0;
    for (uint64_t seed = 0; seed < 200; ++seed) {
        const test::SampleProblem p = test::sample_problem(8, 1 + static_cast<int64_t>(seed % 40), DType::f32, seed);
        sample(p.args(), Stream{});
        const auto results = p.results.as<const int32_t, 2>();
        const auto ids = p.ids.as<const int32_t, 1>();
        for (int64_t b = 0; b < 8; ++b) {
            const auto status = static_cast<SampleStatus>(results(b, 1));
            if (status == SampleStatus::idle) {
                ++idle;
                EXPECT_EQ(ids(b), -7);
            } else if (status == SampleStatus::drawn) {
                ++drawn;
                ASSERT_EQ(ids(b), results(b, 0));
                ASSERT_TRUE(ids(b) >= 0 && ids(b) < p.logits.size(1));
                const float logit = p.logits.as<float, 2>()(b, ids(b));
                ASSERT_GT(logit, -INFINITY);
            } else {
                ++refused;
                EXPECT_EQ(ids(b), 0);
            }
        }
    }
    EXPECT_GT(drawn, 1000);
    EXPECT_GT(refused, 50);
    EXPECT_GT(idle, 50);
}

TEST(SampleRules, Refusals) {
    test::SampleProblem p = test::sample_problem(2, 5, DType::f32, 1);
    const auto refused = [](Sample args) { EXPECT_THROW(sample(args, Stream{}), Error); };
    Sample args = p.args();
    args.positions = p.ids.view(), refused(args);
    args = p.args(), args.bias = p.seen.view(), refused(args);
    args = p.args(), args.results = p.ids.view(), refused(args);
    args = p.args(), args.settings = p.settings.sliced(1, 0, 8).view(), refused(args);
    args = p.args(), args.logits = p.logits.permuted({1, 0}).view(), refused(args);
    EXPECT_THROW(sample_row({}, {}, {}, {}, 0), Error);
}

}  // namespace
}  // namespace lc::kernels
