// What the fused kernels (hybrid_fused.h) are given and how they see it: arguments, the place of a thread block, shared memory.
// The steps that they share: hybrid_fused_steps.cuh.
#pragma once
#include "kernels/hybrid_attention/hybrid_attention.h"
#include "kernels/hybrid_attention/hybrid_fused_product.cuh"
#include "kernels/hybrid_attention/hybrid_mix.cuh"
#include "kernels/softmax_attention/softmax_attention_mma.cuh"

namespace lc::kernels {

inline constexpr int kFusedThreads = 2 * kWarpgroup, kWarps = kFusedThreads / kWarp;
inline constexpr int kFusedRows = 64;                     // w: positions of a block
inline constexpr int kFusedMap = 64;                      // F
inline constexpr int kFusedFeatures = 2 * kFusedMap;      // F'
inline constexpr int64_t kFusedSharedBytes = 227 * 1024;  // most of a thread block on Hopper
inline constexpr float kLeastGamma = 1e-30f;              // see NUMERICS in hybrid_fused_forward.cu

// --- arguments ---

struct FusedShape {
    int64_t items;              // batch entries x query heads: one thread block each
    int heads, kv_heads, maps;  // H, H_kv, Hs
    int length, blocks;         // T, and how many blocks of 64 they are
    float scale;                // 1 / sqrt(D)
};

// W [*,D,F], dense.
struct MapWeights {
    const void* data;
    DType dtype;
    explicit MapWeights(const TensorView& w) : data(w.base + w.layout.offset * size_of(w.dtype)), dtype(w.dtype) {}
};

struct FusedInputs {
    FusedShape shape;
    AlignedHeads q, k, v;
    MapWeights wq, wk;
    Operand mix_logit;
    LinearizedSpec spec;
    explicit FusedInputs(const HybridAttentionForward& a);
};

// What the walk over the rows leaves for the walk over the keys, by item; rows padded to whole blocks.
struct FusedRowResults {
    __nv_bfloat16* dn;  // [items, blocks * 64, D]
    float *dz, *high,
        *max_part;  // [items, blocks * 64] each: dZ; m before scaling; D over the number of keys that tie for m
};

// [B,H,T,D] in f32 or bf16, written in pairs of neighbours.
struct PairRows {
    std::byte* base = nullptr;  // null: nobody wants it
    int64_t strides[3] = {};
    bool narrow = false, accumulate = false;

    PairRows() = default;
    explicit PairRows(const GradSlot& slot);
    static bool covers(const GradSlot& slot);  // an empty slot is covered

    __device__ explicit operator bool() const { return base != nullptr; }
    __device__ __forceinline__ void put(int64_t b, int64_t h, int64_t t, int c, float2 value) const {
        const int64_t place = (b * strides[0] + h * strides[1] + t * strides[2] + c) / 2;
        if (narrow) {
            uint32_t& to = reinterpret_cast<uint32_t*>(base)[place];
            if (accumulate) value.x += unpack_bf16(to).x, value.y += unpack_bf16(to).y;
            to = pack_bf16(value.x, value.y);
        } else {
            float2& to = reinterpret_cast<float2*>(base)[place];
            to = accumulate ? make_float2(to.x + value.x, to.y + value.y) : value;
        }
    }
};

// The item of this thread block.
struct FusedHead {
    int64_t item, b;
    int h, hk, hs;  // query head, KV head, k-map
    explicit __device__ FusedHead(const FusedShape& s)
        : item(blockIdx.x),
          b(item / s.heads),
          h(static_cast<int>(item % s.heads)),
          hk(h / (s.heads / s.kv_heads)),
          hs(h / (s.heads / s.maps)) {}
};

__device__ inline float log2_gamma_of(const FusedInputs& in, const FusedHead& head) {
    return log2f(fmaxf(DeviceMix(in.mix_logit, in.spec, head.h).gamma, kLeastGamma));
}

// --- shared memory ---

template <int D>
using RowTile = WgmmaTile<kFusedRows, D>;  // a block of q, k, v or dN
template <int D>
using StateTile = WgmmaTile<kFusedFeatures, D>;
template <int D>
using MapTile = WgmmaTile<D, kFusedMap>;
using FeatureTile = WgmmaTile<kFusedRows, kFusedFeatures>;  // phi of a block
using WindowWeights =
    WgmmaTile<kFusedRows, 2 * kFusedRows>;  // of a block's rows: keys of the block before, then their own
using DuTile = WgmmaTile<kFusedRows, kFusedMap>;

// Hands out the shared memory of a block piece by piece: tiles first, they begin at multiples of 1024 bytes.
struct SharedRoom {
    unsigned char* next;
    template <class Tile>
    __device__ __forceinline__ Tile tiles(int count = 1) {
        const Tile result{reinterpret_cast<__nv_bfloat16*>(next)};
        next += count * Tile::kBytes;
        return result;
    }
    template <class T = float>
    __device__ __forceinline__ T* numbers(int count) {
        T* result = reinterpret_cast<T*>(next);
        next += count * sizeof(T);
        return result;
    }
};
template <class Tile>
__device__ __forceinline__ Tile nth_tile(const Tile& first, int n) {
    return {first.data + n * (Tile::kBytes / 2)};
}
template <class Tile>
__device__ __forceinline__ Tile either(bool first, const Tile& a, const Tile& b) {
    return {first ? a.data : b.data};
}

// f(row, column) for this thread's chunks of eight elements of a tile.
template <class Tile, class F>
__device__ __forceinline__ void each_chunk(F&& f) {
    constexpr int kChunks = Tile::kColumns / 8;
    static_assert(Tile::kRows * kChunks % kFusedThreads == 0);
#pragma unroll
    for (int i = 0; i < Tile::kRows * kChunks / kFusedThreads; ++i) {
        const int chunk = i * kFusedThreads + static_cast<int>(threadIdx.x);
        f(chunk / kChunks, chunk % kChunks * 8);
    }
}

// Queues the copy of block b of a head; zeros where there is none.
template <int D>
__device__ __forceinline__ void copy_block(const RowTile<D>& tile, const __nv_bfloat16* head, int64_t stride, int b,
                                           int length) {
    each_chunk<RowTile<D>>([&](int row, int column) {
        const int t = b * kFusedRows + row;
        const bool valid = b >= 0 && t < length;
        copy_async(tile.chunk(row, column), head + (valid ? t * stride + column : 0), valid);
    });
}

// W of one head, rounded to bf16.
template <int D>
__device__ __forceinline__ void load_map(const MapTile<D>& tile, const MapWeights& w, int head) {
    each_chunk<MapTile<D>>([&](int row, int column) {
        const int64_t from = (int64_t{head} * D + row) * kFusedMap + column;
        uint4 values;
        if (w.dtype == DType::bf16) {
            values = *reinterpret_cast<const uint4*>(static_cast<const __nv_bfloat16*>(w.data) + from);
        } else {
            const float4* wide = reinterpret_cast<const float4*>(static_cast<const float*>(w.data) + from);
            const float4 a = wide[0], b = wide[1];
            values = make_uint4(pack_bf16(a.x, a.y), pack_bf16(a.z, a.w), pack_bf16(b.x, b.y), pack_bf16(b.z, b.w));
        }
        *reinterpret_cast<uint4*>(tile.chunk(row, column)) = values;
    });
}

// --- where a thread stands ---

__device__ __forceinline__ int warp_index() {
    return threadIdx.x / kWarp;
}
__device__ __forceinline__ int quad_row() {  // g of mma.cuh
    return threadIdx.x % kWarp / 4;
}
__device__ __forceinline__ int quad_lane() {  // t of mma.cuh
    return threadIdx.x % 4;
}

}  // namespace lc::kernels
