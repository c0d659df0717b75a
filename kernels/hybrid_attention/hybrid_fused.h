// The fused form of hybrid attention on the GPU: one kernel a direction (the backward: two) with the state in registers, for
// the case that training is made of. Everything else runs in the chunked form (hybrid_chunked.cuh).
//
//   q, k, v, y, dy  bf16, D = 64 or 128, rows that lie dense and 16-byte aligned (views permuted from [B,T,H,D] do)
//   maps            softmax_dim without bias or skip, F = 64, dense, bf16 or f32; a map for each query or KV head
//   window          terraced, w = 64, lambda = 1
//   positions       a whole sequence: Tk = T, first_key = 0, no state handed in; s_out, z_out dense if wanted. The forward also takes the
//                   rest of one, after 64 kept keys or more, with a state before them or not, or after fewer at its very start
//   device          enough shared memory for one block (kFusedSharedBytes)
//
// A thread block walks a sequence and a multiprocessor holds one thread block: where batch entries x query heads would leave
// multiprocessors idle, a sequence is walked in segments (hybrid_fused_segments.cuh).
#pragma once
#include <algorithm>

#include "kernels/hybrid_attention/hybrid_attention.h"

namespace lc::kernels {

// Can the fused form run on these inputs (y, s_out and z_out included if there)?
bool hybrid_fused_covers(const HybridAttentionForward& args);
bool hybrid_fused_forward_covers(const HybridAttentionForward& args);  // what hybrid_fused_forward takes: rests too
bool hybrid_fused_covers(const HybridAttentionBackward& args);
// Into how many segments a sequence of `blocks` blocks of 64 positions is cut, `items` = batch entries x query heads: as many
// as the multiprocessors hold at once, of four blocks at least. Nothing else may decide: two runs have to agree bitwise.
constexpr int64_t hybrid_fused_segments(int64_t items, int64_t blocks, int64_t multiprocessors) {
    constexpr int64_t kLeastBlocks = 4;  // below, what a segment costs beside its walk outweighs what it saves
    return std::max<int64_t>(1, std::min(multiprocessors / items, blocks / kLeastBlocks));
}

void hybrid_fused_forward(const HybridAttentionForward& args, Stream stream);
// Where hopper_applies and the kept keys are whole blocks: its stores cannot begin in the middle of one.
void hybrid_fused_forward_sm90(const HybridAttentionForward& args, Stream stream);
// Of what hybrid_fused_forward_sm90 takes: whole sequences, without state out, of few heads and at most 1024 positions, whose walks would be
// cut: a thread block for four blocks of positions, on all multiprocessors at once.
bool hybrid_short_covers(const HybridAttentionForward& args);
void hybrid_short_forward_sm90(const HybridAttentionForward& args, Stream stream);
void hybrid_fused_backward(const HybridAttentionBackward& args, Stream stream);

}  // namespace lc::kernels
