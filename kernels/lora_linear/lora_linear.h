// Low-rank adapted linear layer (LoRA, arXiv 2106.09685):
//   p = x A^T      y = x W^T + s p B^T + bias
//   q = s dy B     dx = dy W + q A      dW = dy^T x      dA = q^T x      dB = s dy^T p      dbias = sum over rows of dy
//
// On the GPU x, p, y and their gradients may be bf16 beside f32 w, a and b (parameters that train); dW, dA and dB are then f32.
#pragma once
#include "core/device.h"
#include "core/tensor.h"
#include "kernels/common/grad_write.h"

namespace lc::kernels {

struct LoraLinearForward {
    TensorView x;     // [...,In]   in
    TensorView w;     // [Out,In]   in
    TensorView a;     // [R,In]     in
    TensorView b;     // [Out,R]    in
    TensorView bias;  // [Out], or empty   in
    TensorView p;     // [rows,R]   out, contiguous: kept for the backward
    TensorView y;     // [...,Out]  out
    double s = 1;
};
void lora_linear_forward(const LoraLinearForward& args, Stream stream);
void lora_linear_forward_cuda(const LoraLinearForward& args, Stream stream);

struct LoraLinearBackward {
    TensorView x, w, a, b, p;        // as in the forward
    TensorView dy;                   // [...,Out]  in
    GradSlot dx, dw, da, db, dbias;  // out; an empty one costs nothing
    double s = 1;
};
void lora_linear_backward(const LoraLinearBackward& args, Stream stream);
void lora_linear_backward_cuda(const LoraLinearBackward& args, Stream stream);

}  // namespace lc::kernels
