// What products on pairs of blocks share (sm_90a): clusters of two whose blocks fetch operands for each other, and results that are
// stored from registers.
#pragma once
#include "kernels/common/cuda/roles.cuh"

namespace lc::kernels {

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

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
