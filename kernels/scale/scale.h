// y = factor * x          dx = factor * dy
#pragma once
#include "core/device.h"
#include "core/tensor.h"
#include "kernels/common/grad_write.h"

namespace lc::kernels {

struct ScaleForward {
    TensorView x;  // in, any layout
    TensorView y;  // out, same shape
    double factor = 1;
};
void scale_forward(const ScaleForward& args, Stream stream);
void scale_forward_cuda(const ScaleForward& args, Stream stream);

struct ScaleBackward {
    TensorView dy;  // in
    GradSlot dx;    // out
    double factor = 1;
};
void scale_backward(const ScaleBackward& args, Stream stream);
void scale_backward_cuda(const ScaleBackward& args, Stream stream);

}  // namespace lc::kernels
