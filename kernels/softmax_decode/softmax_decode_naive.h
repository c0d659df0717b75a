// The oracle: the steps of softmax_decode.h as they read.
#pragma once
#include <algorithm>
#include <cmath>
#include <vector>

#include "kernels/softmax_decode/softmax_decode.h"

namespace lc::kernels {

template <class T>
void softmax_decode_append_naive(const SoftmaxDecode& a, int64_t b, int64_t position) {
    for (int64_t h = 0; h < a.k.size(1); ++h)
        for (int64_t x = 0; x < a.k.size(3); ++x) {
            a.keys.as<T, 4>()(b, h, position, x) = a.k.as<const T, 4>()(b, h, 0, x);
            a.values.as<T, 4>()(b, h, position, x) = a.v.as<const T, 4>()(b, h, 0, x);
        }
}

template <class T>
void softmax_decode_naive(const SoftmaxDecode& a) {
    const auto q = a.q.as<const T, 4>(), keys = a.keys.as<const T, 4>(), values = a.values.as<const T, 4>();
    const auto y = a.y.as<T, 4>();
    const int64_t group = q.size(1) / keys.size(1), d = q.size(3);
    for (int64_t b = 0; b < q.size(0); ++b) {
        const int64_t position = a.positions.as<const int64_t, 1>()(b);
        if (position >= 0) softmax_decode_append_naive<T>(a, b, position);
        for (int64_t h = 0; h < q.size(1); ++h) {
            std::vector<T> p(static_cast<size_t>(position + 1)), n(static_cast<size_t>(d));
            const int64_t first = SoftmaxDecode::first_seen(position, a.window);
            for (int64_t j = first; j <= position; ++j) {
                for (int64_t x = 0; x < d; ++x) p[j] += q(b, h, 0, x) * keys(b, h / group, j, x);
                p[j] /= std::sqrt(static_cast<T>(d));
            }
            const T max = p.empty() ? T{0} : *std::max_element(p.begin() + first, p.end());
            T sum = 0;
            for (int64_t j = first; j <= position; ++j) {
                sum += p[j] = std::exp(p[j] - max);
                for (int64_t x = 0; x < d; ++x) n[x] += p[j] * values(b, h / group, j, x);
            }
            for (int64_t x = 0; x < d; ++x) y(b, h, 0, x) = position >= 0 ? n[x] / sum : T{0};
        }
    }
}

}  // namespace lc::kernels
