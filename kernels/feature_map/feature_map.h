// Feature maps of linear attention: a learned projection per head and an activation that makes every feature positive.
//
//   u   = x W + b (+ x if skip)                 W [D,F] of the head
//   phi = max(act(u), eps)                      eps = 1e-12
//
//   softmax_dim   [softmax(u), softmax(-u)]     F' = 2F   Hedgehog (arXiv 2402.04347), the default
//   softmax_half   softmax(u)                   F' = F
//   exp_dim       [exp(u - max u), exp(min u - u)]  2F
//   exp_half       exp(u - max u)               F
//   relu           max(u, 0)                    F         T2R (arXiv 2103.13076)
//   pos_elu        1 + u if u > 0 else exp(u)   F
//
// softmax, max and min run over the F entries of one row. Nothing is scaled by 1/sqrt(D).
//
// On the GPU w and b may be f32 beside bf16 x and phi; dw and db are then f32. The tiles of feature_map_tiles.h take w as rounded to bf16,
// forward and backward, as attention does.
#pragma once
#include <string_view>

#include "core/device.h"
#include "core/tensor.h"
#include "kernels/common/grad_write.h"

namespace lc::kernels {

enum class FeatureActivation : uint8_t { softmax_dim, softmax_half, exp_dim, exp_half, relu, pos_elu };

std::string_view name_of(FeatureActivation activation);
// Accepts the names above and "hedgehog" (softmax_dim), "t2r" (relu). Throws Error(Usage) listing the names.
FeatureActivation feature_activation_from(std::string_view name);
constexpr bool is_two_sided(FeatureActivation a) {
    return a == FeatureActivation::softmax_dim || a == FeatureActivation::exp_dim;
}
// F' from F.
constexpr int64_t feature_size(FeatureActivation a, int64_t f) { return is_two_sided(a) ? 2 * f : f; }
// softmax and exp maps do not change when one number is added to all of u.
constexpr bool is_shift_invariant(FeatureActivation a) { return a <= FeatureActivation::exp_half; }

inline constexpr double kFeatureEpsilon = 1e-12;
inline constexpr int64_t kFeatureMapMostColumns = 512;  // D and F on the GPU: a tile of rows lies in shared memory

struct FeatureMapForward {
    TensorView x;    // [B,Hx,T,D]   in: rotated q or k
    TensorView w;    // [H,D,F]      in: H is a multiple of Hx; head h reads x of head h / (H/Hx)
    TensorView b;    // [H,1] or [H,F], or empty   in
    TensorView phi;  // [B,H,T,F']   out
    FeatureActivation activation = FeatureActivation::softmax_dim;
    bool skip = false;  // needs F == D
};
void feature_map_forward(const FeatureMapForward& args, Stream stream);
void feature_map_forward_cuda(const FeatureMapForward& args, Stream stream);

struct FeatureMapBackward {
    FeatureMapForward forward;  // phi holds the forward's result
    TensorView dphi;            // [B,H,T,F']  in
    GradSlot dx, dw, db;        // out: shapes of x, w, b
};
void feature_map_backward(const FeatureMapBackward& args, Stream stream);
void feature_map_backward_cuda(const FeatureMapBackward& args, Stream stream);

}  // namespace lc::kernels
