// AdamW (arXiv 1711.05101) over many tensors in one call.
//   m = b1 m + (1-b1) g      v = b2 v + (1-b2) g^2
//   p = p - lr ( (m/(1-b1^t)) / (sqrt(v/(1-b2^t)) + eps) + decay p )
#pragma once
#include <span>

#include "core/device.h"
#include "core/tensor.h"

namespace lc::kernels {

struct AdamwTensor {
    TensorView parameter, grad, m, v;  // one shape, contiguous, f32 (or f64 all)
    double lr = 1e-3, weight_decay = 0;
    double grad_scale = 1;  // the gradient is multiplied by this first (clipping)
};
struct AdamwStep {
    std::span<const AdamwTensor> tensors;
    double beta1 = 0.9, beta2 = 0.999, eps = 1e-8;
    int64_t step = 1;  // t, counted from 1
};
void adamw_step(const AdamwStep& args, Stream stream);
void adamw_step_cuda(const AdamwStep& args, Stream stream);

}  // namespace lc::kernels
