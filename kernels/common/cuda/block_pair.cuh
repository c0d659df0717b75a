// What products on pairs of blocks share (sm_90a): clusters of two whose blocks fetch operands for each other, and results that are
// stored from registers.
#pragma once
#include "kernels/common/cuda/launch.h"
#include "kernels/common/cuda/roles.cuh"

namespace lc::kernels {

// Pairs that the device holds at a time, each block with `threads` and `shared_bytes` of dynamic memory.
template <class Kernel>
int pairs_at_a_time(Kernel* kernel, int threads, int shared_bytes) {
    allow_shared_memory(kernel, shared_bytes);
    cudaLaunchAttribute pair{};
    pair.id = cudaLaunchAttributeClusterDimension;
    pair.val.clusterDim = {2, 1, 1};
    cudaLaunchConfig_t config{};
    config.gridDim = dim3(2), config.blockDim = dim3(static_cast<unsigned>(threads));
    config.dynamicSmemBytes = static_cast<size_t>(shared_bytes), config.attrs = &pair, config.numAttrs = 1;
    int count = 0;
    LC_CUDA(cudaOccupancyMaxActiveClusters(&count, kernel, &config));
    return count;
}

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

// Of a ring of stages that both blocks fill for both, and that `Warps` of each read.
template <int Stages, int Warps>
struct PairBarriers {
    Barrier full[Stages], free[Stages];
    __device__ void init() {
        for (int i = 0; i < Stages; ++i) full[i].init(1), free[i].init(2 * Warps);
        fence_barriers();
    }
};

// One warp is done with a stage, whose `free` barrier both blocks wait at: either may write it again once all warps of both are.
__device__ __forceinline__ void release_pair(Barrier& free) {
    __syncwarp();
    if (threadIdx.x % kWarp < 2) free.arrive_at(threadIdx.x % kWarp);
}

// Four lanes of a quad hold columns 2t, 2t+1 of four tiles of eight; afterwards lane t holds all of tile t.
__device__ __forceinline__ uint4 gather_quad(uint32_t (&v)[4]) {
    const int t = threadIdx.x % 4;
#pragma unroll
    for (int bit = 1; bit < 4; bit *= 2)
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            if (i & bit) continue;
            const bool upper = t & bit;
            const uint32_t got = __shfl_xor_sync(0xffffffffu, upper ? v[i] : v[i | bit], bit);
            (upper ? v[i] : v[i | bit]) = got;
        }
    return make_uint4(v[0], v[1], v[2], v[3]);
}

#endif

}  // namespace lc::kernels
