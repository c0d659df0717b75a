// Sums and maxima over a warp or a block, in a fixed order: the same bits in every run.
#pragma once
#include <cuda_runtime.h>

namespace lc::kernels {

inline constexpr int kWarp = 32;

template <int Width = kWarp>
__device__ __forceinline__ float warp_sum(float value) {
#pragma unroll
    for (int step = Width / 2; step > 0; step /= 2) value += __shfl_xor_sync(0xffffffffu, value, step, Width);
    return value;
}

template <int Width = kWarp>
__device__ __forceinline__ double warp_sum(double value) {
#pragma unroll
    for (int step = Width / 2; step > 0; step /= 2) value += __shfl_xor_sync(0xffffffffu, value, step, Width);
    return value;
}

template <int Width = kWarp>
__device__ __forceinline__ float warp_max(float value) {
#pragma unroll
    for (int step = Width / 2; step > 0; step /= 2)
        value = fmaxf(value, __shfl_xor_sync(0xffffffffu, value, step, Width));
    return value;
}

// Every thread gets the sum (maximum) over the block. blockDim.x must be a multiple of 32 and at most 1024. May be called
// repeatedly: it ends with a barrier.
template <class T>
__device__ T block_sum(T value) {
    __shared__ T parts[kWarp];
    const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, warps = blockDim.x / kWarp;
    value = warp_sum(value);
    if (lane == 0) parts[warp] = value;
    __syncthreads();
    const T total = warp_sum(lane < warps ? parts[lane] : T{0});
    __syncthreads();
    return total;
}

// block_sum with one barrier, for loops: `parts` must alternate between two arrays from call to call, and all Warps warps take part.
template <int Warps>
__device__ __forceinline__ float block_sum(float value, float (&parts)[Warps]) {
    value = warp_sum(value);
    if (threadIdx.x % kWarp == 0) parts[threadIdx.x / kWarp] = value;
    __syncthreads();
    float total = 0;
#pragma unroll
    for (int w = 0; w < Warps; ++w) total += parts[w];
    return total;
}

__device__ inline float block_max(float value) {
    __shared__ float parts[kWarp];
    const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, warps = blockDim.x / kWarp;
    value = warp_max(value);
    if (lane == 0) parts[warp] = value;
    __syncthreads();
    const float total = warp_max(lane < warps ? parts[lane] : -INFINITY);
    __syncthreads();
    return total;
}

}  // namespace lc::kernels
