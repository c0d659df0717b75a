// Stage 1 on Hopper: the walk over the rows.
#pragma once
#include "kernels/hybrid_attention/hybrid_fused_backward.cuh"
#include "kernels/transfer_loss/transfer_loss.h"

namespace lc::kernels {

struct TransferRowsArgs {
    FusedRowsArgs rows;  // in, results, dwq_parts, da_parts, starts; without gradients only in and starts
    float slope;         // dy = slope (y - target)
    double* loss_parts;  // [items,segments]: sum of squares
};
// Where hopper_applies to q, k, v and the target.
void transfer_loss_rows_sm90(const TransferRowsArgs& args, const TransferLoss& tensors, bool gradients, Stream stream);

}  // namespace lc::kernels
