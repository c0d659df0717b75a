// Root-mean-square norm (arXiv 1910.07467), alone or fused with the residual addition before it.
//
//   s = x + residual (or x)      r = 1 / sqrt(mean(s^2) + eps)      y = s r w,  w = offset + weight
//
//   h = s r,  g = dy w           ds = r (g - h mean(g h)) + dsum     dweight = sum over rows of dy h
//   dx = dresidual = ds
#pragma once
#include "core/device.h"
#include "core/tensor.h"
#include "kernels/common/grad_write.h"

namespace lc::kernels {

struct RmsNormForward {
    TensorView x;         // [...,D]  in
    TensorView residual;  // [...,D]  in, or empty
    TensorView weight;    // [D]      in; on the GPU f32 or the dtype of x
    TensorView y;         // [...,D]  out
    TensorView sum;       // [...,D]  out: x + residual; empty without residual
    TensorView rstd;      // [rows]   out: r of each row, for the backward; on the GPU f32 beside bf16
    double eps = 1e-5;
    double offset = 0;  // 1 for models whose files hold w - 1 (Gemma)
};
void rms_norm_forward(const RmsNormForward& args, Stream stream);
void rms_norm_forward_cuda(const RmsNormForward& args, Stream stream);

struct RmsNormBackward {
    TensorView s, weight, rstd;       // in: s is x, or the forward's sum
    TensorView dy;                    // [...,D]  in; empty: zero
    TensorView dsum;                  // [...,D]  in: gradient of sum; empty: zero
    GradSlot dx, dresidual, dweight;  // out
    double offset = 0;
};
void rms_norm_backward(const RmsNormBackward& args, Stream stream);
void rms_norm_backward_cuda(const RmsNormBackward& args, Stream stream);

}  // namespace lc::kernels
