// target += source, elementwise; any layouts of one shape. What the tape uses when a tensor has several consumers.
#pragma once
#include "core/device.h"
#include "core/tensor.h"

namespace lc::kernels {

struct Accumulate {
    TensorView source;  // in, f32 or f64
    TensorView target;  // in/out, same shape and dtype
};
void accumulate(const Accumulate& args, Stream stream);

}  // namespace lc::kernels
