// Causal softmax attention with grouped queries.
//
//   s_ij = (q_i . k_j) / sqrt(D)      j <= i + (Tk - T): the queries are the last T of the Tk positions
//                                     with a window also j > i + (Tk - T) - window: that many keys, its own included
//   lse_i = log sum_j exp(s_ij)       p_ij = exp(s_ij - lse_i)      y_i = sum_j p_ij v_j
//
// Backward from what the forward left (y, lse), with delta_i = dy_i . y_i:
//   ds_ij = p_ij (dy_i . v_j - delta_i)
//   dq_i = sum_j ds_ij k_j / sqrt(D)     dk_j = sum_i ds_ij q_i / sqrt(D)     dv_j = sum_i p_ij dy_i
//
// Query head h reads KV head h / (H/H_kv); dk and dv of a KV head are sums over its query heads. SOURCE: online
// softmax, arXiv 1805.02867; the blocked form with a backward from lse, FlashAttention, arXiv 2205.14135 and
// 2307.08691.
//
// On the GPU D is at most 512; beside bf16 tensors lse is f32, and gradients of leaves may be.
#pragma once
#include "core/device.h"
#include "core/tensor.h"
#include "kernels/common/grad_write.h"

namespace lc::kernels {

struct SoftmaxAttentionForward {
    TensorView q;        // [B,H,T,D]       in
    TensorView k, v;     // [B,H_kv,Tk,D]   in, Tk >= T, H a multiple of H_kv
    TensorView y;        // [B,H,T,D]       out
    TensorView lse;      // [B,H,T]         out, or empty when no backward will follow
    int64_t window = 0;  // keys that a query sees, counted back from its own position; 0: all
};
void softmax_attention_forward(const SoftmaxAttentionForward& args, Stream stream);
void softmax_attention_forward_cuda(const SoftmaxAttentionForward& args, Stream stream);
void softmax_attention_forward_mma(const SoftmaxAttentionForward& args,
                                   Stream stream);  // tensor cores: see mma_applies
void softmax_attention_forward_sm90(const SoftmaxAttentionForward& args, Stream stream);  // Hopper: see hopper_applies

struct SoftmaxAttentionBackward {
    SoftmaxAttentionForward forward;  // y and lse hold the forward's results
    TensorView dy;                    // [B,H,T,D]  in
    GradSlot dq, dk, dv;              // out: shapes of q, k, v
};
void softmax_attention_backward(const SoftmaxAttentionBackward& args, Stream stream);
void softmax_attention_backward_cuda(const SoftmaxAttentionBackward& args, Stream stream);
void softmax_attention_backward_mma(const SoftmaxAttentionBackward& args, Stream stream);
void softmax_attention_backward_sm90(const SoftmaxAttentionBackward& args, Stream stream);

}  // namespace lc::kernels
