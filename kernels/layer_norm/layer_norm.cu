// Layer norm on the GPU.
//
// MATHS    layer_norm.h.
// TILING   aligned rows of 1025 to 8192 elements: a block a row, block_rows.cuh; the forward loads weight and bias last, so that six blocks
//          share an SM. Others: norm_rows.cuh, a warp or a block a row; rows of up to 8192 elements stay in registers from the sums to the
//          result, longer ones are read again, from L1 or L2. dbias is column_sum.
// COST     forward: x and y once. Backward: x, dy and dx once; dweight and dbias read x and dy once more (frozen parameters
//          want none).
// NUMERICS f32 throughout; the variance is the mean of squared distances from the mean, in a second pass over what is in registers:
//          no cancellation. Sums as a tree over threads, in an order that depends on D alone.
// LADDER   8192 x 4096 in bf16 on an H200, share of a copy's bandwidth: forward, backward
//          1 norm_rows.cuh: 0.37, 0.36.
//          2 block_rows.cuh as RMS norm has it, weight and bias loaded between the two sums: 0.60, 0.86. 64 registers, four blocks an SM:
//            too few bytes under way in the forward, whose chain of two sums is twice as long.
//          3 weight and bias after the sums, 40 registers: 0.75, 0.86.
//          Beside 3, the forward in us (3: 42 of 31.6 at best):
//            four rows a block at once, a warp's sums merged by one barrier     38
//            two rows so                                                        39
//            one pass about the row's first number, one row a block             43   (four: 38)
//            a block walks 8 rows, the next one's load under way                41
// SOURCE   arXiv 1607.06450.
#include "kernels/common/cuda/block_rows.cuh"
#include "kernels/common/cuda/norm_rows.cuh"
#include "kernels/layer_norm/layer_norm.h"

namespace lc::kernels {
namespace {

struct ForwardArgs {
    RowElements x, weight, bias, y;
    Operand mean, rstd;
    int64_t rows, columns;
    float eps;
};
struct BackwardArgs {
    RowElements x, weight, dy, dx;
    Operand mean, rstd;
    int64_t rows, columns;
};

template <class S>
__global__ void __launch_bounds__(S::kThreads, 1536 / S::kThreads)
    forward_block_kernel(const __grid_constant__ ForwardArgs a) {
    __shared__ float parts[2][1][S::kWarps];
    const int64_t row = blockIdx.x;
    const int columns = static_cast<int>(a.columns);
    typename S::Bits x;
    S::load(a.x, row, columns, x);
    float sum[1] = {}, squares[1] = {};
#pragma unroll
    for (int k = 0; k < S::kRuns; ++k)
#pragma unroll
        for (int j = 0; j < kRun; ++j) sum[0] += x[k].get(j);
    S::sum(sum, parts[0]);
    const float mean = sum[0] / static_cast<float>(columns);
    S::forget_floats(x);
    S::for_runs(columns, [&](int k) {
#pragma unroll
        for (int j = 0; j < kRun; ++j) squares[0] += (x[k].get(j) - mean) * (x[k].get(j) - mean);
    });
    S::sum(squares, parts[1]);
    S::forget_floats(x);
    const float rstd = 1 / sqrtf(squares[0] / static_cast<float>(columns) + a.eps);
    if (threadIdx.x == 0) flat_statistic(a.mean, row) = mean, flat_statistic(a.rstd, row) = rstd;
    S::for_runs(columns, [&](int k) {
        float weight[kRun], bias[kRun];  // not before: registers
        load_packed(a.weight.elements, S::column(k), weight);
        load_packed(a.bias.elements, S::column(k), bias);
        RunBits<typename S::Type> y;
#pragma unroll
        for (int j = 0; j < kRun; ++j) y.set(j, (x[k].get(j) - mean) * rstd * weight[j] + bias[j]);
        S::store_bits(a.y, row, k, y);
    });
}

template <class S>
__global__ void __launch_bounds__(S::kThreads) backward_block_kernel(const __grid_constant__ BackwardArgs a) {
    __shared__ float parts[2][S::kWarps];
    const int64_t row = blockIdx.x;
    const int columns = static_cast<int>(a.columns);
    typename S::Bits x, dy;
    typename S::Values weight;
    S::load(a.x, row, columns, x);
    S::load(a.dy, row, columns, dy);
    const float mean = flat_statistic(a.mean, row), rstd = flat_statistic(a.rstd, row);
    S::load_parameter(a.weight, columns, weight);
    const auto h = [&](int k, int j) { return (x[k].get(j) - mean) * rstd; };
    const auto g = [&](int k, int j) { return dy[k].get(j) * weight[k][j]; };  // 0 behind the row's end
    float sums[2] = {};                                                        // of g and g h
#pragma unroll
    for (int k = 0; k < S::kRuns; ++k)
#pragma unroll
        for (int j = 0; j < kRun; ++j) sums[0] += g(k, j), sums[1] += g(k, j) * h(k, j);
    S::sum(sums, parts);
    S::forget_floats(x), S::forget_floats(dy);
    const float mean_g = sums[0] / static_cast<float>(columns), mean_gh = sums[1] / static_cast<float>(columns);
    S::for_runs(columns, [&](int k) {
        float dx[kRun];
#pragma unroll
        for (int j = 0; j < kRun; ++j) dx[j] = rstd * (g(k, j) - mean_g - h(k, j) * mean_gh);
        S::store(a.dx, row, k, dx);
    });
}

template <class S>
__global__ void __launch_bounds__(kBlock, 2) forward_kernel(const __grid_constant__ ForwardArgs a) {
    const int64_t row = S::row();
    if (row >= a.rows) return;  // whole warps (or the whole block) leave together
    const auto columns = static_cast<float>(a.columns);
    float x[S::kUnroll][kRun], sum = 0, squares = 0;
    S::for_runs(a.columns, [&](int64_t column, int count, int k) {
        a.x.load(row, column, count, x[k]);
#pragma unroll
        for (int j = 0; j < kRun; ++j) sum += j < count ? x[k][j] : 0.0f;
    });
    const float mean = S::sum(sum) / columns;
    S::for_runs(a.columns, [&](int64_t column, int count, int k) {
        if constexpr (!S::kIsHeld) a.x.load(row, column, count, x[k]);
#pragma unroll
        for (int j = 0; j < kRun; ++j) squares += j < count ? (x[k][j] - mean) * (x[k][j] - mean) : 0.0f;
    });
    const float rstd = 1 / sqrtf(S::sum(squares) / columns + a.eps);
    if (threadIdx.x % S::kThreads == 0) a.mean.put(row, mean), a.rstd.put(row, rstd);
    S::for_runs(a.columns, [&](int64_t column, int count, int k) {
        if constexpr (!S::kIsHeld) a.x.load(row, column, count, x[k]);
        float weight[kRun], bias[kRun];
        a.weight.load(0, column, count, weight);
        a.bias.load(0, column, count, bias);
#pragma unroll
        for (int j = 0; j < kRun; ++j) bias[j] += (x[k][j] - mean) * rstd * weight[j];
        a.y.store(row, column, count, bias);
    });
}

template <class S>
__global__ void __launch_bounds__(kBlock, 2) backward_kernel(const __grid_constant__ BackwardArgs a) {
    const int64_t row = S::row();
    if (row >= a.rows) return;
    const float mean = a.mean.load(row), rstd = a.rstd.load(row);
    float h[S::kUnroll][kRun], g[S::kUnroll][kRun];
    const auto load = [&](int64_t column, int count, int k) {
        float weight[kRun];
        a.x.load(row, column, count, h[k]);
        a.dy.load(row, column, count, g[k]);
        a.weight.load(0, column, count, weight);
#pragma unroll
        for (int j = 0; j < kRun; ++j) {
            h[k][j] = j < count ? (h[k][j] - mean) * rstd : 0.0f;
            g[k][j] = j < count ? g[k][j] * weight[j] : 0.0f;
        }
    };
    float sum = 0, dot = 0;
    S::for_runs(a.columns, [&](int64_t column, int count, int k) {
        load(column, count, k);
#pragma unroll
        for (int j = 0; j < kRun; ++j) sum += g[k][j], dot += g[k][j] * h[k][j];
    });
    const auto columns = static_cast<float>(a.columns);
    const float mean_g = S::sum(sum) / columns, mean_gh = S::sum(dot) / columns;
    S::for_runs(a.columns, [&](int64_t column, int count, int k) {
        if constexpr (!S::kIsHeld) load(column, count, k);
        float dx[kRun];
#pragma unroll
        for (int j = 0; j < kRun; ++j) dx[j] = rstd * (g[k][j] - mean_g - h[k][j] * mean_gh);
        a.dx.store(row, column, count, dx);
    });
}

}  // namespace

void layer_norm_forward_cuda(const LayerNormForward& args, Stream stream) {
    const DeviceRows x(args.x, args.x.dtype), weight(args.weight, args.weight.dtype), bias(args.bias, args.bias.dtype);
    const DeviceOutRows y(args.y);
    const ForwardArgs a{.x = RowElements(x),
                        .weight = RowElements(weight),
                        .bias = RowElements(bias),
                        .y = RowElements(y),
                        .mean = Operand(args.mean),
                        .rstd = Operand(args.rstd),
                        .rows = x.rows,
                        .columns = x.columns,
                        .eps = static_cast<float>(args.eps)};
    if (a.rows == 0) return;
    const cudaStream_t queue = cuda::handle_of(stream);
    const bool walked = is_flat_statistic(a.mean) && is_flat_statistic(a.rstd) &&
                        dispatch_block_rows("layer_norm", a.columns, {a.x, a.y}, {a.weight, a.bias}, [&](auto shape) {
                            using S = decltype(shape);
                            forward_block_kernel<S><<<grid_x(a.rows), S::kThreads, 0, queue>>>(a);
                        });
    if (!walked)
        dispatch_sharing(a.columns, [&](auto sharing) {
            using S = decltype(sharing);
            forward_kernel<S><<<grid_x(ceil_div(a.rows, S::kRows)), kBlock, 0, queue>>>(a);
        });
    LC_LAUNCHED("layer_norm", queue);
    y.finish();
}

void layer_norm_backward_cuda(const LayerNormBackward& args, Stream stream) {
    if (args.dweight)
        norm_weight_gradient_cuda(
            "layer_norm", {.x = args.x, .dy = args.dy, .mean = args.mean, .rstd = args.rstd, .dweight = args.dweight},
            stream);
    const DeviceRows x(args.x, args.x.dtype), weight(args.weight, args.weight.dtype), dy(args.dy, args.dy.dtype);
    column_sum_cuda(dy, args.dbias, stream);
    const DeviceOutRows dx(args.dx);
    if (!dx || x.rows == 0) return;
    const BackwardArgs a{.x = RowElements(x),
                         .weight = RowElements(weight),
                         .dy = RowElements(dy),
                         .dx = RowElements(dx),
                         .mean = Operand(args.mean),
                         .rstd = Operand(args.rstd),
                         .rows = x.rows,
                         .columns = x.columns};
    const cudaStream_t queue = cuda::handle_of(stream);
    const bool walked = is_flat_statistic(a.mean) && is_flat_statistic(a.rstd) &&
                        dispatch_block_rows("layer_norm", a.columns, {a.x, a.dy}, {a.weight, a.dx}, [&](auto shape) {
                            using S = decltype(shape);
                            backward_block_kernel<S><<<grid_x(a.rows), S::kThreads, 0, queue>>>(a);
                        });
    if (!walked)
        dispatch_sharing(a.columns, [&](auto sharing) {
            using S = decltype(sharing);
            backward_kernel<S><<<grid_x(ceil_div(a.rows, S::kRows)), kBlock, 0, queue>>>(a);
        });
    LC_LAUNCHED("layer_norm", queue);
    dx.finish();
}

}  // namespace lc::kernels
