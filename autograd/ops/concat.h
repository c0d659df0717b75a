// Joins two tensors along one axis.
#pragma once
#include "core/tensor.h"

namespace lc {

// a and b agree in every axis but `axis`. An undefined a gives b.
Tensor concat(const Tensor& a, const Tensor& b, int axis);

}  // namespace lc
