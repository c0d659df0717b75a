// exp for hot f32 loops: straight-line code that the compiler vectorizes (std::exp is a call a number).
//
//   x = k ln2 + r, |r| <= ln2/2        exp(x) = 2^k (1 + r + r^2 P(r))
//
// NUMERICS: within 2 ulp of the exact value over all of f32 (tests/kernels/vexp.cpp), subnormal results included;
// overflow gives +inf, underflow and -inf give 0, NaN stays NaN. ln2 is split so that k*kLn2High is exact: the
// reduction loses nothing even without FMA. P: Cephes' expf (S. L. Moshier), degree 5.
#pragma once
#include <bit>
#include <cstdint>

namespace lc::kernels {

inline float exp_approx(float x) {
    constexpr float kLog2e = 1.44269504088896341f, kLn2High = 0.693359375f, kLn2Low = -2.12194440e-4f;
    constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer that sits in the low bits
    x = x > 89.0f ? 89.0f : x;             // exp(89) is infinite already; a NaN fails both comparisons
    x = x < -105.0f ? -105.0f : x;         // exp(-105) rounds to 0
    const float shifted = x * kLog2e + kRound;
    const float k = shifted - kRound;
    const float r = (x - k * kLn2High) - k * kLn2Low;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    const float mantissa = (p * r) * r + r + 1.0f;
    // 2^k in two factors: 2^128 and 2^-151 are no floats, their halves are. Only the last product rounds.
    const uint32_t power = std::bit_cast<uint32_t>(shifted) - std::bit_cast<uint32_t>(kRound) + 512u;  // k + 512 > 0
    const uint32_t half = power / 2u;
    const float low = std::bit_cast<float>((half - 256u + 127u) << 23);
    const float high = std::bit_cast<float>((power - half - 256u + 127u) << 23);
    return mantissa * low * high;
}

// y[i] = exp(x[i] - shift); x and y may be the same array.
inline void exp_array(const float* x, float* y, int64_t n, float shift = 0) {
    for (int64_t i = 0; i < n; ++i) y[i] = exp_approx(x[i] - shift);
}

}  // namespace lc::kernels
