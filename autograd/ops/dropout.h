// y = x * keep / (1-p), keep drawn from Philox(seed, stream, element): the mask is recomputed in the backward, not stored.
#pragma once
#include <cstdint>

#include "core/tensor.h"

namespace lc {

// 0 <= p < 1; p = 0 returns x itself. `stream` must differ between uses of one seed (layer, step, ...).
Tensor dropout(const Tensor& x, double p, uint64_t seed, uint64_t stream);

}  // namespace lc
