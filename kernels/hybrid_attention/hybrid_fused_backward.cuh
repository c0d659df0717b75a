// The two walks of the fused backward.
#pragma once
#include <initializer_list>

#include "kernels/hybrid_attention/hybrid_fused_sums.cuh"

namespace lc::kernels {

// Over the rows, in order of the blocks: dq and what the rows' maps and gamma get; leaves `results`.
struct FusedRowsArgs {
    FusedInputs in;
    AlignedHeads y, dy;
    FusedRowResults results;
    PairRows dq;
    float* dwq_parts;     // [items,segments,D,F], or null
    double* da_parts;     // [items,segments]: sum of D
    const float* starts;  // S, z of the segments
};
void fused_backward_rows(const FusedRowsArgs& args, int64_t d, Stream stream);
// The same on Hopper, where the copy engine reaches q, k, v, y and dy of `tensors`, and dq, if wanted, takes 16 bytes at a time: bf16, not on
// top of what is there.
bool fused_rows_sm90_applies(const HybridAttentionBackward& tensors);
void fused_backward_rows_sm90(const FusedRowsArgs& args, const HybridAttentionBackward& tensors, Stream stream);

// Over the keys, last block first. dk, dv: of the KV head, or [B,key_heads,blocks * 64,D].
struct FusedKeysArgs {
    FusedInputs in;
    FusedRowResults results;
    PairRows dk, dv;
    int key_heads;        // of dk and dv: H_kv, or H over heads_together
    int heads_together;   // more than one on Hopper only
    float* dwk_parts;     // [items,segments,D,F], or null
    const float* starts;  // T, t of the segments
};
void fused_backward_keys(const FusedKeysArgs& args, int64_t d, Stream stream);
// The same on Hopper, where the copy engine reaches all that is read and written: q, k and v of `tensors`; dk and dv, what args.dk and
// args.dv write, in bf16 and not on top of what is there.
bool fused_keys_sm90_applies(const HybridAttentionForward& tensors, std::initializer_list<GradSlot> outputs);
// How many query heads of a KV head one thread block can walk without the whole taking longer: it adds up their dk and dv.
int fused_keys_sm90_heads_together(const FusedShape& shape);
void fused_backward_keys_sm90(const FusedKeysArgs& args, const HybridAttentionBackward& tensors, const GradSlot& dk,
                              const GradSlot& dv, Stream stream);

}  // namespace lc::kernels
