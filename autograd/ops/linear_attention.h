// Pure linear attention with learned feature maps:
//   S_i = sum_{j<=i} phi_k(k_j)^T v_j    z_i = sum_{j<=i} phi_k(k_j)
//   y_i = phi_q(q_i) S_i / (phi_q(q_i) . z_i + 1e-12)
#pragma once
#include "core/tensor.h"
#include "kernels/common/attention_spec.h"

namespace lc {

// The learned maps of one layer. wq [H,D,F]; wk [H or H_kv, D, F]; biases [H*,1] or [H*,F] or undefined.
// With one k-map a query head, query head h maps the keys of KV head h / (H/H_kv) in its own way and has its own state;
// with one k-map a KV head the state is shared by the group.
struct FeatureMaps {
    Tensor wq, bq, wk, bk;
};

// What the past left behind: s [B,Hs,F',D], z [B,Hs,F'], Hs = number of k-maps, f32 (f64 for f64). Undefined: nothing.
struct LinearState {
    Tensor s, z;
};

struct AttentionResult {
    Tensor y;           // [B,H,T,D], stored as [B,T,H,D]
    LinearState state;  // only if asked for
};

// q [B,H,T,D], k and v [B,H_kv,T,D]. `state` covers everything before row 0. Differentiable in all tensors, state too.
AttentionResult linear_attention(const Tensor& q, const Tensor& k, const Tensor& v, const FeatureMaps& maps,
                                 const kernels::LinearizedSpec& spec, const LinearState& state = {}, bool want_state = false);

}  // namespace lc
