// y = factor * x
#pragma once
#include "core/tensor.h"

namespace lc {

Tensor scale(const Tensor& x, double factor);

}  // namespace lc
