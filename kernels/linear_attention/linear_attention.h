// Pure causal linear attention with learned feature maps applied on the fly.
//
// MATHS, per batch entry and query head h; rows are vectors, S is [F',D], z is [F']
//
//   phi_q,i = phi(q_i; wq_h)           phi_k,j = phi(k_j; wk)             kernels/feature_map/feature_map.h
//   S_i = S0 + sum_{j<=i} phi_k,j^T v_j                                   z_i = z0 + sum_{j<=i} phi_k,j
//   Z_i = phi_q,i . z_i + eps          y_i = phi_q,i S_i / Z_i            eps = 1e-12 (kLinearEpsilon)
//
// There are Hs k-maps and states. Hs = H: each query head maps the keys of its KV head in its own way. Hs = H_kv: the
// state of a KV head serves its H/H_kv query heads.
//
// BACKWARD from dy and the gradients dS_out, dz_out of the state handed on; saved: the inputs and y
//
//   dN_i = dy_i / Z_i                  dZ_i = -dN_i . y_i
//   dphi_q,i = S_i dN_i + z_i dZ_i
//   T_j = dS_out + sum_{i>=j} phi_q,i^T dN_i                              t_j = dz_out + sum_{i>=j} phi_q,i dZ_i
//   dphi_k,j = T_j v_j + t_j           dv_j = T_j^T phi_k,j               dS0 = T_0, dz0 = t_0
//   T, t run over all query heads of a state; dk, dv over all states of a KV head; then back through the maps.
//
// On the GPU q, k, v, y may be bf16; states and their gradients are then f32, maps bf16 or f32.
//
// SOURCE: arXiv 2006.16236 (linear attention), 2402.04347 (feature maps), 2312.06635 (chunked form).
#pragma once
#include "core/device.h"
#include "kernels/common/attention_spec.h"
#include "kernels/common/grad_write.h"

namespace lc::kernels {

struct LinearAttentionForward {
    TensorView q;             // [B,H,T,D]                 in
    TensorView k, v;          // [B,H_kv,T,D]              in
    TensorView wq, bq;        // [H,D,F], [H,1] | [H,F] | empty      in
    TensorView wk, bk;        // [Hs,D,F], [Hs,1] | [Hs,F] | empty   in
    TensorView s_in, z_in;    // [B,Hs,F',D], [B,Hs,F']    in, or empty: nothing came before
    TensorView y;             // [B,H,T,D]                 out
    TensorView s_out, z_out;  // as s_in, z_in             out, or empty
    FeatureActivation activation = FeatureActivation::softmax_dim;
    bool skip = false;
};
void linear_attention_forward(const LinearAttentionForward& args, Stream stream);
void linear_attention_forward_cuda(const LinearAttentionForward& args, Stream stream);

struct LinearAttentionBackward {
    LinearAttentionForward forward;  // y holds the forward's result; s_out and z_out are not used
    TensorView dy;                   // [B,H,T,D]  in
    TensorView ds_out, dz_out;       // as s_out, z_out  in, or empty
    GradSlot dq, dk, dv, dwq, dbq, dwk, dbk, ds_in, dz_in;  // out: shapes of the inputs
};
void linear_attention_backward(const LinearAttentionBackward& args, Stream stream);
void linear_attention_backward_cuda(const LinearAttentionBackward& args, Stream stream);

}  // namespace lc::kernels
