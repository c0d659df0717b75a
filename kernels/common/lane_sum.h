// Sums over a row. One running sum is a chain of dependent additions that the compiler may not reorder; independent
// lanes vectorize, and round less.
#pragma once
#include <cstdint>

namespace lc::kernels {

// The sum of term(i) for i in [0, n), in a fixed order.
template <class F>
float lane_sum(int64_t n, F&& term) {
    constexpr int64_t kLanes = 32;
    float lane[kLanes] = {};
    int64_t i = 0;
    for (; i + kLanes <= n; i += kLanes)
        for (int64_t l = 0; l < kLanes; ++l) lane[l] += term(i + l);
    float sum = 0;
    for (; i < n; ++i) sum += term(i);
    for (int64_t width = kLanes / 2; width > 0; width /= 2)
        for (int64_t l = 0; l < width; ++l) lane[l] += lane[l + width];
    return sum + lane[0];
}

// The largest of x[0..n), n >= 1; NaN entries are skipped unless x[0] is one.
inline float lane_max(int64_t n, const float* x) {
    constexpr int64_t kLanes = 32;
    float lane[kLanes];
    for (float& l : lane) l = x[0];
    int64_t i = 0;
    for (; i + kLanes <= n; i += kLanes)
        for (int64_t l = 0; l < kLanes; ++l) lane[l] = x[i + l] > lane[l] ? x[i + l] : lane[l];
    float best = x[0];
    for (; i < n; ++i) best = x[i] > best ? x[i] : best;
    for (const float l : lane) best = l > best ? l : best;
    return best;
}

}  // namespace lc::kernels
