// Stage 1 in one op: the mean squared error between linearized attention and the teacher's output, with the gradients of
// feature maps and window factors made in the same pass (y is never stored; q, k, v get no gradient).
//
//   loss = factor * mean((attention(q,k,v) - target)^2)        dy = 2 factor (y - target) / numel
#pragma once
#include "autograd/ops/linear_attention.h"

namespace lc {

// q [B,H,T,D], k and v [B,H_kv,T,D], target [B,H,T,D] (the softmax attention's output before o_proj), all constants.
// spec.window none: pure linear attention, mix_logit undefined. -> scalar [].
Tensor transfer_loss(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& target, const FeatureMaps& maps,
                     const Tensor& mix_logit, const kernels::LinearizedSpec& spec, double factor = 1.0);

}  // namespace lc
