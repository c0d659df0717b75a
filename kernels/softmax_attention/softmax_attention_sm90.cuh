// What the Hopper forms of softmax attention, forward and backward, share: warps with roles, a ring of tiles, the order
// of work.
//
// Two consumer warpgroups multiply; one thread of a third, the producer, keeps a ring of tiles filled (roles.cuh).
#pragma once
#include "kernels/common/cuda/roles.cuh"
#include "kernels/softmax_attention/softmax_attention_mma.cuh"

namespace lc::kernels {

inline constexpr int kConsumers = 2, kRoles = 3;  // warpgroups
inline constexpr int kRoleThreads = kRoles * kWarpgroup;
inline constexpr int kConsumerThreads = kConsumers * kWarpgroup, kConsumerWarps = kConsumerThreads / kWarp;
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

inline constexpr int kProducerRegisters = 24, kConsumerRegisters = 240;

// 128 queries of one head.
struct QueryTile {
    int b, h, kv, q0;
    int begin, limit;  // the keys [begin, limit) are seen by some of them
};

// This block's share of all tiles, the longest first, a tile a round. Tiles of one length are the most in a round: who had one of the
// shorter ones begins the next. Of many lengths: every other round goes backwards. So shares are even.
class QueryTiles {
  public:
    __device__ __forceinline__ explicit QueryTiles(const AttentionShape& shape)
        : shape_(shape),
          heads_(static_cast<int>(shape.batch * shape.heads)),
          tiles_(static_cast<int>((shape.t + kOwned - 1) / kOwned)),
          place_(static_cast<int>(blockIdx.x)) {}

    // False: there are no more.
    __device__ __forceinline__ bool next(QueryTile& tile) {
        const int index = start_ + place_, blocks = static_cast<int>(gridDim.x);
        if (index >= heads_ * tiles_) return false;  // nor is there one in a later round
        const int shorter = blocks - (heads_ - start_ % heads_);
        if (4 * heads_ < 3 * blocks)
            place_ = blocks - 1 - place_;
        else if (shorter > 0)
            place_ = (place_ + shorter) % blocks;
        start_ += blocks;

        const int head = index % heads_, group_heads = static_cast<int>(shape_.heads);
        tile.q0 = (tiles_ - 1 - index / heads_) * kOwned;
        tile.b = head / group_heads, tile.h = head % group_heads, tile.kv = tile.h / static_cast<int>(shape_.group);
        tile.begin = static_cast<int>(shape_.first_visible(tile.q0));
        tile.limit = static_cast<int>(shape_.visible(min(tile.q0 + static_cast<int64_t>(kOwned), shape_.t) - 1));
        return true;
    }

  private:
    const AttentionShape& shape_;
    int heads_, tiles_, start_ = 0, place_;
};

// Elements (half, :) of a thread's two rows of an accumulator, to a row of a gradient.
template <class T, int D>
__device__ __forceinline__ void store_row(const HeadTensor& to, int64_t row, float factor, const float (&sum)[D / 2],
                                          int half) {
    T* at = reinterpret_cast<T*>(to.base) + row;
    const int column = threadIdx.x % 4 * 2;
    if (to.pairs) {
#pragma unroll
        for (int j = 0; j < D / 8; ++j) {
            const float first = factor * sum[4 * j + 2 * half], second = factor * sum[4 * j + 2 * half + 1];
            if constexpr (sizeof(T) == 4)
                *reinterpret_cast<float2*>(at + 8 * j + column) = make_float2(first, second);
            else
                *reinterpret_cast<uint32_t*>(at + 8 * j + column) = pack_bf16(first, second);
        }
        return;
    }
#pragma unroll
    for (int i = 0; i < D / 4; ++i) {
        T& place = at[(i / 2 * 8 + column + i % 2) * to.strides[3]];
        const float value = factor * sum[i / 2 * 4 + 2 * half + i % 2];
        place = from_float<T>(to.accumulate ? to_float(place) + value : value);
    }
}

// to(b, h, first + r, :) = factor * sum, r in the warpgroup's 64 rows
template <int D>
__device__ __forceinline__ void store_rows(const HeadTensor& to, int b, int h, int first, int64_t rows, float factor,
                                           const float (&sum)[D / 2]) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const int i = first + accumulator_row() + 8 * half;
        if (i >= rows) continue;
        const int64_t row = to.row(b, h, i);
        if (to.dtype == DType::f32)
            store_row<float, D>(to, row, factor, sum, half);
        else
            store_row<__nv_bfloat16, D>(to, row, factor, sum, half);
    }
}

#endif

}  // namespace lc::kernels
