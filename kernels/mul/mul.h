// c = a * b          da = dc * b, db = dc * a
#pragma once
#include "core/device.h"
#include "core/tensor.h"
#include "kernels/common/grad_write.h"

namespace lc::kernels {

struct MulForward {
    TensorView a, b;  // in, any layouts of one shape
    TensorView c;     // out
};
void mul_forward(const MulForward& args, Stream stream);
void mul_forward_cuda(const MulForward& args, Stream stream);

struct MulBackward {
    TensorView a, b, dc;  // in
    GradSlot da, db;      // out
};
void mul_backward(const MulBackward& args, Stream stream);
void mul_backward_cuda(const MulBackward& args, Stream stream);

}  // namespace lc::kernels
