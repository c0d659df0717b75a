// Aligned rows of one dtype, a block a row, from load to store in registers: how norms walk the rows of models.
//
// TILING   a thread has Runs runs of eight elements, Threads runs apart, of every matrix and parameter. It loads them all before it uses
//          any; then come the row's sums, one barrier each, and the stores. Blocks do not loop: the device starts one wherever another
//          ends, so that no multiprocessor waits for a slower one.
//
//            bytes under way an SM, bf16, D = 4096, six blocks of 256: 48 KiB a matrix
//
// NUMERICS a thread adds its runs in order, then a tree over the warp, then the warps in order: a function of D alone.
#pragma once
#include "kernels/common/cuda/operand.cuh"
#include "kernels/common/cuda/reduce.cuh"
#include "kernels/common/cuda/run.cuh"

namespace lc::kernels {

template <class T, int Threads, int Runs>
struct BlockRow {
    using Type = T;
    static constexpr int kThreads = Threads, kWarps = Threads / kWarp, kRuns = Runs;
    static constexpr int64_t kColumns = int64_t{Threads} * Runs * kRun;  // of the longest row
    using Bits = RunBits<T>[Runs];
    using Values = float[Runs][kRun];

    __device__ static int column(int run) { return (run * Threads + static_cast<int>(threadIdx.x)) * kRun; }
    // What lies behind the row's end is zeros, also in a parameter.
    __device__ __forceinline__ static void load(const RowElements& from, int64_t row, int columns, Bits& bits) {
        const T* start = reinterpret_cast<const T*>(from.elements.base) + row * from.stride;
#pragma unroll
        for (int k = 0; k < Runs; ++k) {
            bits[k] = {};
            if (column(k) < columns) bits[k] = RunBits<T>::load(start + column(k));
        }
    }
    __device__ __forceinline__ static void load_parameter(const RowElements& from, int columns, Values& values) {
#pragma unroll
        for (int k = 0; k < Runs; ++k) {
#pragma unroll
            for (int j = 0; j < kRun; ++j) values[k][j] = 0;
            if (column(k) < columns) load_packed(from.elements, column(k), values[k]);
        }
    }
    // Floats that were made of the bits are made again after this, instead of being kept: fewer registers, more blocks an SM.
    __device__ __forceinline__ static void forget_floats(Bits& bits) {
#pragma unroll
        for (int k = 0; k < Runs; ++k)
#pragma unroll
            for (auto& pack : bits[k].packs) {
                auto* words = reinterpret_cast<uint32_t*>(pack.values);
#pragma unroll
                for (int i = 0; i < 4; ++i) asm volatile("" : "+r"(words[i]));
            }
    }
    // visit(k) for each run of this thread that the row has.
    template <class F>
    __device__ __forceinline__ static void for_runs(int columns, F&& visit) {
#pragma unroll
        for (int k = 0; k < Runs; ++k)
            if (column(k) < columns) visit(k);
    }
    __device__ __forceinline__ static void store_bits(const RowElements& to, int64_t row, int k,
                                                      const RunBits<T>& bits) {
        bits.store(reinterpret_cast<T*>(to.elements.base) + row * to.stride + column(k));
    }
    // value(k, j) to a matrix of T, over what is there.
    template <class F>
    __device__ __forceinline__ static void store_row(const RowElements& to, int64_t row, int columns, F&& value) {
        for_runs(columns, [&](int k) {
            RunBits<T> bits;
#pragma unroll
            for (int j = 0; j < kRun; ++j) bits.set(j, value(k, j));
            store_bits(to, row, k, bits);
        });
    }
    // One run to a gradient of either dtype, or on top of it: `values` are then the sums.
    __device__ __forceinline__ static void store(const RowElements& to, int64_t row, int k, float (&values)[kRun]) {
        store_packed(to.elements, row * to.stride + column(k), to.add, values);
    }
    // Every thread gets the sums over the block, after one barrier; `parts` must not be used twice.
    template <int Count>
    __device__ __forceinline__ static void sum(float (&values)[Count], float (&parts)[Count][kWarps]) {
#pragma unroll
        for (int i = 0; i < Count; ++i) {
            values[i] = warp_sum(values[i]);
            if (threadIdx.x % kWarp == 0) parts[i][threadIdx.x / kWarp] = values[i];
        }
        __syncthreads();
#pragma unroll
        for (int i = 0; i < Count; ++i) {
            values[i] = 0;
#pragma unroll
            for (int w = 0; w < kWarps; ++w) values[i] += parts[i][w];
        }
    }
};

// A number a row, as these kernels read and write it: f32, without gaps.
inline bool is_flat_statistic(const Operand& statistic) {
    return statistic.flat && statistic.dtype == DType::f32;
}
__device__ __forceinline__ float& flat_statistic(const Operand& statistic, int64_t row) {
    return reinterpret_cast<float*>(statistic.base)[statistic.offset + row];
}

// Runs f(BlockRow<...>{}) and returns true where rows of `columns` elements can be walked so: all is aligned, the inputs are of one
// dtype, and the rows are neither so short that a warp a row is quicker, nor longer than a block holds.
template <class F>
bool dispatch_block_rows(const char* op, int64_t columns, std::initializer_list<RowElements> inputs,
                         std::initializer_list<RowElements> others, F&& f) {
    constexpr int64_t kShort = 1024;
    if (columns <= kShort || columns % kRun != 0) return false;
    const DType dtype = inputs.begin()->elements.dtype;
    for (const RowElements& input : inputs)
        if (input && (!input.elements.packed || input.elements.dtype != dtype)) return false;
    for (const RowElements& other : others)
        if (other && !other.elements.packed) return false;
    return dispatch_cuda(dtype, op, [&](auto type) {
        using T = typename decltype(type)::type;
        const auto run_if = [&](auto shape) { return columns <= shape.kColumns && (f(shape), true); };
        return run_if(BlockRow<T, 256, 1>{}) || run_if(BlockRow<T, 256, 2>{}) || run_if(BlockRow<T, 512, 2>{});
    });
}

}  // namespace lc::kernels
