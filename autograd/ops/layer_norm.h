// Layer norm (arXiv 1607.06450):  y = (x - mean(x)) / sqrt(var(x) + eps) * weight + bias
// Statistics over the last axis, in f32 (f64 for f64); the variance is the biased one.
#pragma once
#include "core/tensor.h"

namespace lc {

// x [...,D], weight and bias [D] -> y [...,D].
Tensor layer_norm(const Tensor& x, const Tensor& weight, const Tensor& bias, double eps);

}  // namespace lc
