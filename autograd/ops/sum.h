// The sum of all elements, accumulated in f64 in a fixed order.
#pragma once
#include "core/tensor.h"

namespace lc {

Tensor sum(const Tensor& x);  // -> scalar []

}  // namespace lc
