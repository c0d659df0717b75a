// target += source, elementwise; any layouts of one shape. What the tape uses when a tensor has several consumers.
#pragma once
#include "core/device.h"
#include "core/tensor.h"

namespace lc::kernels {

struct Accumulate {
    TensorView source;  // in
    TensorView target;  // in/out, same shape; dtype of source, or on the GPU f32 beside a bf16 source
};
void accumulate(const Accumulate& args, Stream stream);
void accumulate_cuda(const Accumulate& args, Stream stream);

}  // namespace lc::kernels
