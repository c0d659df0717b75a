#include "core/rng.h"

#include <gtest/gtest.h>

#include <cmath>
#include <set>

namespace lc {
namespace {

using Block = std::array<uint32_t, 4>;

// The known answers that come with Random123 (kat_vectors, philox4x32 10).
TEST(Philox, KnownAnswers) {
    EXPECT_EQ(philox4x32({0, 0, 0, 0}, {0, 0}), (Block{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
    constexpr uint32_t ones = 0xffffffff;
    EXPECT_EQ(philox4x32({ones, ones, ones, ones}, {ones, ones}),
              (Block{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
    EXPECT_EQ(philox4x32({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, {0xa4093822, 0x299f31d0}),
              (Block{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
}

TEST(Random, IsAPureFunctionOfSeedStreamIndex) {
    const Random a(1, 2), same(1, 2);
    std::set<uint32_t> seen;
    for (uint64_t i = 0; i < 100; ++i) {
        EXPECT_EQ(a.bits(i), same.bits(i));
        seen.insert(a.bits(i));
        seen.insert(Random(1, 3).bits(i));
        seen.insert(Random(2, 2).bits(i));
    }
    EXPECT_EQ(seen.size(), 300u);
    EXPECT_NE(a.bits(0), a.bits(uint64_t{1} << 32)) << "the upper half of the index counts";
    EXPECT_NE(Random(uint64_t{1} << 32).bits(0), Random(0).bits(0)) << "the upper half of the seed counts";
}

TEST(Random, UniformAndBelowStayInRange) {
    const Random random(7);
    double sum = 0;
    std::array<int, 5> histogram{};
    for (uint64_t i = 0; i < 20000; ++i) {
        const double u = random.uniform(i);
        ASSERT_GE(u, 0.0);
        ASSERT_LT(u, 1.0);
        sum += u;
        histogram.at(random.below(5, i))++;
    }
    EXPECT_NEAR(sum / 20000, 0.5, 0.01);                              // 5 sigma = 0.0102
    for (const int count : histogram) EXPECT_NEAR(count, 4000, 283);  // 5 sigma
}

TEST(Random, NormalHasTheMomentsOfANormal) {
    const Random random(8);
    double sum = 0, squares = 0, fourth = 0;
    constexpr int n = 40000;
    for (uint64_t i = 0; i < n; ++i) {
        const double x = random.normal(i);
        ASSERT_TRUE(std::isfinite(x));
        sum += x, squares += x * x, fourth += x * x * x * x;
    }
    EXPECT_NEAR(sum / n, 0, 0.025);
    EXPECT_NEAR(squares / n, 1, 0.036);
    EXPECT_NEAR(fourth / n, 3, 0.25);
}

}  // namespace
}  // namespace lc
