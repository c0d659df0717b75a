// Tensor cores the portable way (sm_80 and newer): mma.sync.m16n8k16 on bf16 with f32 accumulators, ldmatrix, cp.async.
//
// A warp multiplies fragments: registers spread over its 32 lanes. Lane l has g = l / 4 and t = l % 4.
//
//   FragmentA     16 x 16 of A [M,K]              loaded by load_a, load_a_transposed, or made of two accumulators by as_a
//   FragmentB     16 x 16 of B [K,N]: two tiles of eight columns, registers 0-1 and 2-3; load_b, load_b_transposed
//   Accumulator   16 x 8 of C:  c[0], c[1] = C[g][2t], C[g][2t+1]     c[2], c[3] = C[g+8][2t], C[g+8][2t+1]
//
//   FragmentA a = load_a(q, row, k);            // q    SharedTile of [M,K]
//   FragmentB b = load_b(keys, column, k);      // keys SharedTile of [N,K]: C = A keys^T
//   mma(c[0], a, b, 0), mma(c[1], a, b, 1);     // columns column .. column+7 and column+8 .. column+15
//
// `load_x_transposed` reads a tile stored the other way round: load_b_transposed from [K,N] (C = A values),
// load_a_transposed from [K,M] (C = A^T ...). as_a turns two neighbouring 16 x 8 results into the 16 x 16 operand of the next
// product without touching shared memory; rows and columns stay what they were. as_b makes the right operand of the transpose.
//
// SOURCE  PTX ISA, "Matrix Fragments for mma.m16n8k16" and "ldmatrix".
#pragma once
#include <cuda_bf16.h>

#include <cstdint>

namespace lc::kernels {

__device__ __forceinline__ uint32_t shared_address(const void* pointer) {
    return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

// --- copies from global to shared memory that run beside the arithmetic ---

// Queues 16 bytes; writes zeros, reading nothing, where `valid` is false. Both addresses must be multiples of 16.
__device__ __forceinline__ void copy_async(void* to_shared, const void* from_global, bool valid = true) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to_shared)), "l"(from_global),
                 "r"(valid ? 16 : 0)
                 : "memory");
}
// Ends a group of copies of this thread.
__device__ __forceinline__ void copy_async_commit() {
    asm volatile("cp.async.commit_group;" ::: "memory");
}
// Waits until at most the last `Pending` groups of this thread are under way. Other threads' copies are visible after the
// __syncthreads() that must follow.
template <int Pending>
__device__ __forceinline__ void copy_async_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(Pending) : "memory");
}

// --- tiles in shared memory ---

// [Rows, Columns] of bf16, row-major in chunks of 16 bytes. Chunk c of row r lies at c ^ (r % 8): the eight rows of an ldmatrix,
// which read one column of chunks, and the chunks of one row, which copies write, both touch all 32 banks once.
template <int Columns>
struct SharedTile {
    static_assert(Columns % 64 == 0, "the swizzle permutes eight chunks of eight elements");
    static constexpr int kColumns = Columns, kChunks = Columns / 8;
    static constexpr int bytes(int rows) { return rows * Columns * 2; }

    __nv_bfloat16* data;

    // Element (row, column), column a multiple of 8: the start of its chunk.
    __device__ __forceinline__ __nv_bfloat16* chunk(int row, int column) const {
        return data + row * Columns + (((column / 8) ^ (row % 8)) * 8);
    }
    // Any element.
    __device__ __forceinline__ __nv_bfloat16* at(int row, int column) const { return chunk(row, column) + column % 8; }
};

// Queues the copy of rows [first, first + Rows) of a matrix with `rows` rows, `stride` elements apart, into a tile. Rows outside,
// before the first too, become zeros. All `Threads` threads of the block call; row starts must be multiples of 16 bytes.
template <int Rows, int Threads, int Columns>
__device__ __forceinline__ void copy_tile_async(const SharedTile<Columns>& tile, const __nv_bfloat16* matrix,
                                                int64_t stride, int64_t first, int64_t rows) {
    constexpr int kChunks = SharedTile<Columns>::kChunks;
    static_assert(Rows * kChunks % Threads == 0, "every thread copies the same number of chunks");
#pragma unroll
    for (int i = 0; i < Rows * kChunks / Threads; ++i) {
        const int chunk = i * Threads + static_cast<int>(threadIdx.x), row = chunk / kChunks,
                  column = chunk % kChunks * 8;
        const bool valid = static_cast<uint64_t>(first + row) < static_cast<uint64_t>(rows);
        copy_async(tile.chunk(row, column), matrix + (valid ? (first + row) * stride + column : 0), valid);
    }
}

// --- fragments ---

struct FragmentA {
    uint32_t r[4];
};
struct FragmentB {
    uint32_t r[4];
};
struct Accumulator {
    float c[4];
};

// Two floats as bf16, the first in the lower half, rounded to nearest even.
__device__ __forceinline__ uint32_t pack_bf16(float low, float high) {
    const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
    return *reinterpret_cast<const uint32_t*>(&pair);
}

__device__ __forceinline__ float2 unpack_bf16(uint32_t pair) {
    return make_float2(__uint_as_float(pair << 16), __uint_as_float(pair & 0xffff0000u));
}

// Four 8 x 8 matrices; lane l gives the address of row l % 8 of matrix l / 8.
__device__ __forceinline__ void ldmatrix(uint32_t (&r)[4], const __nv_bfloat16* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
}
__device__ __forceinline__ void ldmatrix_transposed(uint32_t (&r)[4], const __nv_bfloat16* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
}

// A[m.., k..] from a tile [M,K].
template <int Columns>
__device__ __forceinline__ FragmentA load_a(const SharedTile<Columns>& tile, int m, int k) {
    const int lane = threadIdx.x % 32;
    FragmentA a;
    ldmatrix(a.r, tile.chunk(m + lane % 16, k + lane / 16 * 8));
    return a;
}
// A[m.., k..] from a tile [K,M].
template <int Columns>
__device__ __forceinline__ FragmentA load_a_transposed(const SharedTile<Columns>& tile, int m, int k) {
    const int lane = threadIdx.x % 32;
    FragmentA a;
    ldmatrix_transposed(a.r, tile.chunk(k + lane % 8 + lane / 16 * 8, m + lane / 8 % 2 * 8));
    return a;
}
// B[k.., n..] from a tile [N,K].
template <int Columns>
__device__ __forceinline__ FragmentB load_b(const SharedTile<Columns>& tile, int n, int k) {
    const int lane = threadIdx.x % 32;
    FragmentB b;
    ldmatrix(b.r, tile.chunk(n + lane % 8 + lane / 16 * 8, k + lane / 8 % 2 * 8));
    return b;
}
// B[k.., n..] from a tile [K,N].
template <int Columns>
__device__ __forceinline__ FragmentB load_b_transposed(const SharedTile<Columns>& tile, int n, int k) {
    const int lane = threadIdx.x % 32;
    FragmentB b;
    ldmatrix_transposed(b.r, tile.chunk(k + lane % 16, n + lane / 16 * 8));
    return b;
}

// Columns 0-7 and 8-15 of a 16 x 16 result, rounded to bf16.
__device__ __forceinline__ FragmentA as_a(const Accumulator& left, const Accumulator& right) {
    return {{pack_bf16(left.c[0], left.c[1]), pack_bf16(left.c[2], left.c[3]), pack_bf16(right.c[0], right.c[1]),
             pack_bf16(right.c[2], right.c[3])}};
}

// The same 16 x 16 result R as the operand B = R^T of a product over R's columns.
__device__ __forceinline__ FragmentB as_b(const Accumulator& left, const Accumulator& right) {
    return {{pack_bf16(left.c[0], left.c[1]), pack_bf16(right.c[0], right.c[1]), pack_bf16(left.c[2], left.c[3]),
             pack_bf16(right.c[2], right.c[3])}};
}

// c += a b[:, 8 half .. 8 half + 7]
__device__ __forceinline__ void mma(Accumulator& c, const FragmentA& a, const FragmentB& b, int half) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c.c[0]), "+f"(c.c[1]), "+f"(c.c[2]), "+f"(c.c[3])
        : "r"(a.r[0]), "r"(a.r[1]), "r"(a.r[2]), "r"(a.r[3]), "r"(b.r[2 * half]), "r"(b.r[2 * half + 1]));
}

}  // namespace lc::kernels
