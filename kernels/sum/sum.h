// y = sum of all elements of x, accumulated in f64 in a fixed order          dx = dy everywhere
#pragma once
#include "core/device.h"
#include "core/tensor.h"
#include "kernels/common/grad_write.h"

namespace lc::kernels {

struct SumForward {
    TensorView x;  // in, any shape and layout
    TensorView y;  // []  out; on the GPU f32 beside a bf16 x
};
void sum_forward(const SumForward& args, Stream stream);
void sum_forward_cuda(const SumForward& args, Stream stream);

struct SumBackward {
    TensorView dy;  // []  in
    GradSlot dx;    // out, shape of x
};
void sum_backward(const SumBackward& args, Stream stream);
void sum_backward_cuda(const SumBackward& args, Stream stream);

}  // namespace lc::kernels
