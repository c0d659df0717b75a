// out = a followed by b along one axis          da, db = the parts of dout
#pragma once
#include "core/device.h"
#include "core/tensor.h"
#include "kernels/common/grad_write.h"

namespace lc::kernels {

struct ConcatForward {
    TensorView a, b;  // in, any layouts and dtype; one shape but for `axis`
    TensorView out;   // out
    int axis = 0;     // 0 <= axis < rank
};
void concat_forward(const ConcatForward& args, Stream stream);
void concat_forward_cuda(const ConcatForward& args, Stream stream);

struct ConcatBackward {
    TensorView dout;     // in
    GradSlot da, db;     // out
    int64_t a_size = 0;  // length of a along the axis
    int axis = 0;
};
void concat_backward(const ConcatBackward& args, Stream stream);
void concat_backward_cuda(const ConcatBackward& args, Stream stream);

}  // namespace lc::kernels
