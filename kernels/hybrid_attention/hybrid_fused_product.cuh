// Products of a warpgroup as the fused kernels write them.
//
//   C [64,N] (+)= A B       bf16 operands in shared memory (WgmmaTile), f32 accumulators, N = 32, 64 or 128
//
//   float c[N / 2];                                        // this thread's share, as wgmma.cuh has it
//   begin_products();
//   multiply<K, Major::MN>(c, a, 0, b, 0, false);          // A [64,K] from a column on; B [K,N] (MN) or [N,K] (K) from a place on
//   end_products();                                        // closes a group; wgmma works on
//   wait_products<0>(c);                                   // all groups but the newest 0 are done: their c may be touched
//
// A transposed goes through registers (load_transposed, multiply_transposed), which the wait must name too: they are the
// hardware's until then. All warps of the warpgroup call; what wgmma reads was written before publish_barrier.
#pragma once
#include "kernels/common/cuda/wgmma.cuh"

namespace lc::kernels {

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

// Row of this warp among its warpgroup's 64.
__device__ __forceinline__ int warp_row() {
    return static_cast<int>(threadIdx.x) % kWarpgroup / 32 * 16;
}
__device__ __forceinline__ int warpgroup() {
    return static_cast<int>(threadIdx.x) / kWarpgroup;
}

// A^T: this warp's 16 rows, which are columns of a tile [K,M], k from `row` on.
template <int K, class Tile>
__device__ __forceinline__ void load_transposed(FragmentA (&a)[K / 16], const Tile& tile, int row, int column) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int k = 0; k < K; k += 16)
        ldmatrix_transposed(a[k / 16].r,
                            tile.chunk(row + k + lane % 8 + lane / 16 * 8, column + warp_row() + lane / 8 % 2 * 8));
}

#define LC_C16                                                                                                  \
    "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]), "+f"(c[4]), "+f"(c[5]), "+f"(c[6]), "+f"(c[7]), "+f"(c[8]), \
        "+f"(c[9]), "+f"(c[10]), "+f"(c[11]), "+f"(c[12]), "+f"(c[13]), "+f"(c[14]), "+f"(c[15])
#define LC_D16 "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15"

// wgmma.cuh for N = 32.
template <Major B>
__device__ __forceinline__ void wgmma_ss(float (&c)[16], WgmmaDescriptor a, WgmmaDescriptor b, bool add) {
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %18, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n32k16.f32.bf16.bf16 {" LC_D16 "}, %16, %17, p, 1, 1, 0, %19;\n}"
        : LC_C16
        : "l"(a.bits()), "l"(b.bits()), "r"(static_cast<int>(add)), "n"(B == Major::MN ? 1 : 0));
}
template <Major B>
__device__ __forceinline__ void wgmma_rs(float (&c)[16], const FragmentA& a, WgmmaDescriptor b, bool add) {
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %21, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n32k16.f32.bf16.bf16 {" LC_D16 "}, {%16, %17, %18, %19}, %20, p, 1, 1, %22;\n}"
        : LC_C16
        : "r"(a.r[0]), "r"(a.r[1]), "r"(a.r[2]), "r"(a.r[3]), "l"(b.bits()), "r"(static_cast<int>(add)),
          "n"(B == Major::MN ? 1 : 0));
}
#undef LC_D16
#undef LC_C16

__device__ __forceinline__ void begin_products() {
    wgmma_fence();
}
__device__ __forceinline__ void end_products() {
    wgmma_commit();
}
template <int Count>
__device__ __forceinline__ void wgmma_settle(FragmentA (&a)[Count]) {
#pragma unroll
    for (FragmentA& x : a) asm volatile("" : "+r"(x.r[0]), "+r"(x.r[1]), "+r"(x.r[2]), "+r"(x.r[3])::"memory");
}
template <int Pending, class... Operands>
__device__ __forceinline__ void wait_products(Operands&... operands) {
    wgmma_wait<Pending>();
    (wgmma_settle(operands), ...);
}
// A barrier of the block after which wgmma sees what all threads wrote to shared memory.
__device__ __forceinline__ void publish_barrier() {
    fence_async_proxy();
    __syncthreads();
}

// B from row (Major::K) or column (Major::MN) `place` on, a multiple of 32.
template <Major B, class Tile>
__device__ __forceinline__ WgmmaDescriptor descriptor_of(const Tile& b, int place) {
    if constexpr (B == Major::K)
        return k_major(b, place);
    else
        return mn_major(b) + (place / 64 * Tile::kPanel + place % 64);
}
template <Major B, class Tile>
constexpr int step_of(int k) {
    return B == Major::K ? k_offset<Tile>(k) : 64 * k;
}

template <int K, Major B, int Count, class TileA, class TileB>
__device__ __forceinline__ void multiply(float (&c)[Count], const TileA& a, int column, const TileB& b, int place,
                                         bool add) {
    const WgmmaDescriptor left = k_major(a) + k_offset<TileA>(column), right = descriptor_of<B>(b, place);
#pragma unroll
    for (int k = 0; k < K; k += 16)
        wgmma_ss<B>(c, left + k_offset<TileA>(k), right + step_of<B, TileB>(k), add || k > 0);
}
template <int K, Major B, int Count, class TileB>
__device__ __forceinline__ void multiply_transposed(float (&c)[Count], const FragmentA (&a)[K / 16], const TileB& b,
                                                    int place, bool add) {
    const WgmmaDescriptor right = descriptor_of<B>(b, place);
#pragma unroll
    for (int k = 0; k < K; k += 16) wgmma_rs<B>(c, a[k / 16], right + step_of<B, TileB>(k), add || k > 0);
}

#endif

}  // namespace lc::kernels
