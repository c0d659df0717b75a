// RMS norm on the GPU, alone or fused with the residual addition.
//
// MATHS    rms_norm.h.
// TILING   aligned rows of 1025 to 8192 elements: rms_norm_streamed.cuh. Others: rows of up to 1024 elements a warp a row, eight rows
//          a block; longer ones a block of 256 a row. A thread takes runs of eight elements, `threads` runs apart, and holds up to
//          four of them (rows up to 8192) in registers from the sum of squares to the result; longer rows are read again, from L1 or L2.
//          dweight: a block owns 256 columns and 64 rows, each warp every eighth row; partial sums go to workspace, a row a slice, and
//          column_sum adds the slices.
// COST     forward: x, residual, y and sum once. Backward: s, dy, dsum and each gradient once; dweight reads s and dy once more (a
//          frozen weight wants none).
// NUMERICS f32 throughout; sums of squares as a tree over threads, in an order that depends on D alone. With a residual, y is made
//          from the f32 sum before that is rounded to its dtype.
// LADDER   1 a block a row: each load is awaited before the next one starts, and every row loads the weights again: bound by latency.
//          2 rms_norm_streamed.cuh: a row's loads start together, in the turn before; weights once a block. Meant for 0.85 of a copy;
//            on an H100 0.79 forward and backward, with the residual 0.91 and 0.73 (version 1: 0.59, 0.49, 0.75, 0.47).
// SOURCE   arXiv 1910.07467.
#include "kernels/common/cuda/column_sum.h"
#include "kernels/common/cuda/operand.cuh"
#include "kernels/common/cuda/reduce.cuh"
#include "kernels/common/cuda/run.cuh"
#include "kernels/rms_norm/rms_norm.h"
#include "kernels/rms_norm/rms_norm_streamed.cuh"

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

template <class S>
__global__ void __launch_bounds__(kBlock, 2) forward_kernel(const __grid_constant__ RmsForwardArgs a) {
    const int64_t row = S::row();
    if (row >= a.rows) return;  // whole warps (or the whole block) leave together
    float s[S::kUnroll][kRun];
    const auto load = [&](int64_t column, int count, float(&run)[kRun]) {
        a.x.load(row, column, count, run);
        if (!a.residual) return;
        float other[kRun];
        a.residual.load(row, column, count, other);
#pragma unroll
        for (int j = 0; j < kRun; ++j) run[j] += other[j];
    };
    float squares = 0;
    S::for_runs(a.columns, [&](int64_t column, int count, int k) {
        load(column, count, s[k]);
        if (a.sum) a.sum.store(row, column, count, s[k]);
#pragma unroll
        for (int j = 0; j < kRun; ++j) squares += s[k][j] * s[k][j];
    });
    const float rstd = 1 / sqrtf(S::sum(squares) / static_cast<float>(a.columns) + a.eps);
    if (threadIdx.x % S::kThreads == 0) a.rstd.put(row, rstd);
    S::for_runs(a.columns, [&](int64_t column, int count, int k) {
        if constexpr (!S::kIsHeld) load(column, count, s[k]);
        float weight[kRun];
        a.weight.load(0, column, count, weight);
#pragma unroll
        for (int j = 0; j < kRun; ++j) weight[j] *= s[k][j] * rstd;
        a.y.store(row, column, count, weight);
    });
}

// ds = rstd g - shrink s + dsum with g = dy weight, shrink = rstd^3 mean(g s).
template <class S>
__global__ void __launch_bounds__(kBlock, 2) backward_kernel(const __grid_constant__ RmsBackwardArgs a) {
    const int64_t row = S::row();
    if (row >= a.rows) return;
    float s[S::kUnroll][kRun], g[S::kUnroll][kRun];
    const auto load = [&](int64_t column, int count, int k) {
        float weight[kRun];
        a.s.load(row, column, count, s[k]);
        a.dy.load(row, column, count, g[k]);
        a.weight.load(0, column, count, weight);
#pragma unroll
        for (int j = 0; j < kRun; ++j) g[k][j] *= weight[j];
    };
    float dot = 0;
    S::for_runs(a.columns, [&](int64_t column, int count, int k) {
        if (!a.dy) return;
        load(column, count, k);
#pragma unroll
        for (int j = 0; j < kRun; ++j) dot += g[k][j] * s[k][j];
    });
    const float rstd = a.rstd.load(row);
    const float shrink = rstd * rstd * rstd * S::sum(dot) / static_cast<float>(a.columns);
    S::for_runs(a.columns, [&](int64_t column, int count, int k) {
        float ds[kRun] = {};
        if (a.dsum) a.dsum.load(row, column, count, ds);
        if (a.dy) {
            if constexpr (!S::kIsHeld) load(column, count, k);
#pragma unroll
            for (int j = 0; j < kRun; ++j) ds[j] += rstd * g[k][j] - shrink * s[k][j];
        }
        if (a.dresidual) {
            float copy[kRun];  // store() adds what is there to what it is given
#pragma unroll
            for (int j = 0; j < kRun; ++j) copy[j] = ds[j];
            a.dresidual.store(row, column, count, copy);
        }
        if (a.dx) a.dx.store(row, column, count, ds);
    });
}

// f(Sharing<...>{}) with the sharing for rows of `columns` elements.
template <class F>
void dispatch_sharing(int64_t columns, F&& f) {
    if (columns <= kWarp * kRun * kHeld) return f(Sharing<kWarp, true>{});
    if (columns <= kBlock * kRun * kHeld) return f(Sharing<kBlock, true>{});
    f(Sharing<kBlock, false>{});
}

constexpr int kWeightWarps = kBlock / kWarp, kWeightColumns = kWarp * kRun, kWeightRows = 64;

// parts[slice][c] = sum over the slice's rows of dy s rstd.
__global__ void __launch_bounds__(kBlock)
    weight_kernel(RowElements s, RowElements dy, const __grid_constant__ Operand rstd, int64_t rows, int64_t columns,
                  float* parts) {
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
            s.load(row, column, count, a);
            dy.load(row, column, count, b);
            const float r = rstd.load(row);
#pragma unroll
            for (int j = 0; j < kRun; ++j) sum[j] += b[j] * a[j] * r;
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

void backward_weight(const RmsNormBackward& args, Stream stream) {
    const DeviceRows s(args.s, args.s.dtype);
    const int64_t slices = args.dy ? ceil_div(s.rows, kWeightRows) : 0;  // no dy: a sum over nothing
    const DeviceScratch<float> parts(slices * s.columns, stream);
    if (slices > 0 && s.columns > 0) {
        const DeviceRows dy(args.dy, args.dy.dtype);
        const dim3 grid(grid_x(ceil_div(s.columns, kWeightColumns)),
                        static_cast<unsigned>(std::min<int64_t>(slices, 65535)));
        weight_kernel<<<grid, kBlock, 0, cuda::handle_of(stream)>>>(RowElements(s), RowElements(dy), Operand(args.rstd),
                                                                    s.rows, s.columns, parts.data());
        LC_LAUNCHED("rms_norm", cuda::handle_of(stream));
    }
    const TensorView table{reinterpret_cast<std::byte*>(parts.data()), Layout::contiguous({slices, s.columns}),
                           DType::f32, args.s.device};
    column_sum_cuda(DeviceRows(table, DType::f32), args.dweight, stream);
}

}  // namespace

void rms_norm_forward_cuda(const RmsNormForward& args, Stream stream) {
    const DeviceRows x(args.x, args.x.dtype), residual(args.residual ? args.residual : args.x, args.x.dtype);
    const DeviceRows weight(args.weight, args.weight.dtype);
    const DeviceOutRows y(args.y), sum(args.sum);
    RmsForwardArgs a{{.weight = RowElements(weight), .rstd = Operand(args.rstd), .rows = x.rows, .columns = x.columns}};
    a.x = RowElements(x), a.y = RowElements(y), a.sum = RowElements(sum);
    if (args.residual) a.residual = RowElements(residual);
    a.eps = static_cast<float>(args.eps);
    if (a.rows == 0) return;
    const cudaStream_t queue = cuda::handle_of(stream);
    const bool streamed = dispatch_streamed(a, {a.x, a.residual, a.y, a.sum}, {}, [&](auto shape) {
        dispatch_bool(static_cast<bool>(args.residual), [&](auto has_residual) {
            using S = decltype(shape);
            constexpr auto kKernel = rms_forward_streamed<S, has_residual()>;
            kKernel<<<blocks_at_a_time<kKernel>(S::kThreads, a.rows), S::kThreads, 0, queue>>>(a);
        });
    });
    if (!streamed)
        dispatch_sharing(a.columns, [&](auto sharing) {
            using S = decltype(sharing);
            forward_kernel<S><<<grid_x(ceil_div(a.rows, S::kRows)), kBlock, 0, queue>>>(a);
        });
    LC_LAUNCHED("rms_norm", queue);
    y.finish(), sum.finish();
}

void rms_norm_backward_cuda(const RmsNormBackward& args, Stream stream) {
    if (args.dweight) backward_weight(args, stream);
    if (!args.dx && !args.dresidual) return;
    const DeviceRows s(args.s, args.s.dtype), weight(args.weight, args.weight.dtype);
    const DeviceRows dy(args.dy ? args.dy : args.s, args.s.dtype), dsum(args.dsum ? args.dsum : args.s, args.s.dtype);
    const DeviceOutRows dx(args.dx), dresidual(args.dresidual);
    RmsBackwardArgs a{
        {.weight = RowElements(weight), .rstd = Operand(args.rstd), .rows = s.rows, .columns = s.columns}};
    a.s = RowElements(s), a.dx = RowElements(dx), a.dresidual = RowElements(dresidual);
    if (args.dy) a.dy = RowElements(dy);
    if (args.dsum) a.dsum = RowElements(dsum);
    if (a.rows == 0) return;
    const cudaStream_t queue = cuda::handle_of(stream);
    bool streamed = false;
    if (args.dy)
        streamed = dispatch_streamed(a, {a.s, a.dy, a.dsum}, {a.dx, a.dresidual}, [&](auto shape) {
            dispatch_bool(static_cast<bool>(args.dsum), [&](auto has_sum) {
                using S = decltype(shape);
                constexpr auto kKernel = rms_backward_streamed<S, has_sum()>;
                kKernel<<<blocks_at_a_time<kKernel>(S::kThreads, a.rows), S::kThreads, 0, queue>>>(a);
            });
        });
    if (!streamed)
        dispatch_sharing(a.columns, [&](auto sharing) {
            using S = decltype(sharing);
            backward_kernel<S><<<grid_x(ceil_div(a.rows, S::kRows)), kBlock, 0, queue>>>(a);
        });
    LC_LAUNCHED("rms_norm", queue);
    dx.finish(), dresidual.finish();
}

}  // namespace lc::kernels
