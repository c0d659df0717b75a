// What linearized attention is made of, for kernels. See the formulas in kernels/hybrid_attention/hybrid_attention.h.
#pragma once
#include <cstdint>

#include "kernels/feature_map/feature_map.h"

namespace lc::kernels {

// Which keys a query i sees by softmax (W) and which by the linear branch (R):
//   none      W = {}                                   R = { j <= i }                     pure linear attention
//   terraced  W = { j <= i : block(j) >= block(i)-1 }  R = { j : block(j) <= block(i)-2 }   block(i) = floor(i/w)
//   sliding   W = { j <= i : j > i-w }                 R = { j <= i-w }
enum class WindowKind : uint8_t { none, terraced, sliding };

struct LinearizedSpec {
    WindowKind window = WindowKind::terraced;
    int64_t window_size = 64;   // w
    FeatureActivation activation = FeatureActivation::softmax_dim;
    bool skip = false;          // u = x W + x
    bool affine = false;        // weight of the linear branch: 1 - gamma instead of 1
    bool window_only = false;   // diagnosis: drop the linear branch (lambda = 0)
};

// Denominator guard of pure linear attention; hybrid denominators need none (Z >= gamma).
inline constexpr double kLinearEpsilon = 1e-12;

// Positions [0, end) are in the recurrent state once `length` tokens have been seen; the keys from `end` on are kept.
constexpr int64_t state_end(const LinearizedSpec& spec, int64_t length) {
    const int64_t w = spec.window_size;
    if (spec.window == WindowKind::none) return length;
    if (spec.window == WindowKind::sliding) return length > w ? length - w : 0;
    const int64_t block = length > 0 ? (length - 1) / w : 0;
    return block >= 2 ? (block - 1) * w : 0;
}

}  // namespace lc::kernels
