// One token of softmax attention for every sequence of a batch, over all keys and values that it has seen.
//
//   position t: put k_t, v_t into row t of keys and values;  y = sum_j p_j v_j,  p = softmax_j((q . k_j) / sqrt(D)),  j <= t, t - window < j
//
// Equal to row t of softmax_attention over the whole sequence, up to rounding. Every sequence is at a position of its own, which is
// read on the device: what is launched depends on the capacity C alone, so that a step can be recorded once and replayed until the
// memory grows. Bits depend on neither C nor the rest of the batch.
#pragma once
#include "core/device.h"
#include "core/tensor.h"

namespace lc::kernels {

struct SoftmaxDecode {
    TensorView q;             // [B,H,1,D]      in, after RoPE
    TensorView k, v;          // [B,H_kv,1,D]   in, H a multiple of H_kv
    TensorView keys, values;  // [B,H_kv,C,D]   in/out
    TensorView y;             // [B,H,1,D]      out
    TensorView
        positions;  // [B]            in, i64, dense: t of each sequence, below C; below 0: an idle one, whose memory stays
                    //                and whose y becomes 0
    int64_t window = 0;  // of keys seen, the last ones, the own included; 0: all

    // First key that position t sees.
    static constexpr int64_t first_seen(int64_t t, int64_t window) {
        return window > 0 && t >= window ? t + 1 - window : 0;
    }
};
void softmax_decode(const SoftmaxDecode& args, Stream stream);
void softmax_decode_cuda(const SoftmaxDecode& args, Stream stream);
// The fast form behind it, for dense rows of 64 or 128 numbers and up to 8 query heads a KV head; false, and nothing done, where it
// does not apply.
bool softmax_decode_packed(const SoftmaxDecode& args, Stream stream);

}  // namespace lc::kernels
