// c = a + b
#pragma once
#include "core/tensor.h"

namespace lc {

Tensor add(const Tensor& a, const Tensor& b);  // one shape and dtype

}  // namespace lc
