// LoLCATs attention: softmax over a window W(i), linear attention over all older keys R(i), mixed by a learned factor.
//
// MATHS, per batch and query head h (KV head h / (H/H_kv)); rows are vectors; sets W, R in
// kernels/common/attention_spec.h
//
//   gamma  = sigmoid(a_h)              lambda = 1, or 1-gamma (affine), or 0 (window_only)
//   s_ij   = q_i . k_j / sqrt(D)       m_i    = max over W(i) of s_ij
//   p_ij   = gamma exp(s_ij - m_i)     l_ij   = lambda phi_q(q_i) . phi_k(k_j)
//   N_i    = sum_W p_ij v_j + sum_R l_ij v_j + lambda phi_q S0
//   Z_i    = sum_W p_ij     + sum_R l_ij     + lambda phi_q . z0          no epsilon: Z_i >= gamma
//   y_i    = N_i / Z_i
//
// The row maximum is part of the model: the linear term is not rescaled by it. With window none there is no window
// branch (lambda = 1) and Z_i gets kLinearEpsilon: pure linear attention, for kernels that serve both.
//
// BACKWARD, exact, from dy and the gradients dS_out, dz_out of the state handed on; saved: the inputs and y
//
//   dN_i = dy_i / Z_i        dZ_i = -(dy_i . y_i) / Z_i        dc_ij = dN_i . v_j + dZ_i   (gradient of a weight)
//   dphi_q,i = lambda (S_i dN_i + z_i dZ_i)                    S_i, z_i: state over R(i)
//   D_i  = sum_W p_ij dc_ij = -phi_q,i . dphi_q,i              all weights together have gradient dN.N + dZ Z = 0
//   ds_ij = p_ij dc_ij - [s_ij = m_i] D_i / ties               the second term goes through the row maximum
//   dq_i += sum_W ds_ij k_j / sqrt(D)     dk_j += sum_i ds_ij q_i / sqrt(D)     dv_j += sum_i p_ij dN_i
//   T_j  = lambda sum_{i: j in R(i)} phi_q,i^T dN_i + dS_out   t_j = lambda sum_{i: j in R(i)} phi_q,i dZ_i + dz_out
//   dphi_k,j = T_j v_j + t_j              dv_j += T_j^T phi_k,j        (dS_out, dz_out: for keys in the state only)
//   dS0  = lambda sum_i phi_q,i^T dN_i + dS_out                dz0 = lambda sum_i phi_q,i dZ_i + dz_out
//   da_h = (1-gamma) sum_i D_i, or sum_i D_i when affine
//   dphi_q, dphi_k go on through the feature maps (kernels/feature_map/feature_map.h).
//
// On the GPU q, k, v, y may be bf16; states and their gradients are then f32, maps and mix_logit bf16 or f32.
//
// SOURCE: Zhang et al., arXiv 2410.10254, Eq. 6-7; the gradient through m_i and the identity for D_i are derived here.
#pragma once
#include <string_view>

#include "core/device.h"
#include "kernels/common/attention_spec.h"

namespace lc::kernels {

struct HybridAttentionForward {
    TensorView q;             // [B,H,T,D]       in, after RoPE: the last T of the Tk positions
    TensorView k, v;          // [B,H_kv,Tk,D]   in: key j stands at absolute position first_key + j
    TensorView wq, bq;        // [H,D,F], [H,1] | [H,F] | empty        in
    TensorView wk, bk;        // [Hs,D,F], [Hs,1] | [Hs,F] | empty     in: Hs = H or H_kv
    TensorView mix_logit;     // [H]             in: a_h; empty for window none
    TensorView s_in, z_in;    // [B,Hs,F',D], [B,Hs,F']  in, or empty: state over all positions before first_key
    TensorView y;             // [B,H,T,D]       out
    TensorView s_out, z_out;  // as s_in, z_in   out, or empty: state over positions before state_end(first_key + Tk)
    int64_t first_key = 0;    // a multiple of w for terraced windows; no window may begin before it
    LinearizedSpec spec;
};
void hybrid_attention_forward(const HybridAttentionForward& args, Stream stream);
void hybrid_attention_forward_cuda(const HybridAttentionForward& args, Stream stream);

struct HybridAttentionBackward {
    HybridAttentionForward forward;  // y holds the forward's result; s_out and z_out are not used
    TensorView dy;                   // [B,H,T,D]  in
    TensorView ds_out, dz_out;       // as s_out, z_out  in, or empty
    GradSlot dq, dk, dv, dwq, dbq, dwk, dbk, dmix_logit, ds_in, dz_in;  // out: shapes of the inputs
};
void hybrid_attention_backward(const HybridAttentionBackward& args, Stream stream);
void hybrid_attention_backward_cuda(const HybridAttentionBackward& args, Stream stream);

// Throws unless shapes and positions fit together; y is looked at only if it is there. `op` begins the message.
void check_hybrid_attention(const HybridAttentionForward& args, std::string_view op);

// The block form in whatever precision the arguments have (the front door runs it in f32 only), without checks. Declared
// for tests: in f64 the quadratic, the block and the recurrent form must agree to rounding.
void hybrid_attention_forward_blocks(const HybridAttentionForward& args);
void hybrid_attention_backward_blocks(const HybridAttentionBackward& args);

}  // namespace lc::kernels
