// RMS norm of aligned rows of 1025 to 8192 elements: the rows of models. Included by rms_norm.cu, which says what is computed.
//
// TILING   as many blocks as the device holds at a time; a block walks rows gridDim apart. A thread has the same Runs runs of eight
//          columns of every row, so it loads their weights once. It loads a row as bits; as soon as those are floats (forward) or in
//          the registers of this turn (backward), the next row's loads start, and are under way while this row is summed over the
//          block (one barrier) and written.
//
//            bytes under way an SM, bf16, D = 4096: forward 8 KiB a row and block, 16 with a residual; backward 16, 24 with dsum
//
//          f32 rows fill the registers twice as fast: they are loaded at the start of their own turn.
// NUMERICS a thread adds its runs in order, then a tree over the warp, then the warps in order: a function of D alone.
#pragma once
#include "kernels/common/cuda/operand.cuh"
#include "kernels/common/cuda/reduce.cuh"
#include "kernels/common/cuda/run.cuh"

namespace lc::kernels {

template <class T, int Threads, int Runs>
struct StreamedRows {
    using Type = T;
    static constexpr int kThreads = Threads, kWarps = Threads / kWarp, kRuns = Runs;
    static constexpr int kForwardBlocks = 768 / Threads,
                         kBackwardBlocks = 512 / Threads;                // an SM at least: 80 and 128 registers
    static constexpr int64_t kColumns = int64_t{Threads} * Runs * kRun;  // of the longest row
    static constexpr bool kAhead = sizeof(T) == 2;                       // next row's loads start in this one's turn
    using Bits = RunBits<T>[Runs];

    __device__ static int64_t column(int run) { return (int64_t{run} * Threads + threadIdx.x) * kRun; }
    // This thread's runs of a row; those behind its end are zeros.
    __device__ __forceinline__ static void load(const RowElements& from, int64_t row, int64_t columns, Bits& bits) {
        const T* start = reinterpret_cast<const T*>(from.elements.base) + row * from.stride;
#pragma unroll
        for (int k = 0; k < Runs; ++k)
            bits[k] = column(k) < columns ? RunBits<T>::load(start + column(k)) : RunBits<T>{};
    }
    __device__ __forceinline__ static void load_weight(const RowElements& weight, int64_t columns, float offset,
                                                       float (&values)[Runs][kRun]) {
#pragma unroll
        for (int k = 0; k < Runs; ++k) {
#pragma unroll
            for (int j = 0; j < kRun; ++j) values[k][j] = 0;
            if (column(k) < columns) load_packed(weight.elements, column(k), values[k]);
#pragma unroll
            for (int j = 0; j < kRun; ++j) values[k][j] += offset;
        }
    }
};

struct RmsArgs {
    RowElements weight;
    Operand rstd;
    int64_t rows, columns;
    float offset;  // of the weight
    bool has_flat_rstd() const { return rstd.flat && rstd.dtype == DType::f32; }
    __device__ float* flat_rstd() const { return reinterpret_cast<float*>(rstd.base) + rstd.offset; }
};
struct RmsForwardArgs : RmsArgs {
    RowElements x, residual, y, sum;
    float eps;
};
struct RmsBackwardArgs : RmsArgs {
    RowElements s, dy, dsum, dx, dresidual;
};

template <class S, bool HasResidual>
__global__ void __launch_bounds__(S::kThreads, S::kForwardBlocks)
    rms_forward_streamed(const __grid_constant__ RmsForwardArgs a) {
    using T = typename S::Type;
    __shared__ float parts[2][S::kWarps];
    float weight[S::kRuns][kRun];
    typename S::Bits x, residual;
    const auto load = [&](int64_t row) {
        S::load(a.x, row, a.columns, x);
        if constexpr (HasResidual) S::load(a.residual, row, a.columns, residual);
    };
    if constexpr (S::kAhead) load(blockIdx.x);
    S::load_weight(a.weight, a.columns, a.offset, weight);
    int turn = 0;
    for (int64_t row = blockIdx.x; row < a.rows; row += gridDim.x, turn ^= 1) {
        if constexpr (!S::kAhead) load(row);
        float s[S::kRuns][kRun], squares = 0;
#pragma unroll
        for (int k = 0; k < S::kRuns; ++k)
#pragma unroll
            for (int j = 0; j < kRun; ++j) {
                s[k][j] = x[k].get(j);
                if constexpr (HasResidual) s[k][j] += residual[k].get(j);
                squares += s[k][j] * s[k][j];
            }
        if (S::kAhead && row + gridDim.x < a.rows) load(row + gridDim.x);
        const auto write = [&](const RowElements& to, auto value) {
            T* start = reinterpret_cast<T*>(to.elements.base) + row * to.stride;
#pragma unroll
            for (int k = 0; k < S::kRuns; ++k) {
                RunBits<T> bits;
#pragma unroll
                for (int j = 0; j < kRun; ++j) bits.set(j, value(k, j));
                if (S::column(k) < a.columns) bits.store(start + S::column(k));
            }
        };
        if constexpr (HasResidual) write(a.sum, [&](int k, int j) { return s[k][j]; });
        squares = block_sum(squares, parts[turn]);
        const float rstd = 1 / sqrtf(squares / static_cast<float>(a.columns) + a.eps);
        if (threadIdx.x == 0) a.flat_rstd()[row] = rstd;
        write(a.y, [&](int k, int j) { return weight[k][j] * (s[k][j] * rstd); });
    }
}

// With dy; without one a backward is a copy and leaves nothing to sum.
template <class S, bool HasSum>
__global__ void __launch_bounds__(S::kThreads, S::kBackwardBlocks)
    rms_backward_streamed(const __grid_constant__ RmsBackwardArgs a) {
    __shared__ float parts[2][S::kWarps];
    float weight[S::kRuns][kRun], next_rstd = 0;
    typename S::Bits next_s, next_dy, next_dsum;
    const auto load = [&](int64_t row) {
        S::load(a.s, row, a.columns, next_s);
        S::load(a.dy, row, a.columns, next_dy);
        if constexpr (HasSum) S::load(a.dsum, row, a.columns, next_dsum);
        next_rstd = a.flat_rstd()[row];
    };
    if constexpr (S::kAhead) load(blockIdx.x);
    S::load_weight(a.weight, a.columns, a.offset, weight);
    int turn = 0;
    for (int64_t row = blockIdx.x; row < a.rows; row += gridDim.x, turn ^= 1) {
        if constexpr (!S::kAhead) load(row);
        typename S::Bits s, dy, dsum;
        float dot = 0;
#pragma unroll
        for (int k = 0; k < S::kRuns; ++k) {
            s[k] = next_s[k], dy[k] = next_dy[k];
            if constexpr (HasSum) dsum[k] = next_dsum[k];
#pragma unroll
            for (int j = 0; j < kRun; ++j) dot += dy[k].get(j) * weight[k][j] * s[k].get(j);
        }
        const float rstd = next_rstd;
        if (S::kAhead && row + gridDim.x < a.rows) load(row + gridDim.x);
        dot = block_sum(dot, parts[turn]);
        const float shrink = rstd * rstd * rstd * dot / static_cast<float>(a.columns);
#pragma unroll
        for (int k = 0; k < S::kRuns; ++k) {
            if (S::column(k) >= a.columns) continue;
            float ds[kRun], copy[kRun];  // a store adds what is there to what it is given
#pragma unroll
            for (int j = 0; j < kRun; ++j) {
                ds[j] = rstd * (dy[k].get(j) * weight[k][j]) - shrink * s[k].get(j);
                if constexpr (HasSum) ds[j] += dsum[k].get(j);
                copy[j] = ds[j];
            }
            const auto store = [&](const RowElements& to, float(&values)[kRun]) {
                if (to) store_packed(to.elements, row * to.stride + S::column(k), to.add, values);
            };
            store(a.dresidual, copy), store(a.dx, ds);
        }
    }
}

// As many blocks of a kernel as the device holds at a time. Asked once: on another GPU it is a matter of speed only.
template <auto Kernel>
unsigned blocks_at_a_time(int threads, int64_t most) {
    static const int64_t blocks = [threads] {
        int device = 0, multiprocessors = 0, each = 0;
        LC_CUDA(cudaGetDevice(&device));
        LC_CUDA(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device));
        LC_CUDA(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&each, Kernel, threads, 0));
        return int64_t{multiprocessors} * each;
    }();
    return grid_x(std::min(blocks, most));
}

// Runs f(StreamedRows<...>{}) and returns true where all of these matrices can be walked so: aligned, the inputs of one dtype.
template <class F>
bool dispatch_streamed(const RmsArgs& args, std::initializer_list<RowElements> inputs,
                       std::initializer_list<RowElements> outputs, F&& f) {
    constexpr int64_t kShort = 1024;  // a warp a row is quicker
    if (args.columns <= kShort || args.columns % kRun != 0 || !args.has_flat_rstd() || !args.weight.elements.packed)
        return false;
    const DType dtype = inputs.begin()->elements.dtype;
    for (const RowElements& input : inputs)
        if (input && (!input.elements.packed || input.elements.dtype != dtype)) return false;
    for (const RowElements& output : outputs)
        if (output && !output.elements.packed) return false;
    return dispatch_cuda(dtype, "rms_norm", [&](auto type) {
        using T = typename decltype(type)::type;
        const auto run_if = [&](auto shape) { return args.columns <= shape.kColumns && (f(shape), true); };
        return run_if(StreamedRows<T, 256, 1>{}) || run_if(StreamedRows<T, 256, 2>{}) ||
               run_if(StreamedRows<T, 512, 2>{});
    });
}

}  // namespace lc::kernels
