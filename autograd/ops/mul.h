// c = a * b
#pragma once
#include "core/tensor.h"

namespace lc {

Tensor mul(const Tensor& a, const Tensor& b);  // one shape and dtype; a and b may be the same tensor

}  // namespace lc
