// y = x W^T + b
#pragma once
#include "core/tensor.h"

namespace lc {

// x [...,In], w [Out,In], b [Out] or undefined -> y [...,Out]. A frozen w costs no dW product.
Tensor linear(const Tensor& x, const Tensor& w, const Tensor& b = {});

}  // namespace lc
