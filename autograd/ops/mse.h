// loss = mean((y - target)^2)
#pragma once
#include "core/tensor.h"

namespace lc {

// y, target: one shape -> scalar []. Accumulates in f64.
Tensor mse(const Tensor& y, const Tensor& target);

}  // namespace lc
