// GELU in its tanh form (arXiv 1606.08415), alone and as a gate (arXiv 2002.05202):
//   gelu(x) = x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))) / 2          geglu(gate, up) = gelu(gate) * up
#pragma once
#include "core/tensor.h"

namespace lc {

// x of any shape -> y of that shape. The backward starts from the saved x.
Tensor gelu(const Tensor& x);

// gate, up: one shape -> y of that shape. The backward recomputes gelu from the saved gate and up.
Tensor geglu(const Tensor& gate, const Tensor& up);

}  // namespace lc
