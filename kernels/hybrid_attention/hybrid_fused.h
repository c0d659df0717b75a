// The fused form of hybrid attention on the GPU: one kernel a direction (the backward: two) with the state in registers, for
// the case that training is made of. Everything else runs in the chunked form (hybrid_chunked.cuh).
//
//   q, k, v, y, dy  bf16, D = 64 or 128, rows that lie dense and 16-byte aligned (views permuted from [B,T,H,D] do)
//   maps            softmax_dim without bias or skip, F = 64, dense, bf16 or f32; a map for each query or KV head
//   window          terraced, w = 64, lambda = 1
//   positions       a whole sequence: Tk = T, first_key = 0, no state handed in; s_out, z_out dense if wanted
//   device          enough shared memory for one block (kFusedSharedBytes)
#pragma once
#include "kernels/hybrid_attention/hybrid_attention.h"

namespace lc::kernels {

// Can the fused form run on these inputs (y, s_out and z_out included if there)?
bool hybrid_fused_covers(const HybridAttentionForward& args);
bool hybrid_fused_covers(const HybridAttentionBackward& args);

void hybrid_fused_forward(const HybridAttentionForward& args, Stream stream);
void hybrid_fused_backward(const HybridAttentionBackward& args, Stream stream);

}  // namespace lc::kernels
