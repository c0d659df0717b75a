// Layer norm on the GPU.
//
// MATHS    layer_norm.h.
// TILING   aligned rows of 1025 to 8192 elements: block_rows.cuh, in the backward a block a row. The forward takes two rows a block and has
//          one barrier: a warp makes the mean of its own numbers and their squared distances from that, the block merges what its warps
//          made; weight and bias are loaded last, so that four blocks share an SM. Others: norm_rows.cuh, a warp or a block a row; rows
//          of up to 8192 elements stay in registers from the sums to the result, longer ones are read again, from L1 or L2. dbias is
//          column_sum. The kernels begin early (early.cuh).
// COST     forward: x and y once. Backward: x, dy and dx once; dweight and dbias read x and dy once more (frozen parameters
//          want none).
// NUMERICS f32 throughout; the variance is the mean of squared distances from the mean, of what is in registers: no cancellation, also
//          where means of parts are merged (Chan et al. 1979). Sums as a tree over threads, in an order that depends on D alone.
// LADDER   8192 x 4096 in bf16 on an H200, share of a copy's bandwidth: forward, backward; meant for 0.88
//          1 norm_rows.cuh: 0.37, 0.36.
//          2 block_rows.cuh as RMS norm has it, weight and bias loaded between the two sums: 0.60, 0.86. 64 registers, four blocks an SM:
//            too few bytes under way in the forward, whose chain of two sums is twice as long.
//          3 weight and bias after the sums, 40 registers: 0.75, 0.86.
//          4 two rows a block, a barrier less, begun early: 0.91 alone, as below; 0.83, 0.84 in the bench, an H100 0.94, 0.91.
//          Beside 4, alone with typed loads and stores, the forward in us, launched early or not (4: 34.7, 36.9; 3: 39.8; 31.6 at best)
//            four rows a block                                                  39.0   39.5   (parameters first: 36.0, 37.8)
//            one row a block, six blocks an SM                                  48.5          (registers: 40, spills)
//            two rows, a barrier a sum                                          35.2
//            as many blocks as run at a time, rows by the copy engine into a ring, parameters in registers: two rows 38.0   39.7,
//              one row and 128 threads                                                 39.0
//            one pass about the row's first number, one row a block                    43     (four: 38)
// SOURCE   arXiv 1607.06450.
#include "kernels/common/cuda/block_rows.cuh"
#include "kernels/common/cuda/early.cuh"
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

constexpr int kTogether = 2;  // rows of a block of the forward

// What each warp knows of a row: the mean of its numbers and their squared distances from it; `count` of them.
template <class S>
struct WarpMoments {
    float count[S::kWarps], mean[kTogether][S::kWarps], squares[kTogether][S::kWarps];
};

template <class S>
__global__ void __launch_bounds__(S::kThreads, (sizeof(typename S::Type) == 2 ? 1024 : 512) / S::kThreads)
    forward_block_kernel(const __grid_constant__ ForwardArgs a) {
    constexpr int kRows = kTogether;
    __shared__ WarpMoments<S> moments;
    join_stream();
    const int64_t first = int64_t{blockIdx.x} * kRows;
    const int rows = static_cast<int>(min(int64_t{kRows}, a.rows - first)), columns = static_cast<int>(a.columns);
    const int warp = threadIdx.x / kWarp;
    typename S::Bits x[kRows];
#pragma unroll
    for (int r = 0; r < kRows; ++r) S::load(a.x, first + min(r, rows - 1), columns, x[r]);
    float count = 0;
#pragma unroll
    for (int k = 0; k < S::kRuns; ++k)
        count += static_cast<float>(max(0, min(columns - (k * S::kThreads + warp * kWarp) * kRun, kWarp * kRun)));
    const float share = count > 0 ? 1 / count : 0.0f;
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
        float sum = 0, squares = 0;
#pragma unroll
        for (int k = 0; k < S::kRuns; ++k)
#pragma unroll
            for (int j = 0; j < kRun; ++j) sum += x[r][k].get(j);
        const float mean = warp_sum(sum) * share;
        S::forget_floats(x[r]);
        S::for_runs(columns, [&](int k) {
#pragma unroll
            for (int j = 0; j < kRun; ++j) squares += (x[r][k].get(j) - mean) * (x[r][k].get(j) - mean);
        });
        squares = warp_sum(squares);
        if (threadIdx.x % kWarp == 0) moments.mean[r][warp] = mean, moments.squares[r][warp] = squares;
    }
    if (threadIdx.x % kWarp == 0) moments.count[warp] = count;
    __syncthreads();
    float mean[kRows], rstd[kRows];
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
        S::forget_floats(x[r]);
        mean[r] = 0;
        float squares = 0;
#pragma unroll
        for (int w = 0; w < S::kWarps; ++w) mean[r] += moments.count[w] * moments.mean[r][w];
        mean[r] /= static_cast<float>(columns);
#pragma unroll
        for (int w = 0; w < S::kWarps; ++w) {
            const float apart = moments.mean[r][w] - mean[r];
            squares += moments.squares[r][w] + moments.count[w] * apart * apart;
        }
        rstd[r] = 1 / sqrtf(squares / static_cast<float>(columns) + a.eps);
        if (threadIdx.x == 0 && r < rows)
            flat_statistic(a.mean, first + r) = mean[r], flat_statistic(a.rstd, first + r) = rstd[r];
    }
    typename S::Values weight, bias;  // not before: registers
    S::load_parameter(a.weight, columns, weight);
    S::load_parameter(a.bias, columns, bias);
    S::for_runs(columns, [&](int k) {
#pragma unroll
        for (int r = 0; r < kRows; ++r) {
            if (r >= rows) continue;
            RunBits<typename S::Type> y;
#pragma unroll
            for (int j = 0; j < kRun; ++j) y.set(j, (x[r][k].get(j) - mean[r]) * rstd[r] * weight[k][j] + bias[k][j]);
            S::store_bits(a.y, first + r, k, y);
        }
    });
}

template <class S>
__global__ void __launch_bounds__(S::kThreads, (sizeof(typename S::Type) == 2 ? 1280 : 768) / S::kThreads)
    backward_block_kernel(const __grid_constant__ BackwardArgs a) {
    join_stream();
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
                            launch_joining(forward_block_kernel<S>, ceil_div(a.rows, kTogether), S::kThreads, queue, a);
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
                            launch_joining(backward_block_kernel<S>, a.rows, S::kThreads, queue, a);
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
