// One row of a feature map, forward and backward: the formulas themselves. Shared by the stand-alone op and by the
// attention kernels that apply maps on the fly.
#pragma once
#include <algorithm>
#include <cmath>

#include "kernels/feature_map/feature_map.h"

namespace lc::kernels {

// phi[F'] = max(act(u[F]), eps)
template <class T>
void feature_map_row(FeatureActivation activation, const T* u, int64_t f, T* phi) {
    const T high = *std::max_element(u, u + f), low = *std::min_element(u, u + f);
    const auto exponentials = [&](T* out, T sign, T shift) {  // out = exp(sign*u - shift); returns the sum
        T sum = 0;
        for (int64_t i = 0; i < f; ++i) sum += out[i] = std::exp(sign * u[i] - shift);
        return sum;
    };
    const auto scale = [&](T* out, T factor) {
        for (int64_t i = 0; i < f; ++i) out[i] *= factor;
    };
    switch (activation) {
        case FeatureActivation::softmax_dim: scale(phi + f, 1 / exponentials(phi + f, T{-1}, -low)); [[fallthrough]];
        case FeatureActivation::softmax_half: scale(phi, 1 / exponentials(phi, T{1}, high)); break;
        case FeatureActivation::exp_dim: exponentials(phi + f, T{-1}, -low); [[fallthrough]];
        case FeatureActivation::exp_half: exponentials(phi, T{1}, high); break;
        case FeatureActivation::relu:
            for (int64_t i = 0; i < f; ++i) phi[i] = std::max(u[i], T{0});
            break;
        case FeatureActivation::pos_elu:
            for (int64_t i = 0; i < f; ++i) phi[i] = u[i] > 0 ? 1 + u[i] : std::exp(u[i]);
            break;
    }
    const int64_t size = feature_size(activation, f);
    for (int64_t i = 0; i < size; ++i) phi[i] = std::max(phi[i], static_cast<T>(kFeatureEpsilon));
}

// du[F] from g[F'] = dL/dphi. g is overwritten (clamped entries get no gradient). phi is the forward's result: where the
// clamp was active phi equals eps, and act(u) = eps exactly is the measure-zero case that may go either way.
template <class T>
void feature_map_row_backward(FeatureActivation activation, const T* u, const T* phi, int64_t f, T* g, T* du) {
    const int64_t size = feature_size(activation, f);
    for (int64_t i = 0; i < size; ++i)
        if (phi[i] <= static_cast<T>(kFeatureEpsilon)) g[i] = 0;
    const auto dot = [f](const T* a, const T* b) {
        T sum = 0;
        for (int64_t i = 0; i < f; ++i) sum += a[i] * b[i];
        return sum;
    };
    // Adds `amount` to du at every entry equal to `extreme`, shared evenly among ties.
    const auto share = [&](T extreme, T amount) {
        const auto ties = std::count(u, u + f, extreme);
        for (int64_t i = 0; i < f; ++i)
            if (u[i] == extreme) du[i] += amount / static_cast<T>(ties);
    };
    const T *p = phi, *n = phi + f, *g_p = g, *g_n = g + f;
    switch (activation) {
        case FeatureActivation::softmax_dim: {
            const T mean_p = dot(p, g_p), mean_n = dot(n, g_n);
            for (int64_t i = 0; i < f; ++i) du[i] = p[i] * (g_p[i] - mean_p) - n[i] * (g_n[i] - mean_n);
            break;
        }
        case FeatureActivation::softmax_half: {
            const T mean = dot(p, g_p);
            for (int64_t i = 0; i < f; ++i) du[i] = p[i] * (g_p[i] - mean);
            break;
        }
        case FeatureActivation::exp_dim:
            for (int64_t i = 0; i < f; ++i) du[i] = p[i] * g_p[i] - n[i] * g_n[i];
            share(*std::max_element(u, u + f), -dot(p, g_p));
            share(*std::min_element(u, u + f), dot(n, g_n));
            break;
        case FeatureActivation::exp_half:
            for (int64_t i = 0; i < f; ++i) du[i] = p[i] * g_p[i];
            share(*std::max_element(u, u + f), -dot(p, g_p));
            break;
        case FeatureActivation::relu:
            for (int64_t i = 0; i < f; ++i) du[i] = u[i] > 0 ? g[i] : T{0};
            break;
        case FeatureActivation::pos_elu:
            for (int64_t i = 0; i < f; ++i) du[i] = u[i] > 0 ? g[i] : g[i] * phi[i];
            break;
    }
}

}  // namespace lc::kernels
