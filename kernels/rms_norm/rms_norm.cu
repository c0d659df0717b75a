// RMS norm on the GPU, alone or fused with the residual addition.
//
// MATHS    rms_norm.h.
// TILING   aligned rows of 1025 to 8192 elements: rms_norm_streamed.cuh. Others: rows of up to 1024 elements a warp a row, eight rows
//          a block; longer ones a block of 256 a row. A thread takes runs of eight elements, `threads` runs apart, and holds up to
//          four of them (rows up to 8192) in registers from the sum of squares to the result; longer rows are read again, from L1 or L2.
//          dweight: norm_rows.cuh.
// COST     forward: x, residual, y and sum once. Backward: s, dy, dsum and each gradient once; dweight reads s and dy once more (a
//          frozen weight wants none).
// NUMERICS f32 throughout; sums of squares as a tree over threads, in an order that depends on D alone. With a residual, y is made
//          from the f32 sum before that is rounded to its dtype.
// LADDER   1 a block a row: each load is awaited before the next one starts, and every row loads the weights again: bound by latency.
//          2 rms_norm_streamed.cuh: a row's loads start together, in the turn before; weights once a block. Meant for 0.85 of a copy;
//            on an H100 0.79 forward and backward, with the residual 0.91 and 0.73 (version 1: 0.59, 0.49, 0.75, 0.47).
//          3 the rows of a block through shared memory by cp.async, two to six of them under way instead of one, and three blocks an SM in
//            the backward instead of two: 144 KiB under way an SM instead of 24 to 48. Meant for 0.9 of a copy in all four.
//          A backward with both gradients wanted writes two equal tensors: five numbers an element where four would do.
// SOURCE   arXiv 1910.07467.
#include "kernels/common/cuda/norm_rows.cuh"
#include "kernels/rms_norm/rms_norm.h"
#include "kernels/rms_norm/rms_norm_streamed.cuh"

namespace lc::kernels {
namespace {

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
        for (int j = 0; j < kRun; ++j) weight[j] = (a.offset + weight[j]) * (s[k][j] * rstd);
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
    RmsForwardArgs a{{.weight = RowElements(weight),
                      .rstd = Operand(args.rstd),
                      .rows = x.rows,
                      .columns = x.columns,
                      .offset = static_cast<float>(args.offset)}};
    a.x = RowElements(x), a.y = RowElements(y), a.sum = RowElements(sum);
    if (args.residual) a.residual = RowElements(residual);
    a.eps = static_cast<float>(args.eps);
    if (a.rows == 0) return;
    const cudaStream_t queue = cuda::handle_of(stream);
    const bool streamed = dispatch_streamed(a, {a.x, a.residual, a.y, a.sum}, {}, [&](auto shape) {
        dispatch_bool(static_cast<bool>(args.residual), [&](auto has_residual) {
            using S = decltype(shape);
            constexpr auto kKernel = rms_forward_streamed<S, has_residual()>;
            constexpr int kBytes = RowRing < S, has_residual() ? 2 : 1 > ::kBytes;
            kKernel<<<blocks_at_a_time<kKernel, kBytes>(S::kThreads, a.rows), S::kThreads, kBytes, queue>>>(a);
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
    if (args.dweight)
        norm_weight_gradient_cuda("rms_norm", {.x = args.s, .dy = args.dy, .rstd = args.rstd, .dweight = args.dweight},
                                  stream);
    if (!args.dx && !args.dresidual) return;
    const DeviceRows s(args.s, args.s.dtype), weight(args.weight, args.weight.dtype);
    const DeviceRows dy(args.dy ? args.dy : args.s, args.s.dtype), dsum(args.dsum ? args.dsum : args.s, args.s.dtype);
    const DeviceOutRows dx(args.dx), dresidual(args.dresidual);
    RmsBackwardArgs a{{.weight = RowElements(weight),
                       .rstd = Operand(args.rstd),
                       .rows = s.rows,
                       .columns = s.columns,
                       .offset = static_cast<float>(args.offset)}};
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
                constexpr int kBytes = RowRing < S, has_sum() ? 3 : 2 > ::kBytes;
                kKernel<<<blocks_at_a_time<kKernel, kBytes>(S::kThreads, a.rows), S::kThreads, kBytes, queue>>>(a);
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
