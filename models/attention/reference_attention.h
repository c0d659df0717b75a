// Linearized attention as the LoLCATs authors' code computes it over a whole sequence, for logits equal to theirs. It differs from
// the terraced window of this project (kernels/common/attention_spec.h) in two ways:
//
//   L > w    blocks of w are counted from the end of the sequence: the first one is short where w does not divide L
//   L <= w   every causal key counts twice, by softmax and linearly
//
// Composed of the ordinary ops, for inference with imported checkpoints; slow for L <= w.
#pragma once
#include "autograd/ops/linear_attention.h"

namespace lc::models {

// q [B,H,L,D], k and v [B,H_kv,L,D]: all of the sequence. mix_logit [H]. Of `spec` the window kind is not looked at. -> [B,H,L,D].
Tensor reference_attention(const Tensor& q, const Tensor& k, const Tensor& v, const FeatureMaps& maps,
                           const Tensor& mix_logit, kernels::LinearizedSpec spec);

}  // namespace lc::models
