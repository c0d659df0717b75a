// Low-rank adapted linear layer (LoRA, arXiv 2106.09685):  y = x W^T + s * (x A^T) B^T + bias
#pragma once
#include "core/tensor.h"

namespace lc {

// x [...,In], w [Out,In], a [R,In], b [Out,R], bias [Out] or undefined -> y [...,Out]; s = alpha/R.
//   dB = s dy^T (x A^T)   dA = s (dy B)^T x   dx = dy W + s (dy B) A   (dW only if w wants it)
Tensor lora_linear(const Tensor& x, const Tensor& w, const Tensor& a, const Tensor& b, double s,
                   const Tensor& bias = {});

}  // namespace lc
