// Hybrid attention forward over short sequences on Hopper (hybrid_short_forward_sm90.cu): arguments, shared memory, the barriers
// between warpgroups, what a thread block begins with, and what it hands to those behind it.
#pragma once
#include "kernels/common/cuda/early.cuh"
#include "kernels/hybrid_attention/hybrid_roles_maps.cuh"

namespace lc::kernels::hybrid_short {

using hybrid_roles::FeatureTile;
using hybrid_roles::Panel;

// Blocks of a thread block, one a warpgroup; thread blocks of a sequence.
inline constexpr int kShortDim = 128, kShortBlocks = 4, kShortSegments = 4, kShortThreads = kShortBlocks * kWarpgroup;
using ShortRows = WgmmaTile<kFusedRows, kShortDim>;
using ShortMap = WgmmaTile<kShortDim, kFusedMap>;
using StateTile = WgmmaTile<kShortDim, kFusedFeatures>;  // S^T

struct ShortArgs {
    CUtensorMap q, k, v, y;
    FusedInputs in;  // segments: of kShortBlocks blocks
    uint4*
        sums;  // [parts,4,4,128]: S^T of the keys of a segment and the block before it, but its last, by warpgroups and threads
    float* totals;  // [parts,4,F'], z of each of these blocks
    int* ready;     // [parts], 0; then how many warpgroups have stored theirs
};

// One tile of k for each block of queries and one before them.
inline constexpr int kShortKeys = kShortBlocks + 1;
inline constexpr int kShortBarriers = 2 * kShortKeys + 2 * kShortBlocks + 4;
inline constexpr int kShortBytes =
    (kShortKeys + kShortBlocks) * ShortRows::kBytes + kShortBlocks * FeatureTile::kBytes + ShortMap::kBytes +
    kShortBlocks * kFusedFeatures * static_cast<int>(sizeof(float)) + kShortBarriers * 8 + 8;
static_assert(kShortBytes <= kSharedLimit);

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

using hybrid_roles::prefetch_panel;

enum ShortBarrier { kMapIsFree = 1, kGroup };  // the latter: and the next, one a warpgroup

struct ShortBarriers {
    Barrier k_full[kShortKeys], v_full[kShortKeys], q_full[kShortBlocks], k_done[kShortBlocks];
    Barrier map_q_full, sums_made, z_full, s_full;

    __device__ void init() {
        constexpr int kWarpsOfGroup = kWarpgroup / kWarp;
        for (int i = 0; i < kShortKeys; ++i) k_full[i].init(1), v_full[i].init(1);
        for (int i = 0; i < kShortBlocks; ++i) q_full[i].init(1), k_done[i].init(kWarpsOfGroup);
        map_q_full.init(kShortThreads), sums_made.init(kShortThreads), z_full.init(kWarpgroup),
            s_full.init(kShortThreads);
        fence_barriers();
    }
};
static_assert(sizeof(ShortBarriers) == kShortBarriers * 8);

struct ShortRoom {
    __nv_bfloat16* base;

    __device__ __forceinline__ ShortRows rows(int i) const { return {base + i * kFusedRows * kShortDim}; }
    __device__ __forceinline__ ShortRows k(int j) const { return rows(j); }
    __device__ __forceinline__ ShortRows v(int j) const { return rows(j); }  // once k is read
    __device__ __forceinline__ ShortRows q(int i) const { return rows(kShortKeys + i); }
    __device__ __forceinline__ FeatureTile phi_q(int i) const { return {q(i).data}; }  // once q is read
    __device__ __forceinline__ FeatureTile phi_k(int j) const {
        return {q(kShortBlocks).data + j * kFusedRows * kFusedFeatures};
    }
    __device__ __forceinline__ ShortMap map_k() const { return {phi_k(0).data}; }
    __device__ __forceinline__ ShortMap map_q() const { return {phi_k(kShortBlocks).data}; }
    __device__ __forceinline__ StateTile state() const { return {phi_k(kShortBlocks - 1).data}; }  // and over map_q
    __device__ __forceinline__ float* z(int j) const {
        return reinterpret_cast<float*>(map_q().data + kShortDim * kFusedMap) + j * kFusedFeatures;
    }
    __device__ __forceinline__ ShortBarriers& barriers() const {
        return *reinterpret_cast<ShortBarriers*>(z(kShortBlocks));
    }
    __device__ __forceinline__ float& log_gamma() const { return *reinterpret_cast<float*>(&barriers() + 1); }
};

// Where a thread block stands.
struct ShortPlace {
    int part, item, segment, h, hk, hs, entry;
    explicit __device__ ShortPlace(const FusedShape& s)
        : part(static_cast<int>(blockIdx.x)),
          item(part / s.segments),
          segment(part % s.segments),
          h(item % s.heads),
          hk(h / (s.heads / s.kv_heads)),
          hs(h / (s.heads / s.maps)),
          entry(item / s.heads) {}
    __device__ __forceinline__ int block(int i) const { return segment * kShortBlocks + i; }  // of queries
    __device__ __forceinline__ int key_block(int j) const { return block(j) - 1; }
};

__device__ __forceinline__ void copy_short(const ShortRows& tile, const CUtensorMap& map, int block, int h, int entry,
                                           Barrier& full) {
    full.expect(ShortRows::kBytes);
    copy_tile(tile, map, block * kFusedRows, h, entry, full);
}

// Only k and its map, which are read first: what else is asked for at once delays them. A tile a warp: the first copies of a kernel
// each take long to queue.
__device__ __forceinline__ void begin_short(const ShortArgs& args, const ShortRoom& room, const ShortPlace& at) {
    const int i = static_cast<int>(threadIdx.x) / kWarp;
    if (threadIdx.x % kWarp != 0) return;
    if (i < kShortKeys)
        copy_short(room.k(i), args.k, at.key_block(i), at.hk, at.entry, room.barriers().k_full[i]);
    else if (i == kShortThreads / kWarp - 1)
        room.log_gamma() = log2f(fmaxf(DeviceMix(args.in.mix_logit, args.in.spec, at.h).gamma, kLeastGamma));
}
// q, and v into the L2 cache: one thread of a warpgroup.
__device__ __forceinline__ void go_on_short(const ShortArgs& args, const ShortRoom& room, const ShortPlace& at,
                                            int group) {
    copy_short(room.q(group), args.q, at.block(group), at.h, at.entry, room.barriers().q_full[group]);
    for (int j = group; j < kShortKeys; j += kShortBlocks)
        if (at.key_block(j) >= 0 && at.key_block(j) < args.in.shape.blocks)
            for (int column = 0; column < kShortDim; column += kMapColumns)
                prefetch_panel(args.v, at.key_block(j) * kFusedRows, column, at.hk, at.entry);
}

// Between the parts of an item.
struct ShortParts {
    const ShortArgs& args;
    const ShortPlace& at;
    int group, thread;

    __device__ __forceinline__ uint4& sum(int part, int i) const {
        return args.sums[((static_cast<int64_t>(part) * kShortBlocks + group) * 4 + i) * kWarpgroup + thread];
    }
    __device__ __forceinline__ float& total(int part, int j) const {
        return args.totals[(static_cast<int64_t>(part) * kShortBlocks + j) * kFusedFeatures + thread];
    }
    // Of all parts of this item before this one.
    __device__ __forceinline__ float total_before() const {
        float x[kShortSegments - 1][kShortBlocks], sum = 0;  // under way together
#pragma unroll
        for (int g = 0; g < kShortSegments - 1; ++g)
#pragma unroll
            for (int j = 0; j < kShortBlocks; ++j)
                x[g][j] = g < at.segment ? __ldcg(&total(at.part - at.segment + g, j)) : 0;
#pragma unroll
        for (int g = 0; g < kShortSegments - 1; ++g)
#pragma unroll
            for (int j = 0; j < kShortBlocks; ++j) sum += x[g][j];
        return sum;
    }
    // By one thread, behind a barrier after the warpgroup's stores.
    __device__ __forceinline__ void tell() const {
        wait_for_predecessor();
        asm volatile("red.release.gpu.global.add.s32 [%0], %1;" ::"l"(args.ready + at.part), "r"(1) : "memory");
    }
    // By one thread, before a barrier: all parts of this item before this one are there.
    __device__ __forceinline__ void await() const {
        wait_for_predecessor();
        for (int part = at.part - at.segment; part < at.part; ++part) {
            const int* const ready = args.ready + part;
            int count;
            do {
                asm volatile("ld.acquire.gpu.global.s32 %0, [%1];" : "=r"(count) : "l"(ready) : "memory");
            } while (count < kShortBlocks);
        }
    }
};

// What a warpgroup works on: block `group` of the thread block's queries, and of its keys.
struct ShortGroup {
    const ShortArgs& args;
    const ShortRoom& room;
    ShortBarriers& barriers;
    const ShortPlace& at;
    const ShortParts& parts;
    int group, thread;

    __device__ __forceinline__ bool leads() const { return thread == 0; }
    __device__ __forceinline__ void meet() const { named_sync<kWarpgroup>(kGroup + group); }
    // This warpgroup's quarter of S^T: 64 of D, 64 features.
    __device__ __forceinline__ int panel() const { return group / 2; }
    __device__ __forceinline__ int half() const { return group % 2; }
};

#endif

}  // namespace lc::kernels::hybrid_short
