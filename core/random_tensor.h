// Tensors of random numbers, made where they lie.
#pragma once
#include "core/rng.h"
#include "core/tensor.h"

namespace lc {

// N(0, deviation^2), element i (row-major) from random.normal(i), rounded to f32 and then to `dtype`: f64 models start from
// the same numbers as f32 ones. dtype f32 or f64, on a GPU also bf16.
Tensor normal_tensor(const Shape& shape, double deviation, const Random& random, DType dtype, Device device = {});

}  // namespace lc
