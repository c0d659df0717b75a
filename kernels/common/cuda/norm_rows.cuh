// What norms over rows share: how threads share rows, and the gradient of the weight.
//
// TILING   rows of up to 1024 elements a warp a row, eight rows a block; longer ones a block of 256 a row. A thread takes runs of
//          eight elements, `threads` runs apart, and holds up to four of them (rows up to 8192) in registers.
//          dweight: a block owns 256 columns and 64 rows, each warp every eighth row; partial sums go to workspace, a row a slice, and
//          column_sum adds the slices.
#pragma once
#include "kernels/common/cuda/column_sum.h"
#include "kernels/common/cuda/operand.cuh"
#include "kernels/common/cuda/reduce.cuh"
#include "kernels/common/cuda/run.cuh"

namespace lc::kernels {
namespace {

constexpr int kBlock = 256, kHeld = 4;  // threads; runs a thread holds

// How threads share rows. Held rows fit kHeld runs a thread.
template <int Threads, bool Held>
struct Sharing {
    static constexpr int kThreads = Threads, kRows = kBlock / Threads, kUnroll = Held ? kHeld : 1;
    static constexpr bool kIsHeld = Held;

    __device__ static int64_t row() { return static_cast<int64_t>(blockIdx.x) * kRows + threadIdx.x / Threads; }
    __device__ static float sum(float value) {
        if constexpr (Threads == kWarp)
            return warp_sum(value);
        else
            return block_sum(value);
    }
    // visit(column, count, held) for each run of this thread; `held` says which of the held runs it is.
    template <class F>
    __device__ static void for_runs(int64_t columns, F&& visit) {
        const int64_t start = threadIdx.x % Threads * kRun;
        if constexpr (Held) {
#pragma unroll
            for (int k = 0; k < kHeld; ++k) {
                const int64_t column = start + k * Threads * kRun;
                if (column < columns) visit(column, static_cast<int>(min(int64_t{kRun}, columns - column)), k);
            }
        } else {
            for (int64_t column = start; column < columns; column += Threads * kRun)
                visit(column, static_cast<int>(min(int64_t{kRun}, columns - column)), 0);
        }
    }
};

// f(Sharing<...>{}) with the sharing for rows of `columns` elements.
template <class F>
void dispatch_sharing(int64_t columns, F&& f) {
    if (columns <= kWarp * kRun * kHeld) return f(Sharing<kWarp, true>{});
    if (columns <= kBlock * kRun * kHeld) return f(Sharing<kBlock, true>{});
    f(Sharing<kBlock, false>{});
}

constexpr int kWeightWarps = kBlock / kWarp, kWeightColumns = kWarp * kRun, kWeightRows = 64;

// parts[slice][c] = sum over the slice's rows of dy (x - mean) rstd.
__global__ void __launch_bounds__(kBlock)
    norm_weight_kernel(RowElements x, RowElements dy, const __grid_constant__ Operand mean,
                       const __grid_constant__ Operand rstd, int64_t rows, int64_t columns, float* parts) {
    __shared__ float sums[kWeightWarps][kWeightColumns];  // 8 KiB
    const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
    const int64_t first = static_cast<int64_t>(blockIdx.x) * kWeightColumns, column = first + lane * kRun;
    const int64_t slices = (rows + kWeightRows - 1) / kWeightRows;
    const int count = static_cast<int>(max(int64_t{0}, min(int64_t{kRun}, columns - column)));
    for (int64_t slice = blockIdx.y; slice < slices; slice += gridDim.y) {
        float sum[kRun] = {};
        const int64_t end = min(rows, (slice + 1) * kWeightRows);
        for (int64_t row = slice * kWeightRows + warp; row < end && count > 0; row += kWeightWarps) {
            float a[kRun], b[kRun];
            x.load(row, column, count, a);
            dy.load(row, column, count, b);
            const float r = rstd.load(row), m = mean ? mean.load(row) : 0.0f;
#pragma unroll
            for (int j = 0; j < kRun; ++j) sum[j] += b[j] * (a[j] - m) * r;
        }
#pragma unroll
        for (int j = 0; j < kRun; ++j) sums[warp][lane * kRun + j] = sum[j];
        __syncthreads();
        if (first + threadIdx.x < columns) {  // kBlock == kWeightColumns: a thread a column
            float total = 0;
#pragma unroll
            for (int w = 0; w < kWeightWarps; ++w) total += sums[w][threadIdx.x];
            parts[slice * columns + first + threadIdx.x] = total;
        }
        __syncthreads();
    }
}
static_assert(kBlock == kWeightColumns);

struct NormWeightGradient {
    TensorView x;      // [...,D]  what was normalized
    TensorView dy;     // [...,D]  or empty: zero
    TensorView mean;   // [rows]   or empty: zero
    TensorView rstd;   // [rows]
    GradSlot dweight;  // [D]
};

inline void norm_weight_gradient_cuda(const char* op, const NormWeightGradient& args, Stream stream) {
    const DeviceRows x(args.x, args.x.dtype);
    const int64_t slices = args.dy ? ceil_div(x.rows, kWeightRows) : 0;  // no dy: a sum over nothing
    const DeviceScratch<float> parts(slices * x.columns, stream);
    if (slices > 0 && x.columns > 0) {
        const DeviceRows dy(args.dy, args.dy.dtype);
        const dim3 grid(grid_x(ceil_div(x.columns, kWeightColumns)),
                        static_cast<unsigned>(std::min<int64_t>(slices, 65535)));
        norm_weight_kernel<<<grid, kBlock, 0, cuda::handle_of(stream)>>>(
            RowElements(x), RowElements(dy), args.mean ? Operand(args.mean) : Operand(), Operand(args.rstd), x.rows,
            x.columns, parts.data());
        LC_LAUNCHED(op, cuda::handle_of(stream));
    }
    const TensorView table{reinterpret_cast<std::byte*>(parts.data()), Layout::contiguous({slices, x.columns}),
                           DType::f32, args.x.device};
    column_sum_cuda(DeviceRows(table, DType::f32), args.dweight, stream);
}

}  // namespace
}  // namespace lc::kernels
