// out[c] (+)= sum over rows of x[r][c]: bias gradients and the like. Any row stride; f32 accumulation in a fixed order.
#pragma once
#include "kernels/common/cuda/rows.h"

namespace lc::kernels {

void column_sum_cuda(const DeviceRows& x, const GradSlot& out, Stream stream);

}  // namespace lc::kernels
