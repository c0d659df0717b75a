// The oracle: loops as the formulas of softmax_attention.h read.
#pragma once
#include <algorithm>
#include <cmath>
#include <vector>

#include "kernels/softmax_attention/softmax_attention.h"

namespace lc::kernels {

// The keys [begin, end) that a query row sees.
struct VisibleKeys {
    int64_t begin, end;
};

// s[j] of query row i for all keys it sees.
template <class T>
VisibleKeys softmax_attention_scores(const SoftmaxAttentionForward& a, int64_t b, int64_t h, int64_t i, T* s) {
    const auto q = a.q.as<const T, 4>(), k = a.k.as<const T, 4>();
    const int64_t group = q.size(1) / k.size(1), end = i + 1 + k.size(2) - q.size(2);
    const int64_t begin = a.window > 0 ? std::max<int64_t>(0, end - a.window) : 0;
    const T scale = 1 / std::sqrt(static_cast<T>(q.size(3)));
    for (int64_t j = begin; j < end; ++j) {
        T dot = 0;
        for (int64_t c = 0; c < q.size(3); ++c) dot += q(b, h, i, c) * k(b, h / group, j, c);
        s[j] = dot * scale;
    }
    return {begin, end};
}

template <class T>
void softmax_attention_forward_naive(const SoftmaxAttentionForward& a) {
    const auto v = a.v.as<const T, 4>();
    const auto y = a.y.as<T, 4>();
    const int64_t group = y.size(1) / v.size(1);
    std::vector<T> p(v.size(2));
    for (int64_t b = 0; b < y.size(0); ++b)
        for (int64_t h = 0; h < y.size(1); ++h)
            for (int64_t i = 0; i < y.size(2); ++i) {
                const auto [begin, end] = softmax_attention_scores(a, b, h, i, p.data());
                const T max = *std::max_element(p.begin() + begin, p.begin() + end);
                T sum = 0;
                for (int64_t j = begin; j < end; ++j) sum += p[j] = std::exp(p[j] - max);
                for (int64_t c = 0; c < y.size(3); ++c) {
                    T value = 0;
                    for (int64_t j = begin; j < end; ++j) value += p[j] * v(b, h / group, j, c);
                    y(b, h, i, c) = value / sum;
                }
                if (a.lse) a.lse.as<T, 3>()(b, h, i) = max + std::log(sum);
            }
}

template <class T>
void softmax_attention_backward_naive(const SoftmaxAttentionBackward& args) {
    const SoftmaxAttentionForward& a = args.forward;
    const auto q = a.q.as<const T, 4>(), k = a.k.as<const T, 4>(), v = a.v.as<const T, 4>();
    const auto y = a.y.as<const T, 4>(), dy = args.dy.as<const T, 4>();
    const auto lse = a.lse.as<const T, 3>();
    const int64_t d = q.size(3), group = q.size(1) / k.size(1);
    const T scale = 1 / std::sqrt(static_cast<T>(d));
    std::vector<T> dq(a.q.numel()), dk(a.k.numel()), dv(a.v.numel()), s(k.size(2));
    for (int64_t b = 0; b < q.size(0); ++b)
        for (int64_t h = 0; h < q.size(1); ++h)
            for (int64_t i = 0; i < q.size(2); ++i) {
                const int64_t hk = h / group;
                const auto [begin, end] = softmax_attention_scores(a, b, h, i, s.data());
                T* dq_row = &dq[((b * q.size(1) + h) * q.size(2) + i) * d];
                T delta = 0;
                for (int64_t c = 0; c < d; ++c) delta += dy(b, h, i, c) * y(b, h, i, c);
                for (int64_t j = begin; j < end; ++j) {
                    const T p = std::exp(s[j] - lse(b, h, i));
                    T dp = 0;
                    for (int64_t c = 0; c < d; ++c) dp += dy(b, h, i, c) * v(b, hk, j, c);
                    const T ds = p * (dp - delta) * scale;
                    const int64_t row = ((b * k.size(1) + hk) * k.size(2) + j) * d;
                    for (int64_t c = 0; c < d; ++c) {
                        dq_row[c] += ds * k(b, hk, j, c);
                        dk[row + c] += ds * q(b, h, i, c);
                        dv[row + c] += p * dy(b, h, i, c);
                    }
                }
            }
    store_gradient(dq, args.dq);
    store_gradient(dk, args.dk);
    store_gradient(dv, args.dv);
}

}  // namespace lc::kernels
