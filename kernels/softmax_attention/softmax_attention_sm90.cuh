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
static_assert(kConsumers * kConsumerRegisters + kProducerRegisters <= kRoles * 168,
              "what a block of 384 threads gets at its launch: to ask for more hangs");

// 128 queries of one head.
struct QueryTile {
    int b, h, kv, q0;
    int begin, limit;  // the keys [begin, limit) are seen by some of them
};

// This block's share of all tiles, a tile a round. Heads come in parts of about as many as there are blocks, so that keys and values of a
// part stay in L2; in a part the longest tiles come first. Shares are even: who had none, or one of the round's shorter ones, begins
// the next round; where a round has many lengths, every other one goes backwards.
class QueryTiles {
  public:
    __device__ __forceinline__ explicit QueryTiles(const AttentionShape& shape)
        : shape_(shape),
          tiles_(static_cast<int>((shape.t + kOwned - 1) / kOwned)),
          place_(static_cast<int>(blockIdx.x)) {
        const int blocks = static_cast<int>(gridDim.x), group = static_cast<int>(shape.group);
        const int all = static_cast<int>(shape.batch * shape.heads), parts = (all + blocks - 1) / blocks;
        part_ = ((all + parts - 1) / parts + group - 1) / group * group;
        rotates_ = 4 * part_ >= 3 * blocks;
        if (!rotates_) part_ = all;
        begin(0);
    }

    // False: there are no more, and `tile` sees no keys.
    __device__ __forceinline__ bool next(QueryTile& tile) {
        const int blocks = static_cast<int>(gridDim.x);
        for (tile.limit = 0; heads_ > 0;) {
            const int index = start_ + place_, first = first_, heads = heads_, end = heads * tiles_;
            const int shorter = blocks - min(left_, end - start_);
            if (!rotates_)
                place_ = blocks - 1 - place_;
            else if (shorter > 0 && (place_ += shorter) >= blocks)
                place_ -= blocks;
            start_ += blocks, left_ -= blocks;
            while (left_ <= 0) left_ += heads;
            if (start_ >= end) begin(first + part_);
            if (index >= end) continue;

            const int length = index / heads, head = first + index - length * heads;
            const int group_heads = static_cast<int>(shape_.heads), t = static_cast<int>(shape_.t);
            const int cached = static_cast<int>(shape_.cached);
            tile.q0 = (tiles_ - 1 - length) * kOwned;
            tile.b = head / group_heads, tile.h = head - tile.b * group_heads;
            tile.kv = tile.h / static_cast<int>(shape_.group);
            tile.begin = max(tile.q0 + cached + 1 - static_cast<int>(shape_.window), 0);
            tile.limit = min(tile.q0 + kOwned, t) + cached;
            return true;
        }
        return false;
    }

  private:
    __device__ __forceinline__ void begin(int head) {
        first_ = head, start_ = 0;
        left_ = heads_ = min(part_, static_cast<int>(shape_.batch * shape_.heads) - head);
    }

    const AttentionShape& shape_;
    int tiles_, part_;           // of a head; heads of a part
    int first_, heads_, start_;  // heads of this part; where its round starts
    int left_;                   // tiles as long as the round's first, from there on
    int place_;                  // in the round
    bool rotates_;
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
