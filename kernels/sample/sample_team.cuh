// The blocks that draw for one sequence: what they share, how they meet, and a histogram of theirs.
#pragma once
#include "kernels/common/cuda/hopper.h"
#include "kernels/common/cuda/launch.h"
#include "kernels/common/cuda/reduce.cuh"
#include "kernels/common/cuda/roles.cuh"
#include "kernels/common/cuda/run.cuh"
#include "kernels/sample/sample_rules.h"

namespace lc::kernels::sampling {

inline constexpr int kThreads = 1024, kWarps = kThreads / kWarp;
inline constexpr int kTile = kThreads * kRun, kMostTiles = static_cast<int>(ceil_div(kMostSampleIds, kTile));
inline constexpr int kBins = 2048;
inline constexpr float kFineSteps = 256,
                       kCoarseSteps = 64;  // bins of one unit of score, in a histogram's first pass; in another
inline constexpr int kMostListed = 2048,
                     kMostGathered = 4096;  // scores of one step that a block lists; that a team does
inline constexpr int kMostBlocks = 8;       // of a team
static_assert(kMostTiles <= kThreads);

using Atomic = unsigned long long;  // what atomicAdd takes

struct Shared {
    uint4 bins[kBins / 2];      // a histogram: of each bin 64 bits in halves, low and high, whose atomics are native
    Atomic tiles[kMostTiles];   // sums of this block's, 0 for the others'
    uint64_t sums[kMostTiles];  // of the team's
    uint64_t warps[kWarps];
    uint64_t found[4];
    uint64_t told[4];  // to the team
    int id;            // the same
    float listed[kMostListed], gathered[kMostGathered];
    uint32_t ranks[kThreads];  // of what was gathered
    uint32_t count;
};

// The blocks of a sequence.
struct Team {
    Shared& own;
    int rank = 0, blocks = 1;

    __device__ explicit Team(Shared& shared) : own(shared) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
        asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
        asm("mov.u32 %0, %%cluster_nctaid.x;" : "=r"(blocks));
#endif
    }
    // All threads of all blocks.
    __device__ void meet() const {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
        if (blocks > 1) {
            cluster_arrive(), cluster_wait();
            return;
        }
#endif
        __syncthreads();
    }
    // What a block has there.
    __device__ const Shared& of(int block) const {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
        const Shared* there;
        asm("mapa.u64 %0, %1, %2;" : "=l"(there) : "l"(&own), "r"(block));
        return *there;
#else
        return own;
#endif
    }
};

struct Sum {
    __device__ uint64_t operator()(uint64_t a, uint64_t b) const { return a + b; }
};
struct Max {
    __device__ uint64_t operator()(uint64_t a, uint64_t b) const { return a > b ? a : b; }
};

template <class F>
__device__ __forceinline__ uint64_t warp_all(uint64_t value, F f) {
#pragma unroll
    for (int step = kWarp / 2; step > 0; step /= 2) value = f(value, __shfl_xor_sync(0xffffffffu, value, step));
    return value;
}
// Every thread gets the result over the block. Begins and ends with a barrier, or so that none is needed.
template <class F>
__device__ __forceinline__ uint64_t block_all(Shared& shared, uint64_t value, F f) {
    value = warp_all(value, f);
    if (threadIdx.x % kWarp == 0) shared.warps[threadIdx.x / kWarp] = value;
    __syncthreads();
    value = warp_all(shared.warps[threadIdx.x % kWarp], f);
    __syncthreads();
    return value;
}

// Every thread gets f over what the blocks told as number i, after they met.
template <class F>
__device__ __forceinline__ uint64_t team_all(const Team& team, int i, F f) {
    const int lane = threadIdx.x % kWarp;
    return warp_all(lane < team.blocks ? team.of(lane).told[i] : 0, f);
}

// The sum over the threads before this one; `total` over all.
__device__ inline uint64_t block_before(Shared& shared, uint64_t value, uint64_t& total) {
    const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
    const auto scan = [&](uint64_t x) {  // up to and with this lane
#pragma unroll
        for (int step = 1; step < kWarp; step *= 2) {
            const uint64_t other = __shfl_sync(0xffffffffu, x, lane - step >= 0 ? lane - step : 0);
            if (lane >= step) x += other;
        }
        return x;
    };
    const uint64_t within = scan(value);
    if (lane == kWarp - 1) shared.warps[warp] = within;
    __syncthreads();
    const uint64_t warps = scan(shared.warps[lane]);
    total = __shfl_sync(0xffffffffu, warps, kWarp - 1);
    const uint64_t before = __shfl_sync(0xffffffffu, warps, warp > 0 ? warp - 1 : 0);
    __syncthreads();
    return within - value + (warp > 0 ? before : 0);
}

__device__ __forceinline__ void add(Shared& shared, int bin, uint64_t measure) {
    uint32_t* halves = reinterpret_cast<uint32_t*>(shared.bins) + 2 * bin;
    const auto low = static_cast<uint32_t>(measure);
    auto high = static_cast<uint32_t>(measure >> 32);
    if (low != 0 && atomicAdd(halves, low) + low < low) ++high;  // it wrapped
    if (high != 0) atomicAdd(halves + 1, high);
}
__device__ inline void clear(Shared& shared) {
    for (int i = threadIdx.x; i < kBins / 2; i += kThreads) shared.bins[i] = {};
    __syncthreads();
}

__device__ __forceinline__ uint64_t bin_of(uint4 pair, int odd) {
    return odd ? uint64_t{pair.w} << 32 | pair.z : uint64_t{pair.y} << 32 | pair.x;
}

// The first bin with which the sum over the histograms of `blocks` blocks, from block `first` on, reaches `wanted`, which is at least 1 and
// at most the sum of all; the sum before it comes off `wanted`.
__device__ inline int find_bin(const Team& team, int first, int blocks, uint64_t& wanted) {
    static_assert(kBins == 2 * kThreads);
    Shared& shared = team.own;
    __syncthreads();
    uint64_t mine[2] = {}, total;
    for (int block = first; block < first + blocks; ++block) {
        const uint4 pair = team.of(block).bins[threadIdx.x];
        mine[0] += bin_of(pair, 0), mine[1] += bin_of(pair, 1);
    }
    uint64_t before = block_before(shared, mine[0] + mine[1], total);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
        if (before < wanted && wanted <= before + mine[i])
            shared.found[0] = threadIdx.x * 2 + i, shared.found[1] = before;
        before += mine[i];
    }
    __syncthreads();
    const int bin = static_cast<int>(shared.found[0]);
    wanted -= shared.found[1];
    __syncthreads();
    return bin;
}

struct LastRank {
    uint32_t rank;
    bool all;  // that have this rank are wanted
};

// The rank with which the measure of the `count` scores gathered, best first, reaches `wanted`; what comes before it comes off `wanted`. A
// thread compares its own score with all.
template <class Measure>
__device__ LastRank find_rank(Shared& shared, int count, Measure&& measure, uint64_t& wanted) {
    auto* measures = reinterpret_cast<uint64_t*>(shared.bins);
    const int own = threadIdx.x;
    if (own < count)
        shared.ranks[own] = sample_rank(shared.gathered[own]), measures[own] = measure(shared.gathered[own]);
    __syncthreads();
    if (own < count) {
        const uint32_t rank = shared.ranks[own];
        uint64_t before = 0, alike = 0;
        for (int i = 0; i < count; ++i) {
            const uint32_t other = shared.ranks[i];
            before += other < rank ? measures[i] : 0, alike += other == rank ? measures[i] : 0;
        }
        if (before < wanted && wanted <= before + alike)  // in all threads of that rank
            shared.found[0] = rank, shared.found[1] = before, shared.found[2] = before + alike - wanted < measures[own];
    }
    __syncthreads();
    const LastRank last{static_cast<uint32_t>(shared.found[0]), shared.found[2] != 0};
    wanted -= shared.found[1];
    __syncthreads();
    return last;
}

}  // namespace lc::kernels::sampling
