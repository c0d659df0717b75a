// What the low-rank kernels share: products of a wide bf16 matrix with 8 to 64 ranks on mma.sync tiles, straight from global
// memory in 16-byte loads. Which k or n a register of an operand stands for may be chosen, as long as both operands agree.
// g = lane / 4, t = lane % 4 throughout.
#pragma once
#include "kernels/common/cuda/mma.cuh"
#include "kernels/common/cuda/reduce.cuh"
#include "kernels/lora_linear/low_rank.cuh"

namespace lc::kernels {

using bf16x8 = uint4;  // a run, as four pairs

__device__ __forceinline__ bf16x8 load_if(bool inside, const __nv_bfloat16* from) {
    return inside ? *reinterpret_cast<const bf16x8*>(from) : bf16x8{};
}
__device__ __forceinline__ const __nv_bfloat16* row_of(const RowElements& matrix, int64_t row) {
    return reinterpret_cast<const __nv_bfloat16*>(matrix.elements.base) + row * matrix.stride;
}

// pairs[i] = (first[i], second[i]): runs of two rows as the right operands of eight tiles.
__device__ __forceinline__ void interleave(const bf16x8& first, const bf16x8& second, uint32_t (&pairs)[kRun]) {
    const uint32_t a[4] = {first.x, first.y, first.z, first.w}, b[4] = {second.x, second.y, second.z, second.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        pairs[2 * i] = __byte_perm(a[i], b[i], 0x5410);
        pairs[2 * i + 1] = __byte_perm(a[i], b[i], 0x7632);
    }
}

// Tiles of eight columns that deal out 64 columns: column g of tile i is element i of this run of the 64. Results 0, 1 of a lane
// (columns 2t, 2t+1 of a tile) are then runs t and 4 + t, so that four lanes store 64 bytes side by side.
__device__ __forceinline__ int run_of_column(int g) {
    return g % 2 * 4 + g / 2;
}

}  // namespace lc::kernels
