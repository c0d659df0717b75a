// Root-mean-square norm (arXiv 1910.07467), alone and fused with the residual addition before it.
//   y = x / sqrt(mean(x^2) + eps) * (offset + weight)          statistics in f32 (f64 for f64)
#pragma once
#include <utility>

#include "core/tensor.h"

namespace lc {

// x [...,D], weight [D] -> y [...,D].
Tensor rms_norm(const Tensor& x, const Tensor& weight, double eps, double offset = 0);

// sum = x + residual;  y = rms_norm(sum). Returns {y, sum}; both may get gradients.
std::pair<Tensor, Tensor> add_rms_norm(const Tensor& x, const Tensor& residual, const Tensor& weight, double eps,
                                       double offset = 0);

}  // namespace lc
