// Stage 1's walk over the keys on Hopper.
#pragma once
#include "kernels/hybrid_attention/hybrid_fused.cuh"

namespace lc::kernels {

// dwk_parts [items,segments,D,F] from what the walk over the rows left, where hopper_applies to q, k and v of `tensors`. Only for sequences
// of three blocks or more. starts: T, t of the segments.
void transfer_loss_keys_sm90(const FusedInputs& in, const HybridAttentionForward& tensors,
                             const FusedRowResults& results, float* dwk_parts, const float* starts, Stream stream);

}  // namespace lc::kernels
