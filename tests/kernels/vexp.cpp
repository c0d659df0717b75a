#include "kernels/common/vexp.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

namespace lc::kernels {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

// Distance to the exact value in units of the last place of the f32 result.
double error_in_ulp(float got, double exact) {
    if (exact > std::numeric_limits<float>::max()) return got == kInfinity || exact < 3.4028236e38 ? 0 : INFINITY;
    const float rounded = static_cast<float>(exact);
    const double ulp = std::max(0x1p-149, std::ldexp(1.0, std::ilogb(std::max(rounded, 0x1p-126f)) - 23));
    return std::abs(static_cast<double>(got) - exact) / ulp;
}

TEST(Vexp, WithinTwoUlpOverAllOfF32) {
    double worst = 0;
    float where = 0;
    for (uint64_t bits = 0; bits <= 0xffffffffu; bits += 1013) {  // a prime: hits every exponent and both signs
        const float x = std::bit_cast<float>(static_cast<uint32_t>(bits));
        if (std::isnan(x)) continue;
        const double error = error_in_ulp(exp_approx(x), std::exp(static_cast<double>(x)));
        if (!(error <= worst)) worst = error, where = x;
    }
    EXPECT_LE(worst, 2.0) << "at " << where;
}

TEST(Vexp, WithinTwoUlpOnADenseGrid) {
    double worst = 0;
    float where = 0;
    for (float x = -104.5f; x < 89.5f; x += 1.7e-4f) {
        const double error = error_in_ulp(exp_approx(x), std::exp(static_cast<double>(x)));
        if (!(error <= worst)) worst = error, where = x;
    }
    EXPECT_LE(worst, 2.0) << "at " << where;
}

TEST(Vexp, SpecialValues) {
    EXPECT_EQ(exp_approx(0.0f), 1.0f);
    EXPECT_EQ(exp_approx(-0.0f), 1.0f);
    EXPECT_EQ(exp_approx(kInfinity), kInfinity);
    EXPECT_EQ(exp_approx(-kInfinity), 0.0f);
    EXPECT_EQ(exp_approx(std::numeric_limits<float>::max()), kInfinity);
    EXPECT_EQ(exp_approx(std::numeric_limits<float>::lowest()), 0.0f);
    EXPECT_EQ(exp_approx(89.0f), kInfinity);
    EXPECT_EQ(exp_approx(-110.0f), 0.0f);
    EXPECT_GT(exp_approx(88.72f), 3.3e38f);
    EXPECT_LT(exp_approx(88.72f), kInfinity);
    EXPECT_GT(exp_approx(-103.0f), 0.0f);  // subnormal
    EXPECT_TRUE(std::isnan(exp_approx(std::numeric_limits<float>::quiet_NaN())));
    EXPECT_TRUE(std::isnan(exp_approx(-std::numeric_limits<float>::quiet_NaN())));
}

TEST(Vexp, ArrayFormIsTheScalarFormAtEveryLength) {
    for (int64_t n = 0; n < 40; ++n) {
        std::vector<float> x(n), y(n + 1, -1.0f);
        for (int64_t i = 0; i < n; ++i) x[i] = static_cast<float>(i) * 1.37f - 20.0f;
        exp_array(x.data(), y.data(), n, 1.5f);
        for (int64_t i = 0; i < n; ++i)
            EXPECT_NEAR(y[i], std::exp(x[i] - 1.5f), 3e-7f * std::exp(x[i] - 1.5f)) << n << " " << i;
        EXPECT_EQ(y[n], -1.0f);
    }
}

}  // namespace
}  // namespace lc::kernels
