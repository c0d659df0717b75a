// The Hopper copy engine (TMA), which reports to the barriers of cluster.cuh, and registers for warps with roles.
//
//   host     const CUtensorMap map = head_map(view);     // [B,H,T,D] bf16; in a `const __grid_constant__` argument
//            matrix_map(data, rows, columns, ...)     // [rows,columns] bf16
//   device   Barrier full;                               // shared memory; one thread: full.init(1), fence_barriers()
//            full.expect(bytes);                         // one thread
//            copy_tile(tile, map, t, h, b, full);        // one thread
//            full.wait(phase);                           // those who read the tile; phase 0, then 1, 0, ...
//
// A tile lands in the layout of WgmmaTile; rows outside [0, T) are zeros.
//
// SOURCE  PTX ISA, "cp.async.bulk", "cp.async.bulk.tensor", "setmaxnreg"; CUDA driver API,
//         cuTensorMapEncodeTiled.
#pragma once
#include <cuda.h>

#include "core/cuda/check.h"
#include "core/tensor.h"
#include "kernels/common/cuda/cluster.cuh"
#include "kernels/common/cuda/wgmma.cuh"

namespace lc::kernels {

inline constexpr int kMapRows = 64, kMapColumns = 64;  // of one copy: a swizzled row is 128 bytes

// The driver's encoder, found through the runtime: nothing links to libcuda.
inline auto tensor_map_encoder() {
    static const auto encode = [] {
        void* function = nullptr;
        cudaDriverEntryPointQueryResult result{};
#if CUDART_VERSION >= 12050
        LC_CUDA(
            cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000, cudaEnableDefault, &result));
#else
        LC_CUDA(cudaGetDriverEntryPoint("cuTensorMapEncodeTiled", &function, cudaEnableDefault, &result));
#endif
        LC_CHECK(result == cudaDriverEntryPointSuccess, "the CUDA driver has no cuTensorMapEncodeTiled");
        return reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(function);
    }();
    return encode;
}

// [B,H,T,D] in bf16, not empty, D a multiple of 64 with stride 1, other strides and the start multiples of 16 bytes.
inline CUtensorMap head_map(const TensorView& x) {
    cuuint64_t sizes[4], strides[3];
    for (int i = 0; i < 4; ++i) sizes[i] = static_cast<cuuint64_t>(x.size(3 - i));
    for (int i = 0; i < 3; ++i)  // an axis of one element may have any stride
        strides[i] = x.size(2 - i) == 1 ? sizes[0] * 2 : static_cast<cuuint64_t>(x.stride(2 - i)) * 2;
    const cuuint32_t box[4] = {kMapColumns, kMapRows, 1, 1}, steps[4] = {1, 1, 1, 1};
    CUtensorMap map;
    const CUresult result =
        tensor_map_encoder()(&map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 4, x.base + x.layout.offset * 2, sizes, strides,
                             box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                             CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    LC_CHECK(result == CUDA_SUCCESS, "cuTensorMapEncodeTiled refuses a tensor of shape {} (error {})", x.shape(),
             static_cast<int>(result));
    return map;
}

// A matrix [rows, columns] in bf16, not empty, `stride` elements from row to row; start and rows on 16 bytes. A copy takes `box_rows`
// (at most 256) rows of 64 columns: one panel of a tile. What lies outside the matrix is zeros.
inline CUtensorMap matrix_map(const void* data, int64_t rows, int64_t columns, int64_t stride, int box_rows) {
    const cuuint64_t sizes[2] = {static_cast<cuuint64_t>(columns), static_cast<cuuint64_t>(rows)};
    const cuuint64_t strides[1] = {static_cast<cuuint64_t>(stride) * 2};
    const cuuint32_t box[2] = {kMapColumns, static_cast<cuuint32_t>(box_rows)}, steps[2] = {1, 1};
    CUtensorMap map;
    const CUresult result =
        tensor_map_encoder()(&map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 2, const_cast<void*>(data), sizes, strides, box,
                             steps, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                             CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    LC_CHECK(result == CUDA_SUCCESS, "cuTensorMapEncodeTiled refuses a matrix [{},{}] of stride {} (error {})", rows,
             columns, stride, static_cast<int>(result));
    return map;
}

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

// Queues the copy of rows [t, t + Rows) of head (b, h) into a tile. One thread calls; kBytes will arrive at `full`.
template <int Rows, int Columns>
__device__ __forceinline__ void copy_tile(const WgmmaTile<Rows, Columns>& tile, const CUtensorMap& map, int t, int h,
                                          int b, Barrier& full) {
    static_assert(Rows % kMapRows == 0);
#pragma unroll
    for (int column = 0; column < Columns; column += kMapColumns)
#pragma unroll
        for (int row = 0; row < Rows; row += kMapRows)
            asm volatile(
                "cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3, "
                "%4, "
                "%5}], [%6];" ::"r"(shared_address(tile.data + column / 64 * tile.kPanel + row * 64)),
                "l"(&map), "r"(column), "r"(t + row), "r"(h), "r"(b), "r"(shared_address(&full.state))
                : "memory");
}
// Queues the copy of one panel: 64 columns from `column` of the map's box of rows from `row`.
__device__ __forceinline__ void copy_panel(__nv_bfloat16* to_shared, const CUtensorMap& map, int row, int column,
                                           Barrier& full) {
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], "
        "[%4];" ::"r"(shared_address(to_shared)),
        "l"(&map), "r"(column), "r"(row), "r"(shared_address(&full.state))
        : "memory");
}
// The same into all blocks of the cluster named by the bits of `blocks`, at this place in the shared memory of each; each one's barrier
// in the place of `full` counts the bytes.
__device__ __forceinline__ void copy_panel(__nv_bfloat16* to_shared, const CUtensorMap& map, int row, int column,
                                           Barrier& full, uint16_t blocks) {
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.multicast::cluster [%0], "
        "[%1, {%2, %3}], [%4], %5;" ::"r"(shared_address(to_shared)),
        "l"(&map), "r"(column), "r"(row), "r"(shared_address(&full.state)), "h"(blocks)
        : "memory");
}
// Queues the store of a panel to rows [t, t + 64), columns [column, column + 64) of head (b, h), t >= 0; rows from T on are left out. One thread
// calls, after a barrier behind the writers' fence_async_proxy(), and closes the group.
__device__ __forceinline__ void store_panel(const WgmmaTile<kMapRows, kMapColumns>& panel, const CUtensorMap& map,
                                            int t, int column, int h, int b) {
    asm volatile("cp.async.bulk.tensor.4d.global.shared::cta.tile.bulk_group [%0, {%1, %2, %3, %4}], [%5];" ::"l"(&map),
                 "r"(column), "r"(t), "r"(h), "r"(b), "r"(shared_address(panel.data))
                 : "memory");
}
// The same, added in bf16 to what is there.
__device__ __forceinline__ void add_panel(const WgmmaTile<kMapRows, kMapColumns>& panel, const CUtensorMap& map, int t,
                                          int column, int h, int b) {
    asm volatile(
        "cp.reduce.async.bulk.tensor.4d.global.shared::cta.add.tile.bulk_group [%0, {%1, %2, %3, %4}], [%5];" ::"l"(
            &map),
        "r"(column), "r"(t), "r"(h), "r"(b), "r"(shared_address(panel.data))
        : "memory");
}
__device__ __forceinline__ void store_commit() {
    asm volatile("cp.async.bulk.commit_group;" ::: "memory");
}
// This thread's stores have read their panels ...
__device__ __forceinline__ void store_wait_read() {
    asm volatile("cp.async.bulk.wait_group.read 0;" ::: "memory");
}
// ... and are finished.
__device__ __forceinline__ void store_wait() {
    asm volatile("cp.async.bulk.wait_group 0;" ::: "memory");
}
// Queues a plain copy; addresses and bytes are multiples of 16.
__device__ __forceinline__ void copy_bulk(void* to_shared, const void* from_global, int bytes, Barrier& full) {
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
                     shared_address(to_shared)),
                 "l"(from_global), "r"(bytes), "r"(shared_address(&full.state))
                 : "memory");
}

// Queues a plain store, or the addition of f32 numbers to those in global memory; closed and awaited as panels are. Addresses
// and bytes are multiples of 16.
__device__ __forceinline__ void store_bulk(void* to_global, const void* from_shared, int bytes) {
    asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;" ::"l"(to_global),
                 "r"(shared_address(from_shared)), "r"(bytes)
                 : "memory");
}
__device__ __forceinline__ void add_bulk(float* to_global, const float* from_shared, int bytes) {
    asm volatile("cp.reduce.async.bulk.global.shared::cta.bulk_group.add.f32 [%0], [%1], %2;" ::"l"(to_global),
                 "r"(shared_address(from_shared)), "r"(bytes)
                 : "memory");
}

// A warpgroup gives registers back or takes them; the kernel has __launch_bounds__(threads, 1).
template <int Count>
__device__ __forceinline__ void shrink_registers() {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(Count));
}
template <int Count>
__device__ __forceinline__ void grow_registers() {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(Count));
}

// Barriers 1 to 15 among `Threads` threads of the block (0 is __syncthreads): who arrives goes on, who syncs waits.
template <int Threads>
__device__ __forceinline__ void named_sync(int id) {
    asm volatile("bar.sync %0, %1;" ::"r"(id), "n"(Threads) : "memory");
}
template <int Threads>
__device__ __forceinline__ void named_arrive(int id) {
    asm volatile("bar.arrive %0, %1;" ::"r"(id), "n"(Threads) : "memory");
}

#endif

}  // namespace lc::kernels
