// RMS norm on the GPU, alone or fused with the residual addition.
//
// MATHS    rms_norm.h.
// TILING   aligned rows of 1025 to 8192 elements: a block a row, block_rows.cuh. Others: rows of up to 1024 elements a warp a row, eight
//          rows a block; longer ones a block of 256 a row. A thread takes runs of eight elements, `threads` runs apart, and holds up to
//          four of them (rows up to 8192) in registers from the sum of squares to the result; longer rows are read again, from L1 or L2.
//          dweight: norm_rows.cuh.
// COST     forward: x, residual, y and sum once. Backward: s, dy, dsum and each gradient once; dweight reads s and dy once more (a
//          frozen weight wants none).
// NUMERICS f32 throughout; sums of squares as a tree over threads, in an order that depends on D alone. With a residual, y is made
//          from the f32 sum before that is rounded to its dtype.
// LADDER   8192 x 4096 in bf16; share of a copy's bandwidth: forward, backward, with the residual, its backward (where four tensors count)
//          1 a block a row: each load is awaited before the next one starts, and every row loads the weights again: bound by latency.
//            H100 0.59, 0.49, 0.75, 0.47.
//          2 as many blocks as run at a time, which loop; a row's loads start together, in the turn before; weights once a block. Meant
//            for 0.85; H100 0.79, 0.79, 0.91, 0.73.
//          3 the rows of a looping block through shared memory by cp.async, 144 KiB under way an SM. Meant for 0.9; H200 0.79, 0.81, 0.84, 0.69.
//          4 a block a row once more, but every load before any use, weights included, and the store from the same registers. Meant for
//            0.88; H200 0.89, 0.88, 0.90, 0.91 (with one tensor for dx and dresidual; written twice it was 0.77).
//          5 begun early (early.cuh): H200 0.94, 0.97, 0.90, 0.90. A call alone is what it was (the backward 52 us): empty blocks take 6 us,
//            loads alone 41 of its 52, and a copy of 64 MiB 34.6 to 35.8 as cudaMemcpy or as 16 bytes a thread, 0.88 to 0.91. In a
//            row (49 us) the next call's blocks are there when the last wave ends.
//          Beside 4 on the H200, in us (forward 36, residual 69, backward 53, with dsum 67):
//            loops with rows by the copy engine into a ring, 128 threads      37   72   54   70
//            the same, results through shared memory by the copy engine       38   73   55   71
//            a warp a row                                                     43   73   72  108   (registers)
//            512 threads a row                                                45   71   54   72   (fewer blocks)
//            two rows a block                                                 35   68   53   70
//            streaming loads and stores (.cs), or loads past L1               37   75   56   73
//            weights loaded after the sum                                     36   68
//            loads that leave L2 first (a policy), or such that bypass L1     37        55   (52 alone, as 4)
// SOURCE   arXiv 1910.07467.
#include "kernels/common/cuda/block_rows.cuh"
#include "kernels/common/cuda/early.cuh"
#include "kernels/common/cuda/norm_rows.cuh"
#include "kernels/rms_norm/rms_norm.h"

namespace lc::kernels {
namespace {

struct Args {
    RowElements weight;
    Operand rstd;
    int64_t rows, columns;
    float offset;  // of the weight
};
struct ForwardArgs : Args {
    RowElements x, residual, y, sum;
    float eps;
};
struct BackwardArgs : Args {
    RowElements s, dy, dsum, dx, dresidual;
};

template <class S, bool HasResidual>
__global__ void __launch_bounds__(S::kThreads) forward_block_kernel(const __grid_constant__ ForwardArgs a) {
    join_stream();
    __shared__ float parts[1][S::kWarps];
    const int64_t row = blockIdx.x;
    const int columns = static_cast<int>(a.columns);
    typename S::Bits x, residual;
    typename S::Values weight;
    S::load(a.x, row, columns, x);
    if constexpr (HasResidual) S::load(a.residual, row, columns, residual);
    S::load_parameter(a.weight, columns, weight);
    const auto s = [&](int k, int j) {
        if constexpr (HasResidual)
            return x[k].get(j) + residual[k].get(j);
        else
            return x[k].get(j);
    };
    float squares[1] = {};
#pragma unroll
    for (int k = 0; k < S::kRuns; ++k)
#pragma unroll
        for (int j = 0; j < kRun; ++j) squares[0] += s(k, j) * s(k, j);
    if constexpr (HasResidual) S::store_row(a.sum, row, columns, s);
    S::sum(squares, parts);
    S::forget_floats(x);
    if constexpr (HasResidual) S::forget_floats(residual);
    const float rstd = 1 / sqrtf(squares[0] / static_cast<float>(columns) + a.eps);
    if (threadIdx.x == 0) flat_statistic(a.rstd, row) = rstd;
    S::store_row(a.y, row, columns, [&](int k, int j) { return (a.offset + weight[k][j]) * (s(k, j) * rstd); });
}

// ds = rstd g - shrink s + dsum with g = dy weight, shrink = rstd^3 mean(g s). With dy; without one a backward is a copy.
template <class S, bool HasSum>
__global__ void __launch_bounds__(S::kThreads) backward_block_kernel(const __grid_constant__ BackwardArgs a) {
    join_stream();
    __shared__ float parts[1][S::kWarps];
    const int64_t row = blockIdx.x;
    const int columns = static_cast<int>(a.columns);
    typename S::Bits s, dy, dsum;
    typename S::Values weight;
    S::load(a.s, row, columns, s);
    S::load(a.dy, row, columns, dy);
    if constexpr (HasSum) S::load(a.dsum, row, columns, dsum);
    const float rstd = flat_statistic(a.rstd, row);
    S::load_parameter(a.weight, columns, weight);
    const auto g = [&](int k, int j) { return dy[k].get(j) * (a.offset + weight[k][j]); };
    float dot[1] = {};
#pragma unroll
    for (int k = 0; k < S::kRuns; ++k)
#pragma unroll
        for (int j = 0; j < kRun; ++j) dot[0] += g(k, j) * s[k].get(j);
    S::sum(dot, parts);
    S::forget_floats(s), S::forget_floats(dy);
    const float shrink = rstd * rstd * rstd * dot[0] / static_cast<float>(columns);
    S::for_runs(columns, [&](int k) {
        float ds[kRun], copy[kRun];  // a store adds what is there to what it is given
#pragma unroll
        for (int j = 0; j < kRun; ++j) {
            ds[j] = rstd * g(k, j) - shrink * s[k].get(j);
            if constexpr (HasSum) ds[j] += dsum[k].get(j);
            copy[j] = ds[j];
        }
        if (a.dresidual) S::store(a.dresidual, row, k, copy);
        if (a.dx) S::store(a.dx, row, k, ds);
    });
}

template <class S>
__global__ void __launch_bounds__(kBlock, 2) forward_kernel(const __grid_constant__ ForwardArgs a) {
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
        for (int j = 0; j < kRun; ++j) weight[j] = (a.offset + weight[j]) * (s[k][j] * rstd);
        a.y.store(row, column, count, weight);
    });
}

template <class S>
__global__ void __launch_bounds__(kBlock, 2) backward_kernel(const __grid_constant__ BackwardArgs a) {
    const int64_t row = S::row();
    if (row >= a.rows) return;
    float s[S::kUnroll][kRun], g[S::kUnroll][kRun];
    const auto load = [&](int64_t column, int count, int k) {
        float weight[kRun];
        a.s.load(row, column, count, s[k]);
        a.dy.load(row, column, count, g[k]);
        a.weight.load(0, column, count, weight);
#pragma unroll
        for (int j = 0; j < kRun; ++j) g[k][j] *= a.offset + weight[j];
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

}  // namespace

void rms_norm_forward_cuda(const RmsNormForward& args, Stream stream) {
    const DeviceRows x(args.x, args.x.dtype), residual(args.residual ? args.residual : args.x, args.x.dtype);
    const DeviceRows weight(args.weight, args.weight.dtype);
    const DeviceOutRows y(args.y), sum(args.sum);
    ForwardArgs a{{.weight = RowElements(weight),
                   .rstd = Operand(args.rstd),
                   .rows = x.rows,
                   .columns = x.columns,
                   .offset = static_cast<float>(args.offset)}};
    a.x = RowElements(x), a.y = RowElements(y), a.sum = RowElements(sum);
    if (args.residual) a.residual = RowElements(residual);
    a.eps = static_cast<float>(args.eps);
    if (a.rows == 0) return;
    const cudaStream_t queue = cuda::handle_of(stream);
    const bool walked =
        is_flat_statistic(a.rstd) &&
        dispatch_block_rows("rms_norm", a.columns, {a.x, a.residual, a.y, a.sum}, {a.weight}, [&](auto shape) {
            dispatch_bool(static_cast<bool>(args.residual), [&](auto has_residual) {
                using S = decltype(shape);
                launch_joining(forward_block_kernel<S, has_residual()>, a.rows, S::kThreads, queue, a);
            });
        });
    if (!walked)
        dispatch_sharing(a.columns, [&](auto sharing) {
            using S = decltype(sharing);
            forward_kernel<S><<<grid_x(ceil_div(a.rows, S::kRows)), kBlock, 0, queue>>>(a);
        });
    LC_LAUNCHED("rms_norm", queue);
    y.finish(), sum.finish();
}

void rms_norm_backward_cuda(const RmsNormBackward& args, Stream stream) {
    if (args.dweight)
        norm_weight_gradient_cuda("rms_norm", {.x = args.s, .dy = args.dy, .rstd = args.rstd, .dweight = args.dweight},
                                  stream);
    if (!args.dx && !args.dresidual) return;
    const DeviceRows s(args.s, args.s.dtype), weight(args.weight, args.weight.dtype);
    const DeviceRows dy(args.dy ? args.dy : args.s, args.s.dtype), dsum(args.dsum ? args.dsum : args.s, args.s.dtype);
    const DeviceOutRows dx(args.dx), dresidual(args.dresidual);
    BackwardArgs a{{.weight = RowElements(weight),
                    .rstd = Operand(args.rstd),
                    .rows = s.rows,
                    .columns = s.columns,
                    .offset = static_cast<float>(args.offset)}};
    a.s = RowElements(s), a.dx = RowElements(dx), a.dresidual = RowElements(dresidual);
    if (args.dy) a.dy = RowElements(dy);
    if (args.dsum) a.dsum = RowElements(dsum);
    if (a.rows == 0) return;
    const cudaStream_t queue = cuda::handle_of(stream);
    const bool walked =
        a.dy && is_flat_statistic(a.rstd) &&
        dispatch_block_rows("rms_norm", a.columns, {a.s, a.dy, a.dsum}, {a.weight, a.dx, a.dresidual}, [&](auto shape) {
            dispatch_bool(static_cast<bool>(args.dsum), [&](auto has_sum) {
                using S = decltype(shape);
                launch_joining(backward_block_kernel<S, has_sum()>, a.rows, S::kThreads, queue, a);
            });
        });
    if (!walked)
        dispatch_sharing(a.columns, [&](auto sharing) {
            using S = decltype(sharing);
            backward_kernel<S><<<grid_x(ceil_div(a.rows, S::kRows)), kBlock, 0, queue>>>(a);
        });
    LC_LAUNCHED("rms_norm", queue);
    dx.finish(), dresidual.finish();
}

}  // namespace lc::kernels
