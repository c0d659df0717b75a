// One row of a feature map on the device, forward and backward, by the 32 lanes of a warp: the formulas of feature_map_row.h.
// Shared by the stand-alone op and by the attention kernels. u is a row of pre-activations in global or shared memory; every
// lane must call, with the same arguments. exp is the accurate expf.
//
//   feature_map_row_warp(activation, u, f, put)                     put(i, phi_i), i in [0, F'), each i once
//   feature_map_row_backward_warp(activation, u, f, grad, put)      grad(i) = dL/dphi_i, read up to twice; put(i, du_i), i in [0, F)
//
// The backward makes phi again from u, bit by bit as the forward made it. Lane l owns the entries i with i mod 32 = l of every
// F-wide half, in both functions.
#pragma once
#include "kernels/common/cuda/reduce.cuh"
#include "kernels/feature_map/feature_map.h"

namespace lc::kernels {

// What all entries of a row need: extremes and, for softmax maps, reciprocal sums.
struct FeatureMapRowShape {
    float high = 0, low = 0;         // max u, min u
    float scale_p = 1, scale_n = 1;  // phi = scale * exp(...)
};

__device__ __forceinline__ FeatureMapRowShape feature_map_row_shape(FeatureActivation activation, const float* u,
                                                                    int f) {
    FeatureMapRowShape shape;
    if (!is_shift_invariant(activation)) return shape;
    const int lane = threadIdx.x % kWarp;
    float high = -INFINITY, low = INFINITY;
    for (int i = lane; i < f; i += kWarp) high = fmaxf(high, u[i]), low = fminf(low, u[i]);
    shape.high = warp_max(high), shape.low = -warp_max(-low);
    if (activation == FeatureActivation::softmax_dim || activation == FeatureActivation::softmax_half) {
        float p = 0, n = 0;
        for (int i = lane; i < f; i += kWarp) p += expf(u[i] - shape.high), n += expf(shape.low - u[i]);
        shape.scale_p = 1 / warp_sum(p), shape.scale_n = 1 / warp_sum(n);
    }
    return shape;
}

__device__ __forceinline__ float feature_map_clamp(float value) {
    return fmaxf(value, static_cast<float>(kFeatureEpsilon));
}

// phi_i for i < F: the whole map, or its positive half.
__device__ __forceinline__ float feature_map_positive(FeatureActivation activation, const FeatureMapRowShape& shape,
                                                      float u) {
    if (activation == FeatureActivation::relu) return feature_map_clamp(u);
    if (activation == FeatureActivation::pos_elu) return feature_map_clamp(u > 0 ? 1 + u : expf(u));
    return feature_map_clamp(shape.scale_p * expf(u - shape.high));
}
// phi_{F+i} of two-sided maps.
__device__ __forceinline__ float feature_map_negative(const FeatureMapRowShape& shape, float u) {
    return feature_map_clamp(shape.scale_n * expf(shape.low - u));
}

template <class Put>
__device__ __forceinline__ void feature_map_row_warp(FeatureActivation activation, const float* u, int f, Put&& put) {
    const FeatureMapRowShape shape = feature_map_row_shape(activation, u, f);
    const bool two_sided = is_two_sided(activation);
    for (int i = threadIdx.x % kWarp; i < f; i += kWarp) {
        put(i, feature_map_positive(activation, shape, u[i]));
        if (two_sided) put(f + i, feature_map_negative(shape, u[i]));
    }
}

template <class Grad, class Put>
__device__ __forceinline__ void feature_map_row_backward_warp(FeatureActivation activation, const float* u, int f,
                                                              Grad&& grad, Put&& put) {
    const FeatureMapRowShape shape = feature_map_row_shape(activation, u, f);
    const bool two_sided = is_two_sided(activation);
    const int lane = threadIdx.x % kWarp;
    constexpr float kEpsilon = static_cast<float>(kFeatureEpsilon);
    const auto live = [&](float phi, int i) {
        return phi > kEpsilon ? grad(i) : 0.0f;
    };  // clamped entries get no gradient
    if (!is_shift_invariant(activation)) {
        for (int i = lane; i < f; i += kWarp) {
            const float phi = feature_map_positive(activation, shape, u[i]), g = live(phi, i);
            put(i, u[i] > 0 ? g : activation == FeatureActivation::relu ? 0.0f : g * phi);
        }
        return;
    }
    float dot_p = 0, dot_n = 0, at_high = 0, at_low = 0;  // <phi, g> of each half; how many entries tie for an extreme
    for (int i = lane; i < f; i += kWarp) {
        const float p = feature_map_positive(activation, shape, u[i]);
        dot_p += p * live(p, i);
        at_high += u[i] == shape.high ? 1.0f : 0.0f, at_low += u[i] == shape.low ? 1.0f : 0.0f;
        if (!two_sided) continue;
        const float n = feature_map_negative(shape, u[i]);
        dot_n += n * live(n, f + i);
    }
    dot_p = warp_sum(dot_p), dot_n = warp_sum(dot_n), at_high = warp_sum(at_high), at_low = warp_sum(at_low);
    const bool softmax = activation == FeatureActivation::softmax_dim || activation == FeatureActivation::softmax_half;
    for (int i = lane; i < f; i += kWarp) {
        const float p = feature_map_positive(activation, shape, u[i]);
        float du = p * (live(p, i) - (softmax ? dot_p : 0.0f));
        if (!softmax && u[i] == shape.high) du -= dot_p / at_high;
        if (two_sided) {
            const float n = feature_map_negative(shape, u[i]);
            du -= n * (live(n, f + i) - (softmax ? dot_n : 0.0f));
            if (!softmax && u[i] == shape.low) du += dot_n / at_low;
        }
        put(i, du);
    }
}

}  // namespace lc::kernels
