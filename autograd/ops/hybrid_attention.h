// LoLCATs attention (arXiv 2410.10254): softmax over a small window, linear attention over everything before it, mixed by
// a learned factor per head. Formulas in kernels/hybrid_attention/hybrid_attention.h.
#pragma once
#include "autograd/ops/linear_attention.h"

namespace lc {

struct HybridPast {
    LinearState state;      // over all positions before first_key
    int64_t first_key = 0;  // absolute position of key 0; a multiple of w for terraced windows
};

// q [B,H,T,D]; k and v [B,H_kv,Tk,D], Tk >= T: the queries are the last T positions, the first Tk-T keys were kept from
// the past (see state_end). mix_logit [H]: gamma = sigmoid(mix_logit). spec.window is terraced or sliding.
// If asked, the state handed back covers all positions before state_end(spec, first_key + Tk); keep the keys from there.
// Differentiable in all tensors, through the row maximum and the state. Memory O(T).
AttentionResult hybrid_attention(const Tensor& q, const Tensor& k, const Tensor& v, const FeatureMaps& maps,
                                 const Tensor& mix_logit, const kernels::LinearizedSpec& spec, const HybridPast& past = {},
                                 bool want_state = false);

}  // namespace lc
