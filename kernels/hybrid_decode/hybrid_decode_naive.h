// The oracle: the steps of hybrid_decode.h one after the other, as the formulas of hybrid_attention.h read.
#pragma once
#include <limits>
#include <vector>

#include "kernels/feature_map/feature_map_naive.h"
#include "kernels/hybrid_attention/hybrid_mix.h"
#include "kernels/hybrid_decode/hybrid_decode.h"

namespace lc::kernels {

// phi [F'] of row t of x for head h of the map.
template <class T>
std::vector<T> decode_feature_map_naive(const TensorView& x, const TensorView& w, const TensorView& b,
                                        const LinearizedSpec& spec, int64_t batch, int64_t h, int64_t t) {
    std::vector<T> u(w.size(2)), phi(feature_size(spec.activation, w.size(2)));
    feature_map_project<T>({.x = x, .w = w, .b = b, .phi = {}, .activation = spec.activation, .skip = spec.skip}, batch,
                           h, t, u.data());
    feature_map_row(spec.activation, u.data(), w.size(2), phi.data());
    return phi;
}

// Row t of keys and values joins every state of sequence b.
template <class T>
void decode_fold_naive(const HybridDecode& a, const TensorView& keys, const TensorView& values, int64_t b, int64_t t) {
    const auto s = a.s.as<T, 4>();
    const auto z = a.z.as<T, 3>();
    const auto v = values.as<const T, 4>();
    const int64_t maps_per_head = s.size(1) / v.size(1);
    for (int64_t hs = 0; hs < s.size(1); ++hs) {
        const std::vector<T> phi = decode_feature_map_naive<T>(keys, a.wk, a.bk, a.spec, b, hs, t);
        for (int64_t f = 0; f < s.size(2); ++f) {
            z(b, hs, f) += phi[f];
            for (int64_t x = 0; x < s.size(3); ++x) s(b, hs, f, x) += phi[f] * v(b, hs / maps_per_head, t, x);
        }
    }
}

// y of one query head at a position, from ring and state.
template <class T>
void decode_attend_naive(const HybridDecode& a, int64_t position, int64_t b, int64_t h) {
    const auto q = a.q.as<const T, 4>();
    const auto s = a.s.as<const T, 4>();
    const auto z = a.z.as<const T, 3>();
    const auto y = a.y.as<T, 4>();
    const int64_t d = q.size(3), hk = h / (q.size(1) / a.k.size(1)), hs = h / (q.size(1) / s.size(1));
    const int64_t begin = state_end(a.spec, position + 1), end = position + 1;  // the window: positions [begin, end)
    const HybridMix<T> mix = hybrid_mix<T>(a.mix_logit, a.spec, h);
    const std::vector<T> phi = decode_feature_map_naive<T>(a.q, a.wq, a.bq, a.spec, b, h, 0);
    std::vector<T> n(d), scores;
    T total = a.spec.window == WindowKind::none ? static_cast<T>(kLinearEpsilon) : T{0};
    for (int64_t f = 0; f < s.size(2); ++f) {
        total += mix.lambda * phi[f] * z(b, hs, f);
        for (int64_t x = 0; x < d; ++x) n[x] += mix.lambda * phi[f] * s(b, hs, f, x);
    }
    T max = -std::numeric_limits<T>::infinity();
    for (int64_t p = begin; p < end; ++p) {
        T score = 0;
        for (int64_t x = 0; x < d; ++x)
            score += q(b, h, 0, x) * a.ring_k.as<const T, 4>()(b, hk, p % a.ring_k.size(2), x);
        scores.push_back(score / std::sqrt(static_cast<T>(d)));
        max = std::max(max, scores.back());
    }
    for (int64_t p = begin; p < end; ++p) {
        const T weight = mix.gamma * std::exp(scores[p - begin] - max);
        total += weight;
        for (int64_t x = 0; x < d; ++x) n[x] += weight * a.ring_v.as<const T, 4>()(b, hk, p % a.ring_v.size(2), x);
    }
    for (int64_t x = 0; x < d; ++x) y(b, h, 0, x) = n[x] / total;
}

template <class T>
void hybrid_decode_naive(const HybridDecode& a) {
    for (int64_t b = 0; b < a.q.size(0); ++b) {
        const int64_t position = a.positions.as<const int64_t, 1>()(b);
        if (position < 0) {
            for (int64_t h = 0; h < a.q.size(1); ++h)
                for (int64_t x = 0; x < a.q.size(3); ++x) a.y.as<T, 4>()(b, h, 0, x) = 0;
            continue;
        }
        if (a.spec.window == WindowKind::none) decode_fold_naive<T>(a, a.k, a.v, b, 0);
        for (int64_t p = state_end(a.spec, position); p < state_end(a.spec, position + 1) && a.ring_k; ++p)
            decode_fold_naive<T>(a, a.ring_k, a.ring_v, b, p % a.ring_k.size(2));
        for (int64_t h = 0; h < a.k.size(1) && a.ring_k; ++h)
            for (int64_t x = 0; x < a.k.size(3); ++x) {
                const int64_t slot = position % a.ring_k.size(2);
                a.ring_k.as<T, 4>()(b, h, slot, x) = a.k.as<const T, 4>()(b, h, 0, x);
                a.ring_v.as<T, 4>()(b, h, slot, x) = a.v.as<const T, 4>()(b, h, 0, x);
            }
        for (int64_t h = 0; h < a.q.size(1); ++h) decode_attend_naive<T>(a, position, b, h);
    }
}

}  // namespace lc::kernels
