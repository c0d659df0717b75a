// Sums over all elements of tensors, in f64 and in an order that depends on shapes and layouts alone.
//
//   struct Square { __device__ double operator()(const float (&in)[1]) const { ... } };
//   DeviceScratch<double> parts(sum_parts(numel), stream);
//   sum_terms<1>("grad_norm", Square{}, {x}, parts.data(), stream);      parts[b] = sum of f(in...) over block b's elements
//   sum_total(parts.data(), count, factor, result, stream);              result = factor * sum of parts
//
// TILING   a block sums kChunk elements: each thread its runs in order, then the threads as a tree. One block adds the parts. Where
//          all tensors are gap-free, aligned, of one order and one dtype, a thread has several runs of each under way at once,
//          and a sum for each.
// COST     each tensor once: bound by memory; workspace 8 bytes for every kChunk elements.
// NUMERICS f64 from the first addition on. A GPU with slow f64 (compute capability x.6, x.9) pays here; the loss and the norm
//          are two of a thousand launches.
#pragma once
#include "kernels/common/cuda/launch.h"
#include "kernels/common/cuda/reduce.cuh"
#include "kernels/common/cuda/walk.cuh"

namespace lc::kernels {

inline constexpr int kSumThreads = 256;
inline constexpr int64_t kChunk = 8 * kSumThreads * kRun;

inline int64_t sum_parts(int64_t numel) {
    return ceil_div(numel, kChunk);
}

template <int N, class T, class F>
__global__ void __launch_bounds__(kSumThreads, 4)
    flat_sum_kernel(const __grid_constant__ Walk<N> walk, const F f, double* parts) {
    constexpr int kStep = kSumThreads * kRun, kBatch = N == 1 ? 4 : 2;  // runs of a tensor under way
    static_assert(kChunk % (kBatch * kStep) == 0);
    const int64_t begin = static_cast<int64_t>(blockIdx.x) * kChunk, end = min(walk.numel, begin + kChunk);
    double sums[kBatch] = {};
    for (int64_t first = begin + threadIdx.x * kRun; first < end; first += kBatch * kStep) {
        RunBits<T> bits[kBatch][N];
#pragma unroll
        for (int b = 0; b < kBatch; ++b)
#pragma unroll
            for (int n = 0; n < N; ++n)
                if (first + b * kStep + kRun <= end)
                    bits[b][n] = RunBits<T>::load(reinterpret_cast<const T*>(walk.at[n].base) + first + b * kStep);
#pragma unroll
        for (int b = 0; b < kBatch; ++b) {
            const int64_t at = first + b * kStep;
            float x[N];
            if (at + kRun <= end) {
#pragma unroll
                for (int j = 0; j < kRun; ++j) {
#pragma unroll
                    for (int n = 0; n < N; ++n) x[n] = bits[b][n].get(j);
                    sums[b] += f(x);
                }
            } else {
                for (int64_t i = at; i < end; ++i) {
                    for (int n = 0; n < N; ++n) x[n] = walk.at[n].load(i);
                    sums[b] += f(x);
                }
            }
        }
    }
    double sum = 0;
#pragma unroll
    for (int b = 0; b < kBatch; ++b) sum += sums[b];
    sum = block_sum(sum);
    if (threadIdx.x == 0) parts[blockIdx.x] = sum;
}

template <int N, int Width, class F>
__global__ void sum_kernel(const __grid_constant__ Walk<N> walk, const F f, double* parts) {
    const int64_t chunks = (walk.numel + kChunk - 1) / kChunk;
    for (int64_t chunk = blockIdx.x; chunk < chunks; chunk += gridDim.x) {
        const int64_t end = min(walk.numel, (chunk + 1) * kChunk);
        double sum = 0;
        for (int64_t first = chunk * kChunk + threadIdx.x * Width; first < end; first += kSumThreads * Width) {
            const int count = static_cast<int>(min(static_cast<int64_t>(Width), end - first));
            int64_t place[N];
            walk.locate(first, place);
            float in[N][Width];
#pragma unroll
            for (int n = 0; n < N; ++n) load_from<Width>(walk, n, place[n], count, in[n]);
#pragma unroll
            for (int j = 0; j < Width; ++j) {
                float x[N];
#pragma unroll
                for (int n = 0; n < N; ++n) x[n] = in[n][j];
                if (j < count) sum += f(x);
            }
        }
        sum = block_sum(sum);
        if (threadIdx.x == 0) parts[chunk] = sum;
    }
}

// Writes sum_parts(numel) parts.
template <int N, class F>
void sum_terms(const char* op, const F& f, const std::array<TensorView, N>& views, double* parts, Stream stream) {
    const Walk<N> walk(views, false);
    if (walk.numel == 0) return;
    const cudaStream_t queue = cuda::handle_of(stream);
    const int64_t blocks = sum_parts(walk.numel);
    bool flat = walk.in_runs && walk.rank == 1 && blocks == grid_x(blocks);
    for (int n = 0; n < N; ++n) flat = flat && walk.strides[n][0] == 1 && views[n].dtype == views[0].dtype;
    if (flat)
        dispatch_cuda(views[0].dtype, op, [&](auto type) {
            flat_sum_kernel<N, typename decltype(type)::type>
                <<<grid_x(blocks), kSumThreads, 0, queue>>>(walk, f, parts);
        });
    else
        dispatch_bool(walk.in_runs, [&](auto in_runs) {
            constexpr int kWidth = in_runs() ? kRun : 1;
            sum_kernel<N, kWidth><<<grid_x(blocks), kSumThreads, 0, queue>>>(walk, f, parts);
        });
    LC_LAUNCHED(op, queue);
}

// `result` holds one element, f64, f32 or bf16; no parts make 0.
void sum_total(const double* parts, int64_t count, double factor, const TensorView& result, Stream stream);

}  // namespace lc::kernels
