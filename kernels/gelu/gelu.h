// GELU in its tanh form (arXiv 1606.08415), alone or as the gate of an MLP:
//
//   gelu(x) = x s,   s = 1 / (1 + exp(-2 p)) = (1 + tanh(p)) / 2,   p = sqrt(2/pi) (x + c x^3),   c = 0.044715
//   gelu'(x) = s + 2 x s (1 - s) p',   p' = sqrt(2/pi) (1 + 3 c x^2)
//
//   y = gelu(x) * up      dx = dy up gelu'(x)      dup = dy gelu(x)          (without up: up = 1)
#pragma once
#include "core/device.h"
#include "core/tensor.h"
#include "kernels/common/grad_write.h"

namespace lc::kernels {

struct GeluForward {
    TensorView x;   // in, any layout
    TensorView up;  // in, shape of x; or empty
    TensorView y;   // out, shape of x
};
void gelu_forward(const GeluForward& args, Stream stream);
void gelu_forward_cuda(const GeluForward& args, Stream stream);

struct GeluBackward {
    TensorView x, up, dy;  // in
    GradSlot dx, dup;      // out; dup only beside up
};
void gelu_backward(const GeluBackward& args, Stream stream);
void gelu_backward_cuda(const GeluBackward& args, Stream stream);

}  // namespace lc::kernels
