// sqrt of the sum of squares over many tensors, accumulated in f64 tensor by tensor in the given order (so that the bits do
// not depend on threads; on a GPU block by block, and the host waits for the result). NaN or infinity anywhere gives a non-finite result: the one check a training step needs.
#pragma once
#include <span>

#include "core/device.h"
#include "core/tensor.h"

namespace lc::kernels {

struct GradNorm {
    std::span<const TensorView> tensors;  // any layouts and floating dtypes, one device
};
double grad_norm(const GradNorm& args, Stream stream);
double grad_norm_cuda(const GradNorm& args, Stream stream);

}  // namespace lc::kernels
