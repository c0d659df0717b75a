// Rotary position embedding, "rotate half" (arXiv 2104.09864 in Hugging Face's layout of the pairs):
//   out[i]     = x[i] cos(a_i) - x[i+D/2] sin(a_i)
//   out[i+D/2] = x[i+D/2] cos(a_i) + x[i] sin(a_i)      a_i = position * f_i
// Tables of R/2 < D/2 columns turn the first R numbers of each head in this way (pairs i, i + R/2), the rest pass unchanged.
// The gradient is the rotation by -a.
#pragma once
#include "core/tensor.h"

namespace lc {

// x [B,H,T,D], D even; cos, sin [P,R/2] of positions 0..P-1 in x's dtype; row t is at position `first + t` < P.
// The result keeps x's order of axes in memory, so that [B,T,H,D] storage stays [B,T,H,D] storage.
Tensor rope(const Tensor& x, const Tensor& cos, const Tensor& sin, int64_t first = 0);
// Row t of sequence b is at position `positions[b] + t`; positions [B] in i64 on x's device, below 0 counts as 0.
Tensor rope(const Tensor& x, const Tensor& cos, const Tensor& sin, const Tensor& positions);

}  // namespace lc
