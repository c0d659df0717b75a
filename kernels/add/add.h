// c = a + b          da = dc, db = dc
#pragma once
#include "core/device.h"
#include "core/tensor.h"
#include "kernels/common/grad_write.h"

namespace lc::kernels {

struct AddForward {
    TensorView a, b;  // in, any layouts of one shape
    TensorView c;     // out
};
void add_forward(const AddForward& args, Stream stream);
void add_forward_cuda(const AddForward& args, Stream stream);

struct AddBackward {
    TensorView dc;    // in
    GradSlot da, db;  // out
};
void add_backward(const AddBackward& args, Stream stream);
void add_backward_cuda(const AddBackward& args, Stream stream);

}  // namespace lc::kernels
