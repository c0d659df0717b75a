// Gated activation of the Llama MLP (arXiv 2002.05202):  y = silu(gate) * up,  silu(x) = x / (1 + exp(-x))
#pragma once
#include "core/tensor.h"

namespace lc {

// gate, up: one shape -> y of that shape. The backward recomputes silu from the saved gate and up.
Tensor swiglu(const Tensor& gate, const Tensor& up);

}  // namespace lc
