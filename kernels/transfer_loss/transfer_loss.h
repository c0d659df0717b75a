// Stage 1 of LoLCATs in one kernel: loss of linearized attention against the teacher's output, and its gradients.
//
// MATHS. With y, N, Z, D, S, T as in kernels/hybrid_attention/hybrid_attention.h (window none: pure linear attention):
//
//   loss = factor * mean((y - target)^2)            dy = 2 factor / numel * (y - target)
//
//   Only the feature maps and the mixing logit learn, and dy of a row is known as soon as its y is, so one sweep over the
//   rows makes y, the loss and everything that S, z are needed for; a second one in reverse does the keys:
//
//   sweep 1, per block: C, y, loss, dy, dN, dZ, dphi_q (S is live) -> dW_q += q^T du_q, da += D;   keeps phi_q, dN, dZ
//   sweep 2, reverse:   T, t over the rows of later blocks, dphi_k = T v + t -> dW_k += k^T du_k
//
//   No dq, dk, dv; y and dy exist for one block of rows at a time.
// COST a row and query head: about 2 D (2 F + 1.5 w + 2 F) + 8 F' D FLOPs (terraced), 4 * 4 D bytes.
// NUMERICS: the loss is summed in f64, one sum a (batch, head), added in order; gradients as in hybrid_attention.
// On the GPU q, k, v, target may be bf16; the loss is then f32, maps, logit and gradients bf16 or f32.
// SOURCE: Zhang et al., arXiv 2410.10254, section 3.1; the fusion is derived here.
#pragma once
#include "core/device.h"
#include "kernels/common/attention_spec.h"
#include "kernels/hybrid_attention/hybrid_attention.h"
#include "kernels/hybrid_attention/hybrid_attention_sums.h"

namespace lc::kernels {

struct TransferLoss {
    TensorView q;              // [B,H,T,D]      in
    TensorView k, v;           // [B,H_kv,T,D]   in
    TensorView target;         // [B,H,T,D]      in
    TensorView wq, bq;         // [H,D,F], [H,1] | [H,F] | empty        in
    TensorView wk, bk;         // [Hs,D,F], [Hs,1] | [Hs,F] | empty     in: Hs = H or H_kv
    TensorView mix_logit;      // [H]            in; empty for window none
    TensorView loss;           // []             out
    HybridMapSlots gradients;  // out: d(loss) by the parameters; empty ones are not made
    double factor = 1;
    LinearizedSpec spec;
};
void transfer_loss(const TransferLoss& args, Stream stream);
// `attention`: the attention's share of args.
void transfer_loss_cuda(const TransferLoss& args, const HybridAttentionForward& attention, Stream stream);

// The chain rule behind it: out = dloss * gradient.
struct TransferLossBackward {
    TensorView dloss;     // []  in
    TensorView gradient;  // one gradient that transfer_loss made
    GradSlot out;         // its shape
};
void transfer_loss_backward(const TransferLossBackward& args, Stream stream);
void transfer_loss_backward_cuda(const TransferLossBackward& args, Stream stream);

// The block form in whatever precision the arguments have, without checks. Declared for tests.
void transfer_loss_blocks(const TransferLoss& args);

}  // namespace lc::kernels
