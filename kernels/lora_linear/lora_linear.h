// Low-rank adapted linear layers of one input (LoRA, arXiv 2106.09685); for each projection i:
//   p_i = x A_i^T            y_i = x W_i^T + s_i p_i B_i^T + bias_i
//   q_i = s_i dy_i B_i       dx = sum_i (dy_i W_i + q_i A_i)
//   dW_i = dy_i^T x          dA_i = q_i^T x              dB_i = s_i dy_i^T p_i
//   dbias_i = sum over rows of dy_i
//
// Layers that read the same x (query, key and value) are one call: x is read once for all of them, and dx is one sum.
//
// On the GPU x, p, y and their gradients may be bf16 beside f32 w, a, b and bias (parameters that train); their gradients are then f32.
#pragma once
#include <vector>

#include "core/device.h"
#include "core/tensor.h"
#include "kernels/common/grad_write.h"

namespace lc::kernels {

// p and q hold their p_i side by side. Each starts at a multiple of eight columns, so that its rows start on 16 bytes.
constexpr int64_t lora_columns(int64_t rank) {
    return (rank + 7) / 8 * 8;
}

struct LoraLinearForward {
    struct Projection {
        TensorView w;     // [Out,In]   in
        TensorView a;     // [R,In]     in
        TensorView b;     // [Out,R]    in
        TensorView bias;  // [Out], or empty   in
        TensorView y;     // [...,Out]  out
        double s = 1;
    };
    TensorView x;                         // [...,In]  in
    std::vector<Projection> projections;  // 1 to kMostAdapted
    TensorView p;  // [rows, sum of lora_columns(R)]  out, contiguous, 0 between: kept for the backward
};
inline constexpr size_t kMostAdapted = 4;
void lora_linear_forward(const LoraLinearForward& args, Stream stream);
void lora_linear_forward_cuda(const LoraLinearForward& args, Stream stream);

struct LoraLinearBackward {
    struct Projection {
        TensorView w, a, b;          // as in the forward
        TensorView dy;               // [...,Out]  in
        GradSlot dw, da, db, dbias;  // out; an empty one costs nothing
        double s = 1;
    };
    TensorView x, p;  // as in the forward
    std::vector<Projection> projections;
    GradSlot dx;  // out
};
void lora_linear_backward(const LoraLinearBackward& args, Stream stream);
void lora_linear_backward_cuda(const LoraLinearBackward& args, Stream stream);

}  // namespace lc::kernels
