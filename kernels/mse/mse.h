// loss = mean((y - target)^2), accumulated in f64 in a fixed order
//   dy = 2 (y - target) / n dloss          dtarget = -dy
#pragma once
#include "core/device.h"
#include "core/tensor.h"
#include "kernels/common/grad_write.h"

namespace lc::kernels {

struct MseForward {
    TensorView y, target;  // in, any layouts of one shape with at least one element
    TensorView loss;       // []  out; on the GPU f32 beside bf16
};
void mse_forward(const MseForward& args, Stream stream);
void mse_forward_cuda(const MseForward& args, Stream stream);

struct MseBackward {
    TensorView y, target;  // in
    TensorView dloss;      // []  in
    GradSlot dy, dtarget;  // out
};
void mse_backward(const MseBackward& args, Stream stream);
void mse_backward_cuda(const MseBackward& args, Stream stream);

}  // namespace lc::kernels
