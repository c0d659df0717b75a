// Row lookup; the gradient adds rows up in a fixed order.
#pragma once
#include "core/tensor.h"

namespace lc {

// weight [V,D], ids [B,T] i32 or i64 in [0,V) (checked) -> [B,T,D].
Tensor embedding(const Tensor& weight, const Tensor& ids);

}  // namespace lc
