// What the walks of stage 1 leave in parts, added up (cuda).
#pragma once
#include "kernels/hybrid_attention/hybrid_fused.cuh"
#include "kernels/transfer_loss/transfer_loss.h"

namespace lc::kernels {

struct TransferParts {
    const double *loss, *da;  // [items,segments]: sums of squares; sums of D, or null
    const float *dwq, *dwk;   // [items,segments,D,F], or null
};
// The loss, `factor` times its parts, and the gradients that somebody wants: sums in the order of the parts.
void store_transfer_totals(const TransferParts& parts, const FusedInputs& in, int64_t d, double factor,
                           const TensorView& loss, const HybridMapSlots& out, Stream stream);

}  // namespace lc::kernels
