// Layer norm (arXiv 1607.06450) over the last axis.
//
//   m = mean(x)      r = 1 / sqrt(mean((x - m)^2) + eps)      h = (x - m) r      y = h weight + bias
//
//   g = dy weight    dx = r (g - mean(g) - h mean(g h))       dweight = sum over rows of dy h      dbias = sum over rows of dy
#pragma once
#include "core/device.h"
#include "core/tensor.h"
#include "kernels/common/grad_write.h"

namespace lc::kernels {

struct LayerNormForward {
    TensorView x;             // [...,D]  in
    TensorView weight, bias;  // [D]      in; on the GPU f32 or the dtype of x
    TensorView y;             // [...,D]  out
    TensorView mean, rstd;    // [rows]   out: m and r of each row, for the backward; on the GPU f32 beside bf16
    double eps = 1e-5;
};
void layer_norm_forward(const LayerNormForward& args, Stream stream);
void layer_norm_forward_cuda(const LayerNormForward& args, Stream stream);

struct LayerNormBackward {
    TensorView x, weight, mean, rstd, dy;  // in
    GradSlot dx, dweight, dbias;           // out
};
void layer_norm_backward(const LayerNormBackward& args, Stream stream);
void layer_norm_backward_cuda(const LayerNormBackward& args, Stream stream);

}  // namespace lc::kernels
