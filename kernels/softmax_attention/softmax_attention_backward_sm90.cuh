// What the Hopper forms of softmax attention backward share: tensors, and two numbers of each query.
#pragma once
#include "kernels/softmax_attention/softmax_attention_sm90.cuh"

namespace lc::kernels {

inline constexpr int kRowFloats = 2 * kOther;  // lse log2 e and delta of kOther queries

struct AttentionBackwardArgs {
    CUtensorMap q, k, v, dy;
    AttentionShape shape;
    AlignedHeads y_rows, dy_rows;
    HeadTensor lse, dq, dk, dv;
    float* rows;  // [B,H,row_tiles,2,64]
    int row_tiles;
};

// One walk over the keys makes dq and dk, dv or both. `rows` is filled. Two walks are faster on short sequences.
void softmax_attention_backward_one_walk(const AttentionBackwardArgs& args, Stream stream);
inline constexpr int kOneWalkD = 128;
inline constexpr int64_t kOneWalkKeys = 4096;  // from here on

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

__device__ __forceinline__ const float* rows_of(const AttentionBackwardArgs& args, int b, int h, int q0) {
    return args.rows + ((b * args.shape.heads + h) * args.row_tiles + q0 / kOther) * static_cast<int64_t>(kRowFloats);
}

#endif

}  // namespace lc::kernels
