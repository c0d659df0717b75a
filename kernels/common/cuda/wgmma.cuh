// Tensor cores the Hopper way (sm_90a): wgmma. Four consecutive warps, a warpgroup, multiply tiles that lie in shared
// memory and go on with other work while the product is made.
//
//   C [64,N] (+)= A [64,16] B [16,N]    bf16 operands, f32 accumulators in registers, N = 64, 128 or 256
//
//   float c[N / 2];                                             // of one thread, see below
//   wgmma_fence();                                              // ordinary code wrote c and register operands
//   for (int k = 0; k < K; k += 16)
//       wgmma_ss<Major::K>(c, k_major(a) + k, k_major(b) + k, k > 0);        // false: C = A B, without what was in C
//   wgmma_commit();                                             // closes a group
//   wgmma_wait<0>();                                            // all groups but the 0 newest are finished
//   wgmma_settle(c);                                            // the compiler reads c after this line only
//
// Until the wait nobody may touch c, register operands or the tiles. All four warps execute every one of these lines.
//
// TILES        WgmmaTile: [Rows, Columns] of bf16 as panels of 64 columns, one after another; a panel is Rows rows of
//              128 bytes and starts at a multiple of 1024. Chunk c (16 bytes) of row r lies at c ^ (r % 8): 128-byte
//              swizzle of TMA and wgmma. An operand is a tile [M or N, K] (K-major) or [K, M or N] (MN-major).
// ACCUMULATOR  Warp w has rows 16 w .. 16 w + 15. Lane 4 g + t:  c[4 j + e] = C[g][8 j + 2 t + e],  c[4 j + 2 + e] the
//              same of row g + 8. Columns 16 i .. 16 i + 15, rounded, are a register operand A as they stand.
// COMPILER     ptxas says in notes C7510 to C7520 that it serialized products: too few registers, a call or a divergent
//              branch between issue and wait. It moves a wait up past arithmetic, though not past a branch.
// SOURCE       PTX ISA, "Asynchronous Warpgroup Level Matrix Multiply-Accumulate Instructions" (9.7.15 in version 8.7);
//              the sections named below are its parts.
#pragma once
#include "kernels/common/cuda/mma.cuh"

namespace lc::kernels {

inline constexpr int kWarpgroup = 128;  // threads

// A tile in shared memory, or part of one: `data` is moved by rows or panels.
template <int Rows, int Columns>
struct WgmmaTile {
    static_assert(Rows % 8 == 0 && Columns % 64 == 0, "the swizzle permutes 8 chunks of 8 elements over 8 rows");
    static constexpr int kRows = Rows, kColumns = Columns, kPanel = Rows * 64, kBytes = Rows * Columns * 2;

    __nv_bfloat16* data;

    // Element (row, column), column a multiple of 8: the start of its chunk.
    __device__ __forceinline__ __nv_bfloat16* chunk(int row, int column) const {
        return data + column / 64 * kPanel + row * 64 + ((column / 8 % 8) ^ (row % 8)) * 8;
    }
};

// --- matrix descriptors ("Matrix Descriptor Format", "Strides": which offset is which) ---

enum class Major { K, MN };

// bits 0-13 address, 16-29 leading offset, 32-45 stride offset, all in units of 16 bytes; 62-63 swizzle, 1 = 128 bytes.
// The stride offset, from 8 rows to the next 8, is 1024 bytes in every panel: only the lower half varies, and moves by
// adding.
struct WgmmaDescriptor {
    uint32_t low;

    __device__ __forceinline__ WgmmaDescriptor(const __nv_bfloat16* start, int leading_bytes)
        : low((shared_address(start) & 0x3ffff) >> 4 | static_cast<uint32_t>(leading_bytes / 16) << 16) {}
    __device__ __forceinline__ explicit WgmmaDescriptor(uint32_t bits) : low(bits) {}
    __device__ __forceinline__ WgmmaDescriptor operator+(int elements) const {
        return WgmmaDescriptor(low + elements / 8);
    }
    __device__ __forceinline__ uint64_t bits() const {
        constexpr uint64_t kHigh = uint64_t{1} << 30 | 1024 / 16;
        return kHigh << 32 | low;
    }
};

// A tile [M or N, K], rows from `row` (a multiple of 8) on. Leading: not used. Column k (a multiple of 16) is k_offset
// further: a step inside a panel moves the start within the swizzled 128 bytes, which address bits undo.
template <int Rows, int Columns>
__device__ __forceinline__ WgmmaDescriptor k_major(const WgmmaTile<Rows, Columns>& tile, int row = 0) {
    return {tile.data + row * 64, 16};
}
template <class Tile>
constexpr int k_offset(int k) {
    return k / 64 * Tile::kPanel + k % 64;
}
// A tile [K, M or N]. Leading: from 64 columns to the next. Row k (a multiple of 16) is 64 k elements further.
template <int Rows, int Columns>
__device__ __forceinline__ WgmmaDescriptor mn_major(const WgmmaTile<Rows, Columns>& tile) {
    return {tile.data, tile.kPanel * 2};
}

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

// --- order ("wgmma.fence", "wgmma.commit_group", "wgmma.wait_group") ---

__device__ __forceinline__ void wgmma_fence() {
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
__device__ __forceinline__ void wgmma_commit() {
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
template <int Pending>
__device__ __forceinline__ void wgmma_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(Pending) : "memory");
}
template <int Count>
__device__ __forceinline__ void wgmma_settle(float (&c)[Count]) {
#pragma unroll
    for (float& x : c) asm volatile("" : "+f"(x)::"memory");
}
// By each writer, before a barrier: wgmma and TMA after the barrier see its ordinary writes to shared memory
// ("Async Proxy").
__device__ __forceinline__ void fence_async_proxy() {
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

// --- the product ("wgmma.mma_async", "Register Fragments and Shared Memory Matrix Layouts") ---
// Operands of the instruction: accumulators, A (descriptor or four registers), B's descriptor, a predicate that keeps
// what is in C, signs of A and B, and for operands in shared memory whether they are transposed.

// clang-format off
#define LC_WGMMA_C4(i) "+f"(c[i]), "+f"(c[i + 1]), "+f"(c[i + 2]), "+f"(c[i + 3])
#define LC_WGMMA_C16(i) LC_WGMMA_C4(i), LC_WGMMA_C4(i + 4), LC_WGMMA_C4(i + 8), LC_WGMMA_C4(i + 12)
#define LC_WGMMA_C32(i) LC_WGMMA_C16(i), LC_WGMMA_C16(i + 16)
#define LC_WGMMA_D16 "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15"
#define LC_WGMMA_D32                                                    \
    "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, " \
    "%15, %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, " \
    "%28, %29, %30, %31"
#define LC_WGMMA_D48 \
    LC_WGMMA_D32 ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47"
#define LC_WGMMA_D64 \
    LC_WGMMA_D48 ", %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define LC_WGMMA_D96 LC_WGMMA_D64 ", "                                   \
    "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, " \
    "%77, %78, %79, %80, %81, %82, %83, %84, %85, %86, %87, %88, %89, " \
    "%90, %91, %92, %93, %94, %95"
#define LC_WGMMA_D128 LC_WGMMA_D96 ", "                                  \
    "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, "    \
    "%107, %108, %109, %110, %111, %112, %113, %114, %115, %116, "      \
    "%117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"
// clang-format on

// C [64,8], [64,32], [64,64], [64,96], [64,128], [64,192] or [64,256] (A K-major) (+)= A B, both from shared memory.
template <Major B, Major A = Major::K>
__device__ __forceinline__ void wgmma_ss(float (&c)[4], WgmmaDescriptor a, WgmmaDescriptor b, bool add) {
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %6, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 {%0, %1, %2, %3}, %4, %5, p, 1, 1, %7, %8;\n}"
        : LC_WGMMA_C4(0)
        : "l"(a.bits()), "l"(b.bits()), "r"(static_cast<int>(add)), "n"(A == Major::MN ? 1 : 0),
          "n"(B == Major::MN ? 1 : 0));
}
template <Major B, Major A = Major::K>
__device__ __forceinline__ void wgmma_ss(float (&c)[16], WgmmaDescriptor a, WgmmaDescriptor b, bool add) {
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %18, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n32k16.f32.bf16.bf16 {" LC_WGMMA_D16 "}, %16, %17, p, 1, 1, %19, %20;\n}"
        : LC_WGMMA_C16(0)
        : "l"(a.bits()), "l"(b.bits()), "r"(static_cast<int>(add)), "n"(A == Major::MN ? 1 : 0),
          "n"(B == Major::MN ? 1 : 0));
}
template <Major B, Major A = Major::K>
__device__ __forceinline__ void wgmma_ss(float (&c)[32], WgmmaDescriptor a, WgmmaDescriptor b, bool add) {
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %34, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {" LC_WGMMA_D32 "}, %32, %33, p, 1, 1, %35, %36;\n}"
        : LC_WGMMA_C32(0)
        : "l"(a.bits()), "l"(b.bits()), "r"(static_cast<int>(add)), "n"(A == Major::MN ? 1 : 0),
          "n"(B == Major::MN ? 1 : 0));
}
template <Major B, Major A = Major::K>
__device__ __forceinline__ void wgmma_ss(float (&c)[48], WgmmaDescriptor a, WgmmaDescriptor b, bool add) {
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %50, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n96k16.f32.bf16.bf16 {" LC_WGMMA_D48 "}, %48, %49, p, 1, 1, %51, %52;\n}"
        : LC_WGMMA_C32(0), LC_WGMMA_C16(32)
        : "l"(a.bits()), "l"(b.bits()), "r"(static_cast<int>(add)), "n"(A == Major::MN ? 1 : 0),
          "n"(B == Major::MN ? 1 : 0));
}
template <Major B, Major A = Major::K>
__device__ __forceinline__ void wgmma_ss(float (&c)[64], WgmmaDescriptor a, WgmmaDescriptor b, bool add) {
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %66, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {" LC_WGMMA_D64 "}, %64, %65, p, 1, 1, %67, %68;\n}"
        : LC_WGMMA_C32(0), LC_WGMMA_C32(32)
        : "l"(a.bits()), "l"(b.bits()), "r"(static_cast<int>(add)), "n"(A == Major::MN ? 1 : 0),
          "n"(B == Major::MN ? 1 : 0));
}
template <Major B, Major A = Major::K>
__device__ __forceinline__ void wgmma_ss(float (&c)[96], WgmmaDescriptor a, WgmmaDescriptor b, bool add) {
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %98, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n192k16.f32.bf16.bf16 {" LC_WGMMA_D96 "}, %96, %97, p, 1, 1, %99, %100;\n}"
        : LC_WGMMA_C32(0), LC_WGMMA_C32(32), LC_WGMMA_C32(64)
        : "l"(a.bits()), "l"(b.bits()), "r"(static_cast<int>(add)), "n"(A == Major::MN ? 1 : 0),
          "n"(B == Major::MN ? 1 : 0));
}
template <Major B>
__device__ __forceinline__ void wgmma_ss(float (&c)[128], WgmmaDescriptor a, WgmmaDescriptor b, bool add) {
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %130, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n256k16.f32.bf16.bf16 {" LC_WGMMA_D128 "}, %128, %129, p, 1, 1, 0, %131;\n}"
        : LC_WGMMA_C32(0), LC_WGMMA_C32(32), LC_WGMMA_C32(64), LC_WGMMA_C32(96)
        : "l"(a.bits()), "l"(b.bits()), "r"(static_cast<int>(add)), "n"(B == Major::MN ? 1 : 0));
}
// The same with A in registers, N = 64 or 128.
template <Major B>
__device__ __forceinline__ void wgmma_rs(float (&c)[32], const FragmentA& a, WgmmaDescriptor b, bool add) {
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %37, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {" LC_WGMMA_D32
        "}, {%32, %33, %34, %35}, %36, p, 1, 1, %38;\n}"
        : LC_WGMMA_C32(0)
        : "r"(a.r[0]), "r"(a.r[1]), "r"(a.r[2]), "r"(a.r[3]), "l"(b.bits()), "r"(static_cast<int>(add)),
          "n"(B == Major::MN ? 1 : 0));
}
template <Major B>
__device__ __forceinline__ void wgmma_rs(float (&c)[64], const FragmentA& a, WgmmaDescriptor b, bool add) {
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %69, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {" LC_WGMMA_D64
        "}, {%64, %65, %66, %67}, %68, p, 1, 1, %70;\n}"
        : LC_WGMMA_C32(0), LC_WGMMA_C32(32)
        : "r"(a.r[0]), "r"(a.r[1]), "r"(a.r[2]), "r"(a.r[3]), "l"(b.bits()), "r"(static_cast<int>(add)),
          "n"(B == Major::MN ? 1 : 0));
}
#undef LC_WGMMA_D128
#undef LC_WGMMA_D96
#undef LC_WGMMA_D64
#undef LC_WGMMA_D48
#undef LC_WGMMA_D32
#undef LC_WGMMA_D16
#undef LC_WGMMA_C32
#undef LC_WGMMA_C16
#undef LC_WGMMA_C4

// --- products of whole tiles; fence before, commit after ---

// C = A B^T: 64 rows of A [M,K] from `row` on, B [N,K].
template <int N, int M, int K>
__device__ __forceinline__ void multiply_rows(float (&c)[N / 2], const WgmmaTile<M, K>& a, int row,
                                              const WgmmaTile<N, K>& b) {
    const WgmmaDescriptor left = k_major(a, row), right = k_major(b);
#pragma unroll
    for (int k = 0; k < K; k += 16)
        wgmma_ss<Major::K>(c, left + k_offset<WgmmaTile<M, K>>(k), right + k_offset<WgmmaTile<N, K>>(k), k > 0);
}
// C = A B^T with A [64,K] in registers, B [N,K].
template <int N, int K>
__device__ __forceinline__ void multiply_rows(float (&c)[N / 2], const FragmentA (&a)[K / 16],
                                              const WgmmaTile<N, K>& b) {
    const WgmmaDescriptor right = k_major(b);
#pragma unroll
    for (int k = 0; k < K; k += 16) wgmma_rs<Major::K>(c, a[k / 16], right + k_offset<WgmmaTile<N, K>>(k), k > 0);
}
// C += A B with A [64,K] in registers, B [K,N].
template <int K, int N>
__device__ __forceinline__ void accumulate_rows(float (&c)[N / 2], const FragmentA (&a)[K / 16],
                                                const WgmmaTile<K, N>& b) {
    const WgmmaDescriptor right = mn_major(b);
#pragma unroll
    for (int k = 0; k < K; k += 16) wgmma_rs<Major::MN>(c, a[k / 16], right + 64 * k, true);
}

#endif

#if __CUDA_ARCH__ >= 900

// Four 8 x 8 matrices to shared memory, the reverse of ldmatrix ("stmatrix"); lane l gives the address of row l % 8 of matrix l / 8.
__device__ __forceinline__ void store_matrices(const uint32_t (&r)[4], __nv_bfloat16* row) {
    asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1,%2,%3,%4};" ::"r"(shared_address(row)), "r"(r[0]),
                 "r"(r[1]), "r"(r[2]), "r"(r[3])
                 : "memory");
}
__device__ __forceinline__ void store_matrices_transposed(const uint32_t (&r)[4], __nv_bfloat16* row) {
    asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1,%2,%3,%4};" ::"r"(shared_address(row)),
                 "r"(r[0]), "r"(r[1]), "r"(r[2]), "r"(r[3])
                 : "memory");
}

#endif

// Columns 16 i .. 16 i + 15 of an accumulator, rounded to bf16, as A of the next product.
template <int Count>
__device__ __forceinline__ FragmentA wgmma_operand(const float (&c)[Count], int i) {
    const float* from = c + 8 * i;
    return {{pack_bf16(from[0], from[1]), pack_bf16(from[2], from[3]), pack_bf16(from[4], from[5]),
             pack_bf16(from[6], from[7])}};
}
#if __CUDA_ARCH__ >= 900

// Columns 16 i .. 16 i + 15 of a result [64,N], as wgmma_operand rounds them, into the same columns of a tile [64,N] ...
template <int Rows, int Columns>
__device__ __forceinline__ void store_operand(const WgmmaTile<Rows, Columns>& tile, const FragmentA& a, int i) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x % kWarpgroup / 32;
    store_matrices(a.r, tile.chunk(16 * warp + lane % 16, 16 * i + lane / 16 * 8));
}
// ... or, transposed, into rows 16 i .. 16 i + 15 of a tile [N,64].
template <int Rows, int Columns>
__device__ __forceinline__ void store_operand_transposed(const WgmmaTile<Rows, Columns>& tile, const FragmentA& a,
                                                         int i) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x % kWarpgroup / 32;
    store_matrices_transposed(a.r, tile.chunk(16 * i + lane % 8 + lane / 16 * 8, 16 * warp + lane / 8 % 2 * 8));
}

#endif

// A [64, 16] of this warpgroup from a tile [M, K], through registers: rows from `row`, columns from k.
template <int Rows, int Columns>
__device__ __forceinline__ FragmentA load_wgmma_a(const WgmmaTile<Rows, Columns>& tile, int row, int k) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x % kWarpgroup / 32;
    FragmentA a;
    ldmatrix(a.r, tile.chunk(row + 16 * warp + lane % 16, k + lane / 16 * 8));
    return a;
}

}  // namespace lc::kernels
