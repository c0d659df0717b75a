// Low-rank adapted linear layers (LoRA, arXiv 2106.09685):  y = x W^T + s * (x A^T) B^T + bias
#pragma once
#include <span>
#include <vector>

#include "core/tensor.h"

namespace lc {

struct LoraProjection {
    Tensor w;          // [Out,In]
    Tensor a, b;       // [R,In], [Out,R]
    double s = 1;      // alpha/R
    Tensor bias = {};  // [Out], or undefined
};

// Layers that read the same x, one to four of them; their Out, R and s may differ. x [...,In] -> y_i [...,Out_i].
//   dB = s dy^T (x A^T)   dA = s (dy B)^T x   dx = sum of dy W + s (dy B) A   (dW only if w wants it)
std::vector<Tensor> lora_linear(const Tensor& x, std::span<const LoraProjection> projections);
Tensor lora_linear(const Tensor& x, const Tensor& w, const Tensor& a, const Tensor& b, double s,
                   const Tensor& bias = {});

}  // namespace lc
