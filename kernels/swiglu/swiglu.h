// y = silu(g) * u,  silu(g) = g s,  s = 1 / (1 + exp(-g))
//   dg = dy u s (1 + g (1 - s))          du = dy silu(g)
#pragma once
#include "core/device.h"
#include "core/tensor.h"
#include "kernels/common/grad_write.h"

namespace lc::kernels {

struct SwigluForward {
    TensorView gate, up;  // in, any layouts of one shape
    TensorView y;         // out
};
void swiglu_forward(const SwigluForward& args, Stream stream);
void swiglu_forward_cuda(const SwigluForward& args, Stream stream);

struct SwigluBackward {
    TensorView gate, up, dy;  // in
    GradSlot dgate, dup;      // out
};
void swiglu_backward(const SwigluBackward& args, Stream stream);
void swiglu_backward_cuda(const SwigluBackward& args, Stream stream);

}  // namespace lc::kernels
