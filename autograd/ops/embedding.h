// Row lookup; the gradient adds rows up in a fixed order.
#pragma once
#include <optional>

#include "core/tensor.h"

namespace lc {

// weight [V,D], ids [B,T] i32 or i64 in [0,V) (checked) -> [B,T,D] of the weight's dtype, or of `dtype`: bf16 activations from an
// f32 table, on a GPU.
Tensor embedding(const Tensor& weight, const Tensor& ids, std::optional<DType> dtype = std::nullopt);

}  // namespace lc
