// Views on the tape: no data moves, forward or (where the gradient's layout allows) backward.
#pragma once
#include <initializer_list>

#include "core/tensor.h"

namespace lc {

Tensor reshape(const Tensor& x, const Shape& shape);                    // one -1 allowed; copies only if it must
Tensor permute(const Tensor& x, std::initializer_list<int> axes);
Tensor slice(const Tensor& x, int axis, int64_t start, int64_t length);

}  // namespace lc
