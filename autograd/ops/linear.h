// y = x W^T + b + residual
#pragma once
#include "core/tensor.h"

namespace lc {

// x [...,In], w [Out,In], b [Out] or undefined, residual [...,Out] or undefined -> y [...,Out]. A frozen w costs no dW
// product.
Tensor linear(const Tensor& x, const Tensor& w, const Tensor& b = {}, const Tensor& residual = {});

}  // namespace lc
