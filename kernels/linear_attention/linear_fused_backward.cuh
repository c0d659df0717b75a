// The two walks of the fused backward.
#pragma once
#include "kernels/hybrid_attention/hybrid_fused_sums.cuh"

namespace lc::kernels {

// What the walk over the rows leaves for the walk over the keys, by item; rows padded to whole blocks.
struct LinearRowResults {
    float *inverse, *dz;  // [items, blocks * 64] each: 1 / Z; dZ
};

// Over the rows, in order of the blocks: dq and what the rows' maps get; leaves `results`.
struct LinearRowsArgs {
    FusedInputs in;
    AlignedHeads dy;
    LinearRowResults results;
    PairRows dq;
    float* dwq_parts;  // [items,D,F], or null
};
void linear_backward_rows(const LinearRowsArgs& args, int64_t d, Stream stream);

// Over the keys, last block first. dk, dv: of the KV head where it has one query head, else [B,H,blocks * 64,D].
struct LinearKeysArgs {
    FusedInputs in;
    AlignedHeads dy;
    LinearRowResults results;
    PairRows dk, dv;
    bool by_query_head;
    float* dwk_parts;  // [items,D,F], or null
};
void linear_backward_keys(const LinearKeysArgs& args, int64_t d, Stream stream);

}  // namespace lc::kernels
