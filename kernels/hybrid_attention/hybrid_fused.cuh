// What the fused kernels (hybrid_fused.h) are given and how they see it: arguments, the place of a thread block, shared memory.
// The steps that they share: hybrid_fused_steps.cuh.
#pragma once
#include "kernels/common/cuda/mma.cuh"
#include "kernels/hybrid_attention/hybrid_attention.h"
#include "kernels/hybrid_attention/hybrid_mix.cuh"
#include "kernels/softmax_attention/softmax_attention_mma.cuh"

namespace lc::kernels {

inline constexpr int kFusedThreads = 256, kWarps = kFusedThreads / kWarp;
inline constexpr int kFusedRows = 64;                     // w: positions of a block
inline constexpr int kFusedMap = 64;                      // F
inline constexpr int kFusedFeatures = 2 * kFusedMap;      // F'
inline constexpr int64_t kFusedSharedBytes = 227 * 1024;  // most of a thread block on Hopper
inline constexpr float kLeastGamma = 1e-30f;              // see NUMERICS in hybrid_fused_forward.cu

// --- arguments ---

struct FusedShape {
    int64_t items;              // batch entries x query heads
    int heads, kv_heads, maps;  // H, H_kv, Hs
    int length, keys;           // T, Tk
    int blocks;                 // of 64 keys
    float scale;                // 1 / sqrt(D)
    // A walk over a whole sequence begins with block 0, and block 2 is the first with far keys. One that goes on after kept keys, of one
    // block or two, begins with block 2: the first kept block is number 1, and the state handed in is all that is far of block 2.
    int first = 0;
    int key_row = 0, query_row = 0;  // of block 0, in k and v and in q and y
    int segments = 1;                // of each item, a thread block each (hybrid_fused_segments.cuh)

    int64_t parts() const { return items * segments; }
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
    __nv_bfloat16* dn;  // [items, blocks * 64, D]; null where the walk over the keys takes dy and 1 / Z
    // [items, blocks * 64] each: dZ; m before scaling; D over the number of keys that tie for m; 1 / Z (on Hopper, where dy is given)
    float *dz, *high, *max_part, *inverse;
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
    // Eight neighbours from c, a multiple of eight, on: at once where the place allows it.
    __device__ __forceinline__ void put(int64_t b, int64_t h, int64_t t, int c, const float (&x)[8]) const {
        __nv_bfloat16* to =
            reinterpret_cast<__nv_bfloat16*>(base) + b * strides[0] + h * strides[1] + t * strides[2] + c;
        if (narrow && !accumulate && reinterpret_cast<uintptr_t>(to) % 16 == 0) {
            *reinterpret_cast<uint4*>(to) =
                make_uint4(pack_bf16(x[0], x[1]), pack_bf16(x[2], x[3]), pack_bf16(x[4], x[5]), pack_bf16(x[6], x[7]));
        } else {
#pragma unroll
            for (int e = 0; e < 8; e += 2) put(b, h, t, c + e, make_float2(x[e], x[e + 1]));
        }
    }
};

// The item of this thread block and its share of a walk over it.
struct FusedHead {
    int64_t item, b;
    int h, hk, hs;    // query head, KV head, k-map
    int segment;      // in the order of the walk
    int first, last;  // its steps: [first, last)

    explicit __device__ FusedHead(const FusedShape& s) : FusedHead(s, s.blocks) {}
    __device__ FusedHead(const FusedShape& s, int steps)
        : item(blockIdx.x / static_cast<unsigned>(s.segments)),
          b(static_cast<unsigned>(item) / s.heads),
          h(static_cast<int>(static_cast<unsigned>(item) % s.heads)),
          hk(h / (s.heads / s.kv_heads)),
          hs(h / (s.heads / s.maps)),
          segment(static_cast<int>(blockIdx.x % s.segments)),
          first(s.first + steps_before(steps - s.first, segment, s.segments)),
          last(s.first + steps_before(steps - s.first, segment + 1, s.segments)) {}
    // Of a walk, before segment g: the first segments may have one more than others. No int64 here: every walk begins with this, and each
    // such division takes hundreds of clocks.
    static __host__ __device__ constexpr int steps_before(int steps, int g, int segments) {
        return steps / segments * g + (g < steps % segments ? g : steps % segments);
    }
    // Among the segments of all items.
    static __device__ __forceinline__ int64_t part() { return blockIdx.x; }
};

// What a thread block reads of its head.
struct HeadInputs {
    const __nv_bfloat16 *q, *k, *v;
    float gamma;
    __device__ HeadInputs(const FusedInputs& in, const FusedHead& head)
        : q(in.q.head(head.b, head.h)),
          k(in.k.head(head.b, head.hk)),
          v(in.v.head(head.b, head.hk)),
          gamma(fmaxf(DeviceMix(in.mix_logit, in.spec, head.h).gamma, kLeastGamma)) {}
};

// Hands out the shared memory of a block piece by piece.
struct SharedRoom {
    unsigned char* next;
    template <int Columns>
    __device__ __forceinline__ SharedTile<Columns> tile(int rows) {
        const SharedTile<Columns> result{reinterpret_cast<__nv_bfloat16*>(next)};
        next += SharedTile<Columns>::bytes(rows);
        return result;
    }
    __device__ __forceinline__ float* floats(int count) {
        float* result = reinterpret_cast<float*>(next);
        next += count * sizeof(float);
        return result;
    }
};

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

// --- tiles ---

// The n-th of several tiles that lie one after the other.
template <int Columns>
__device__ __forceinline__ SharedTile<Columns> nth_tile(const SharedTile<Columns>& first, int n,
                                                        int rows = kFusedRows) {
    return {first.data + n * rows * Columns};
}

// Queues the copy of block b of a head, in which block 0 has row `row0`; zeros where there is none, before the first or behind the last.
template <int D>
__device__ __forceinline__ void copy_block(const SharedTile<D>& tile, const __nv_bfloat16* head, int64_t stride, int b,
                                           int length, int row0 = 0) {
    copy_tile_async<kFusedRows, kFusedThreads>(tile, head, stride, int64_t{b} * kFusedRows + row0, length);
}

// W of one head, rounded to bf16, by `Threads` threads; all that a thread loads is under way at once.
template <int D, int Threads = kFusedThreads, class Tile>
__device__ __forceinline__ void load_map(const Tile& tile, const MapWeights& w, int head, int thread = threadIdx.x) {
    constexpr int kChunks = kFusedMap / 8, kShare = D * kChunks / Threads;
    static_assert(D * kChunks % Threads == 0);
    const int64_t start = int64_t{head} * D * kFusedMap + thread * 8;
    uint4 values[kShare];
    if (w.dtype == DType::bf16) {
        const __nv_bfloat16* from = static_cast<const __nv_bfloat16*>(w.data) + start;
#pragma unroll
        for (int i = 0; i < kShare; ++i) values[i] = *reinterpret_cast<const uint4*>(from + i * Threads * 8);
    } else {
        const float* from = static_cast<const float*>(w.data) + start;
#pragma unroll
        for (int i = 0; i < kShare; ++i) {
            const float4 a = *reinterpret_cast<const float4*>(from + i * Threads * 8),
                         b = *reinterpret_cast<const float4*>(from + i * Threads * 8 + 4);
            values[i] = make_uint4(pack_bf16(a.x, a.y), pack_bf16(a.z, a.w), pack_bf16(b.x, b.y), pack_bf16(b.z, b.w));
        }
    }
#pragma unroll
    for (int i = 0; i < kShare; ++i) {
        const int chunk = i * Threads + thread;
        *reinterpret_cast<uint4*>(tile.chunk(chunk / kChunks, chunk % kChunks * 8)) = values[i];
    }
}

// Begins a walk over the rows: queues q and k of the first block, k and v of the one before it; loads the maps.
template <int D, class Room>
__device__ __forceinline__ void begin_rows(const FusedInputs& in, const FusedHead& head, const HeadInputs& x,
                                           const Room& room) {
    constexpr int kQueries = Room::kQueryTiles, kKeys = Room::kKeyTiles;
    const FusedShape& s = in.shape;
    const int first = head.first;
    copy_block(nth_tile(room.q, first % kQueries), x.q, in.q.strides[2], first, s.length, s.query_row);
    copy_block(nth_tile(room.k, first % kKeys), x.k, in.k.strides[2], first, s.keys, s.key_row);
    copy_block(nth_tile(room.k, (first + kKeys - 1) % kKeys), x.k, in.k.strides[2], first - 1, s.keys, s.key_row);
    copy_block(nth_tile(room.v, (first + 1) % 2), x.v, in.v.strides[2], first - 1, s.keys, s.key_row);
    copy_async_commit();
    load_map<D>(room.wq, in.wq, head.h);
    load_map<D>(room.wk, in.wk, head.hs);
    if (threadIdx.x < kFusedRows) room.far[threadIdx.x] = 0;
}

// Elements (row, column), (row, column + 1) of a tile, column even.
template <int Columns>
__device__ __forceinline__ uint32_t& pair_at(const SharedTile<Columns>& tile, int row, int column) {
    return *reinterpret_cast<uint32_t*>(tile.at(row, column));
}

}  // namespace lc::kernels
