// sqrt of the sum of squares over many tensors, accumulated in f64 tensor by tensor in the given order (so that the bits do not
// depend on threads; on a GPU chunk by chunk, and the host waits for the result). NaN or infinity anywhere gives a non-finite
// result: the one check a training step needs.
#pragma once
#include <span>
#include <vector>

#include "core/device.h"
#include "core/tensor.h"

namespace lc::kernels {

struct GradNorm {
    std::span<const TensorView> tensors;  // any layouts and floating dtypes, one device
};
double grad_norm(const GradNorm& args, Stream stream);

// The norm of each group of tensors; what a group without tensors has is 0.
struct GradNorms {
    std::span<const TensorView> tensors;  // as above
    std::span<const int64_t> groups;      // of each tensor, not falling, in [0, count)
    int64_t count = 0;
};
std::vector<double> grad_norms(const GradNorms& args, Stream stream);
std::vector<double> grad_norms_cuda(const GradNorms& args, Stream stream);

}  // namespace lc::kernels
