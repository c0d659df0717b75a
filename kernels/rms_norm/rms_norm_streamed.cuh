// RMS norm of aligned rows of 1025 to 8192 elements: the rows of models. Included by rms_norm.cu, which says what is computed.
//
// TILING   as many blocks as the device holds at a time; a block walks rows gridDim apart. A thread has the same Runs runs of eight
//          columns of every row, so it loads their weights once. Rows come through a ring in shared memory, kDepth of them under way
//          (cp.async): a thread reads what it copied itself, without a barrier, and starts the next copy into the same place as soon as
//          it has floats or bits of this one. The one barrier a row is the sum over the block.
//
//            bytes under way an SM, bf16, D = 4096, three blocks: forward 144 KiB, with a residual 144; backward 144, with dsum 144
//
// NUMERICS a thread adds its runs in order, then a tree over the warp, then the warps in order: a function of D alone.
#pragma once
#include "kernels/common/cuda/mma.cuh"
#include "kernels/common/cuda/operand.cuh"
#include "kernels/common/cuda/reduce.cuh"
#include "kernels/common/cuda/run.cuh"

namespace lc::kernels {

template <class T, int Threads, int Runs>
struct StreamedRows {
    using Type = T;
    static constexpr int kThreads = Threads, kWarps = Threads / kWarp, kRuns = Runs;
    static constexpr int kBlocks = 768 / Threads;                        // an SM at least: 80 registers
    static constexpr int64_t kColumns = int64_t{Threads} * Runs * kRun;  // of the longest row
    static constexpr int kRowBytes = static_cast<int>(kColumns * sizeof(T));
    using Bits = RunBits<T>[Runs];

    __device__ static int column(int run) { return (run * Threads + static_cast<int>(threadIdx.x)) * kRun; }
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

// The rows of this block, `Inputs` matrices side by side.
template <class S, int Inputs>
struct RowRing {
    using T = typename S::Type;
    static constexpr int kDepth = std::max(1, 48 * 1024 / (Inputs * S::kRowBytes));
    static constexpr int kBytes = kDepth * Inputs * S::kRowBytes;

    const RowElements* inputs[Inputs];
    unsigned char* shared;
    int64_t rows;
    int columns;
    int slot = 0;

    __device__ __forceinline__ T* place(int input) const {
        return reinterpret_cast<T*>(shared + (slot * Inputs + input) * S::kRowBytes);
    }
    // Queues this thread's runs of a row; past the last row nothing, as a group of its own.
    __device__ __forceinline__ void copy(int64_t row) {
#pragma unroll
        for (int n = 0; n < Inputs; ++n) {
            const T* from = reinterpret_cast<const T*>(inputs[n]->elements.base) + row * inputs[n]->stride;
#pragma unroll
            for (int k = 0; k < S::kRuns; ++k)
#pragma unroll
                for (int i = 0; i < kRun; i += Pack<T>::kSize)
                    if (row < rows && S::column(k) < columns)
                        copy_async(place(n) + S::column(k) + i, from + S::column(k) + i);
        }
        copy_async_commit();
    }
    __device__ __forceinline__ void start() {
        for (int ahead = 0; ahead < kDepth; ++ahead, next()) copy(blockIdx.x + static_cast<int64_t>(ahead) * gridDim.x);
    }
    __device__ __forceinline__ void next() {
        slot = slot + 1 == kDepth ? 0 : slot + 1;
    }
    // Those behind the row's end are zeros.
    __device__ __forceinline__ void read(int input, typename S::Bits& bits) const {
#pragma unroll
        for (int k = 0; k < S::kRuns; ++k)
            bits[k] = S::column(k) < columns ? RunBits<T>::load(place(input) + S::column(k)) : RunBits<T>{};
    }
    __device__ __forceinline__ void wait() const {
        copy_async_wait<kDepth - 1>();
    }
    // Into the place that has just been read.
    __device__ __forceinline__ void refill(int64_t row) {
        copy(row + static_cast<int64_t>(kDepth) * gridDim.x);
        next();
    }
};

template <class S, bool HasResidual>
__global__ void __launch_bounds__(S::kThreads, S::kBlocks)
    rms_forward_streamed(const __grid_constant__ RmsForwardArgs a) {
    using T = typename S::Type;
    extern __shared__ __align__(16) unsigned char shared[];
    __shared__ float parts[2][S::kWarps];
    RowRing<S, HasResidual ? 2 : 1> ring{{&a.x}, shared, a.rows, static_cast<int>(a.columns)};
    if constexpr (HasResidual) ring.inputs[1] = &a.residual;
    ring.start();
    float weight[S::kRuns][kRun];
    S::load_weight(a.weight, a.columns, a.offset, weight);
    int turn = 0;
    for (int64_t row = blockIdx.x; row < a.rows; row += gridDim.x, turn ^= 1) {
        ring.wait();
        typename S::Bits x, residual;
        ring.read(0, x);
        if constexpr (HasResidual) ring.read(1, residual);
        float s[S::kRuns][kRun], squares = 0;
#pragma unroll
        for (int k = 0; k < S::kRuns; ++k)
#pragma unroll
            for (int j = 0; j < kRun; ++j) {
                s[k][j] = x[k].get(j);
                if constexpr (HasResidual) s[k][j] += residual[k].get(j);
                squares += s[k][j] * s[k][j];
            }
        ring.refill(row);
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
__global__ void __launch_bounds__(S::kThreads, S::kBlocks)
    rms_backward_streamed(const __grid_constant__ RmsBackwardArgs a) {
    extern __shared__ __align__(16) unsigned char shared[];
    __shared__ float parts[2][S::kWarps];
    RowRing<S, HasSum ? 3 : 2> ring{{&a.s, &a.dy}, shared, a.rows, static_cast<int>(a.columns)};
    if constexpr (HasSum) ring.inputs[2] = &a.dsum;
    ring.start();
    float weight[S::kRuns][kRun], next_rstd = a.flat_rstd()[blockIdx.x];
    S::load_weight(a.weight, a.columns, a.offset, weight);
    int turn = 0;
    for (int64_t row = blockIdx.x; row < a.rows; row += gridDim.x, turn ^= 1) {
        const float rstd = next_rstd;
        if (row + gridDim.x < a.rows) next_rstd = a.flat_rstd()[row + gridDim.x];
        ring.wait();
        typename S::Bits s, dy, dsum;
        ring.read(0, s), ring.read(1, dy);
        float dot = 0;
#pragma unroll
        for (int k = 0; k < S::kRuns; ++k)
#pragma unroll
            for (int j = 0; j < kRun; ++j) dot += dy[k].get(j) * weight[k][j] * s[k].get(j);
        if constexpr (!HasSum) ring.refill(row);
        dot = block_sum(dot, parts[turn]);
        const float shrink = rstd * rstd * rstd * dot / static_cast<float>(a.columns);
        if constexpr (HasSum) ring.read(2, dsum), ring.refill(row);  // not before: registers
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
template <auto Kernel, int Bytes>
unsigned blocks_at_a_time(int threads, int64_t most) {
    static const int64_t blocks = [threads] {
        int device = 0, multiprocessors = 0, each = 0;
        allow_shared_memory(Kernel, Bytes + 1024);  // static memory counts
        LC_CUDA(cudaGetDevice(&device));
        LC_CUDA(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device));
        LC_CUDA(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&each, Kernel, threads, Bytes));
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
