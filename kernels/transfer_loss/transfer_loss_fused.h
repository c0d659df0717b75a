// Stage 1 in the fused form of hybrid attention (kernels/hybrid_attention/hybrid_fused.h): two kernels, in segments
// where that form is, and three sums.
#pragma once
#include "kernels/transfer_loss/transfer_loss.h"

namespace lc::kernels {

bool transfer_loss_fused_covers(const TransferLoss& args, const HybridAttentionForward& attention);
void transfer_loss_fused(const TransferLoss& args, const HybridAttentionForward& attention, Stream stream);

}  // namespace lc::kernels
