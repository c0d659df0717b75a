// One token of linearized attention with constant memory. The ring keeps the keys and values a window can still see; the
// state is touched once a block (terraced) or once a token (sliding, none).
//
//   position t: fold what leaves the window into S, z;  put k_t, v_t into slot t mod R;  y = merge(window, state)
//     terraced  R = 2w   when t mod w == 0 and t >= 2w: fold block t/w-2
//     sliding   R = w    when t >= w: fold token t-w
//     none      R = 0    fold token t itself, then attend
// Equal to row t of hybrid_attention / linear_attention over the whole sequence, up to rounding.
//
// S and z may be stored in bf16: sums are f32 all the same, and what a step folds is rounded once. In a terraced window that is once a
// block; sliding and none would round once a token, which loses what is small beside the sum. The y of the step that folds sees the sum
// before or after that.
//
// Every sequence of the batch is at a position of its own, so that sequences can join and leave a running batch. Positions are
// read on the device: what is launched does not depend on them, and a step can be recorded once and replayed.
#pragma once
#include "core/device.h"
#include "kernels/common/attention_spec.h"

namespace lc::kernels {

struct HybridDecode {
    TensorView q;               // [B,H,1,D]      in, after RoPE
    TensorView k, v;            // [B,H_kv,1,D]   in
    TensorView wq, bq, wk, bk;  // feature maps as in autograd/ops/linear_attention.h; biases may be empty
    TensorView mix_logit;       // [H]            in; empty for window none
    TensorView ring_k, ring_v;  // [B,H_kv,R,D]   in/out; empty for window none
    TensorView s, z;            // [B,Hs,F',D], [B,Hs,F']  in/out, f32 (f64 for f64), or both bf16
    TensorView y;               // [B,H,1,D]      out
    TensorView
        positions;  // [B]            in, i64: t of each sequence; below 0: an idle one, whose state and ring stay
                    //                and whose y becomes 0
    LinearizedSpec spec;
};
void hybrid_decode(const HybridDecode& args, Stream stream);
void hybrid_decode_cuda(const HybridDecode& args, Stream stream);  // any layout and size, wide states
// The fast forms, for dense tensors and head dims 64 and 128: on any device, and on Hopper for what models run (see hybrid_decode_args.cuh);
// false, and nothing done, where one does not apply. And the part of them that folds, alike; `early` on Hopper: beside the end of what is
// queued before it.
bool hybrid_decode_packed(const HybridDecode& args, Stream stream);
bool hybrid_decode_sm90(const HybridDecode& args, Stream stream);
bool hybrid_decode_fold_blocks(const HybridDecode& args, bool early, Stream stream);

// The f32 form behind it, for contiguous rows and without checks.
void hybrid_decode_fast(const HybridDecode& args);

}  // namespace lc::kernels
