// Kernels whose warpgroups have roles (sm_90a): tiles handed from role to role through barriers in shared memory.
//
// A stage of a ring of tiles has a barrier `full` (the tile is there) and a barrier `free` (every reader is done with it). At
// `free` one thread of each warp arrives (release) where wgmma alone reads the tile, and every thread where ordinary
// loads do: compute-sanitizer's racecheck cannot follow the former.
#pragma once
#include "kernels/common/cuda/reduce.cuh"
#include "kernels/common/cuda/tma.cuh"

namespace lc::kernels {

inline constexpr int kSharedLimit = 227 * 1024, kTileAlignment = 1024;

// Of the calling thread's current device.
inline int multiprocessors() {
    int device = 0, count = 0;
    LC_CUDA(cudaGetDevice(&device));
    LC_CUDA(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device));
    return count;
}

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

__device__ __forceinline__ __nv_bfloat16* aligned_shared(unsigned char* shared) {
    const uint32_t past = shared_address(shared) % kTileAlignment;
    return reinterpret_cast<__nv_bfloat16*>(shared + (past == 0 ? 0 : kTileAlignment - past));
}

// Which stage of a ring comes next, and the parity of its barriers.
template <int Stages>
struct Turn {
    int stage = 0, phase = 0;
    __device__ __forceinline__ void next() {
        if (++stage == Stages) stage = 0, phase ^= 1;
    }
};

// One warp is done with the tile.
__device__ __forceinline__ void release(Barrier& free) {
    __syncwarp();
    if (threadIdx.x % kWarp == 0) free.arrive();
}

// The same in all threads of a warp, and the compiler knows it.
__device__ __forceinline__ int warpgroup_index() {
    return __shfl_sync(0xffffffffu, static_cast<int>(threadIdx.x) / kWarpgroup, 0);
}
// Row of the warpgroup's accumulators that c[0] lies in; c[2] lies eight below.
__device__ __forceinline__ int accumulator_row() {
    return threadIdx.x % kWarpgroup / kWarp * 16 + threadIdx.x % kWarp / 4;
}

#endif

}  // namespace lc::kernels
