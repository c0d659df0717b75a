// Causal softmax attention with grouped queries:  y_i = sum_{j<=i} softmax_j(q_i . k_j / sqrt(D)) v_j
// Online softmax: no score matrix is stored, only the log-sum-exp of each row for the backward.
#pragma once
#include "core/tensor.h"

namespace lc {

// q [B,H,T,D], k and v [B,H_kv,Tk,D], Tk >= T: the queries are the last T of the Tk positions (a cache lies in front).
// With a window of w > 0 a query sees the last w positions up to its own only.
// H is a multiple of H_kv; query head h reads KV head h / (H/H_kv). -> y [B,H,T,D], stored as [B,T,H,D].
Tensor softmax_attention(const Tensor& q, const Tensor& k, const Tensor& v, int64_t window = 0);

}  // namespace lc
