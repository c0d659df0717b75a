// c = a b, plain or batched.
#pragma once
#include "core/tensor.h"

namespace lc {

// a [...,M,K], b [...,K,N] with equal leading dimensions (rank 2 to 4) -> [...,M,N].
Tensor matmul(const Tensor& a, const Tensor& b);

}  // namespace lc
