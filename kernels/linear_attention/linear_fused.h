// The fused form of pure linear attention on the GPU: one kernel a direction (the backward: two) with the state in
// registers, for the case that training is made of. Everything else runs in the chunked form
// (kernels/hybrid_attention/hybrid_chunked.cuh).
//
//   q, k, v, y, dy  bf16, D = 64 or 128, rows that lie dense and 16-byte aligned (views permuted from [B,T,H,D] do)
//   maps            softmax_dim without bias or skip, F = 64, dense, bf16 or f32; a map for each query or KV head
//   state           none handed in; s_out, z_out f32 and dense if wanted, no gradient from them
//   device          enough shared memory for one block (kFusedSharedBytes)
#pragma once
#include "kernels/linear_attention/linear_attention.h"

namespace lc::kernels {

// Can the fused form run on these inputs (y, s_out and z_out included if there)?
bool linear_fused_covers(const LinearAttentionForward& args);
bool linear_fused_covers(const LinearAttentionBackward& args);

void linear_fused_forward(const LinearAttentionForward& args, Stream stream);
void linear_fused_backward(const LinearAttentionBackward& args, Stream stream);

}  // namespace lc::kernels
