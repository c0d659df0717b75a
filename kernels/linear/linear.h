// y = x W^T + b + residual          dx = dy W     dW = dy^T x     db = sum over rows of dy     dresidual = dy
//
// On the GPU x, y, dy and dx may be bf16 beside f32 w and b (parameters that train); dw and db are then f32.
#pragma once
#include "core/device.h"
#include "core/tensor.h"
#include "kernels/common/grad_write.h"

namespace lc::kernels {

struct LinearForward {
    TensorView x;         // [...,In]   in
    TensorView w;         // [Out,In]   in
    TensorView b;         // [Out], or empty   in
    TensorView residual;  // [...,Out], or empty   in
    TensorView y;         // [...,Out]  out
};
void linear_forward(const LinearForward& args, Stream stream);
void linear_forward_cuda(const LinearForward& args, Stream stream);

struct LinearBackward {
    TensorView x;         // as in the forward; read for dw only, and may be empty without it
    TensorView w;         // as in the forward; read for dx only
    TensorView dy;        // [...,Out]  in
    GradSlot dx, dw, db;  // out: shapes of x, w, b
};
void linear_backward(const LinearBackward& args, Stream stream);
void linear_backward_cuda(const LinearBackward& args, Stream stream);

}  // namespace lc::kernels
