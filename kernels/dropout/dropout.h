// y_i = x_i / (1-p) where kept, else 0          dx_i = dy_i / (1-p) where kept, else 0
// Element i (row-major) is kept when bits(seed, stream, i) >= p 2^32: the mask is a pure function of its arguments, so
// the backward makes it again.
#pragma once
#include "core/device.h"
#include "core/tensor.h"
#include "kernels/common/grad_write.h"

namespace lc::kernels {

struct DropoutMask {
    double p = 0;  // 0 <= p < 1
    uint64_t seed = 0, stream = 0;
};
struct DropoutForward {
    TensorView x;  // in, any layout
    TensorView y;  // out, same shape
    DropoutMask mask;
};
void dropout_forward(const DropoutForward& args, Stream stream);
void dropout_forward_cuda(const DropoutForward& args, Stream stream);

struct DropoutBackward {
    TensorView dy;  // in
    GradSlot dx;    // out
    DropoutMask mask;
};
void dropout_backward(const DropoutBackward& args, Stream stream);
void dropout_backward_cuda(const DropoutBackward& args, Stream stream);

}  // namespace lc::kernels
