// Reductions and exponentials over one contiguous row. Sixteen running values, combined in a fixed tree at the end:
// IEEE arithmetic may not be reassociated, so this is what lets the compiler use vectors, and it rounds better than one
// chain.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <type_traits>

#include "kernels/common/vexp.h"

namespace lc::kernels {

inline constexpr int64_t kRowLanes = 16;

// join(lanes of start) over the row: step(lane, i) gives the lane's new value after element i.
template <class T, class Step, class Join>
T row_reduce(int64_t n, T start, Step step, Join join) {
    T lanes[kRowLanes];
    std::fill_n(lanes, kRowLanes, start);
    int64_t i = 0;
    for (; i + kRowLanes <= n; i += kRowLanes)
        for (int64_t l = 0; l < kRowLanes; ++l) lanes[l] = step(lanes[l], i + l);
    for (int64_t l = 0; i + l < n; ++l) lanes[l] = step(lanes[l], i + l);
    for (int64_t half = kRowLanes / 2; half > 0; half /= 2)
        for (int64_t l = 0; l < half; ++l) lanes[l] = join(lanes[l], lanes[l + half]);
    return lanes[0];
}

// n >= 1
template <class T>
T row_max(const T* x, int64_t n) {
    const auto larger = [](T a, T b) { return a > b ? a : b; };
    return row_reduce<T>(
        n, x[0], [&](T lane, int64_t i) { return larger(lane, x[i]); }, larger);
}

template <class T>
T row_min(const T* x, int64_t n) {
    const auto smaller = [](T a, T b) { return a < b ? a : b; };
    return row_reduce<T>(
        n, x[0], [&](T lane, int64_t i) { return smaller(lane, x[i]); }, smaller);
}

template <class T>
T row_sum(const T* x, int64_t n) {
    return row_reduce<T>(
        n, T{0}, [&](T lane, int64_t i) { return lane + x[i]; }, [](T a, T b) { return a + b; });
}

template <class T>
T row_dot(const T* a, const T* b, int64_t n) {
    return row_reduce<T>(
        n, T{0}, [&](T lane, int64_t i) { return lane + a[i] * b[i]; }, [](T x, T y) { return x + y; });
}

// x *= factor
template <class T>
void row_scale(T* x, int64_t n, T factor) {
    for (int64_t i = 0; i < n; ++i) x[i] *= factor;
}

// y += factor * x
template <class T>
void row_axpy(const T* x, T* y, int64_t n, T factor) {
    for (int64_t i = 0; i < n; ++i) y[i] += factor * x[i];
}

// exp as fast forms use it: the vectorizable one in f32, the library's in f64.
template <class T>
T fast_exp(T x) {
    if constexpr (std::is_same_v<T, float>)
        return exp_approx(x);
    else
        return std::exp(x);
}

// y = exp(sign * x - shift); returns the sum. x and y may be the same array.
template <class T>
T row_exp_sum(const T* x, T* y, int64_t n, T sign, T shift) {
    for (int64_t i = 0; i < n; ++i) y[i] = fast_exp(sign * x[i] - shift);
    return row_sum(y, n);
}

}  // namespace lc::kernels
