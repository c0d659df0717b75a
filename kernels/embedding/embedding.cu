// Embedding on the GPU.
//
// MATHS    embedding.h. An id outside [0,V) on the device cannot be refused: its row of `out` is NaN, its gradient is dropped.
// TILING   forward: a block copies four rows, a thread a run of eight elements of each at a time, so that four loads are under way at
//          once. Rows that are no whole runs: a thread has a run of one row.
//          backward: a counting sort of the N positions by id, then a thread for each run of eight elements of each table row adds
//          that row's positions in rising order.
//            count   counts[v] = how many positions have id v
//            claim   starts[v] = where v's positions go; which v comes first is the scheduler's choice and changes no result
//            scatter positions into their stretch, in any order
//            order   position i goes to place |{j < i in the stretch}|: now the order is fixed
// COST     forward: N rows read and written. Backward: N rows read, V rows written; the sort is O(N + V + sum of squares of the
//          counts) integers, small beside the rows.
// NUMERICS f32 sums in the order of positions, rounded once. Atomics are on integers only, and no result depends on their order.
// LADDER   1 a run of one row a thread: an id, then a load that needs it, and two 64-bit divisions for 16 bytes.
//          2 four rows a block: meant for 0.85 of a copy.
// SOURCE   derived here.
#include <math_constants.h>

#include <type_traits>

#include "kernels/common/cuda/operand.cuh"
#include "kernels/common/cuda/run.cuh"
#include "kernels/embedding/embedding.h"

namespace lc::kernels {
namespace {

constexpr int kThreads = 256;

__global__ void forward_kernel(RowElements weight, const __grid_constant__ Operand ids, RowElements out, int64_t rows,
                               int64_t columns, int64_t vocabulary) {
    const int64_t runs = (columns + kRun - 1) / kRun, step = static_cast<int64_t>(gridDim.x) * blockDim.x;
    for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < rows * runs; i += step) {
        const int64_t row = i / runs, column = i % runs * kRun, id = ids.load_id(row);
        const int count = static_cast<int>(min(int64_t{kRun}, columns - column));
        float values[kRun];
        if (id >= 0 && id < vocabulary) {
            weight.load(id, column, count, values);
        } else {
#pragma unroll
            for (int j = 0; j < kRun; ++j) values[j] = CUDART_NAN_F;
        }
        out.store(row, column, count, values);
    }
}

constexpr int kRowsAtOnce = 4;

// Whole runs of W into whole runs of O. The copy of a dtype into itself moves bits.
template <class W, class O>
__global__ void __launch_bounds__(kThreads)
    forward_rows_kernel(RowElements weight, const __grid_constant__ Operand ids, RowElements out, int64_t rows,
                        int64_t columns, int64_t vocabulary) {
    const int64_t first = static_cast<int64_t>(blockIdx.x) * kRowsAtOnce;
    __shared__ int64_t chosen[kRowsAtOnce];
    if (threadIdx.x < kRowsAtOnce)
        chosen[threadIdx.x] = first + threadIdx.x < rows ? ids.load_id(first + threadIdx.x) : -1;
    __syncthreads();
    const W* from[kRowsAtOnce];
#pragma unroll
    for (int r = 0; r < kRowsAtOnce; ++r) {
        const bool inside = chosen[r] >= 0 && chosen[r] < vocabulary;
        from[r] = inside ? reinterpret_cast<const W*>(weight.elements.base) + chosen[r] * weight.stride : nullptr;
    }
    for (int64_t column = threadIdx.x * kRun; column < columns; column += kThreads * kRun) {
        RunBits<W> bits[kRowsAtOnce];
#pragma unroll
        for (int r = 0; r < kRowsAtOnce; ++r) {
            if (from[r]) {
                bits[r] = RunBits<W>::load(from[r] + column);
            } else {
#pragma unroll
                for (int j = 0; j < kRun; ++j) bits[r].set(j, CUDART_NAN_F);
            }
        }
#pragma unroll
        for (int r = 0; r < kRowsAtOnce; ++r) {
            if (first + r >= rows) break;
            O* to = reinterpret_cast<O*>(out.elements.base) + (first + r) * out.stride + column;
            if constexpr (std::is_same_v<W, O>) {
                bits[r].store(to);
            } else {
                RunBits<O> rounded;
#pragma unroll
                for (int j = 0; j < kRun; ++j) rounded.set(j, bits[r].get(j));
                rounded.store(to);
            }
        }
    }
}

// False where rows are no whole, aligned runs.
bool forward_rows(const DeviceRows& weight, const Operand& ids, const DeviceOutRows& out, cudaStream_t queue) {
    const RowElements from(weight), to(out);
    if (!from.elements.packed || !to.elements.packed || out.columns % kRun != 0) return false;
    const auto launch = [&](auto kernel) {
        kernel<<<grid_x(ceil_div(out.rows, kRowsAtOnce)), kThreads, 0, queue>>>(from, ids, to, out.rows, out.columns,
                                                                                weight.rows);
    };
    dispatch_cuda(out.dtype, "embedding", [&](auto type) {
        using O = typename decltype(type)::type;
        if (weight.dtype == out.dtype)
            launch(forward_rows_kernel<O, O>);
        else
            launch(forward_rows_kernel<float, O>);
    });
    return true;
}

// Positions grouped by id.
struct Groups {
    int *counts, *starts, *filled;  // [V]
    int* claimed;                   // [1]
    int *scattered, *ordered;       // [N]
    int64_t positions, vocabulary;
};

__device__ int64_t thread_index() {
    return static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
}

__global__ void count_kernel(Groups g, const __grid_constant__ Operand ids) {
    const int64_t i = thread_index();
    if (i >= g.positions) return;
    const int64_t id = ids.load_id(i);
    if (id >= 0 && id < g.vocabulary) atomicAdd(&g.counts[id], 1);
}

__global__ void claim_kernel(Groups g) {
    const int64_t id = thread_index();
    if (id < g.vocabulary && g.counts[id] > 0) g.starts[id] = atomicAdd(g.claimed, g.counts[id]);
}

__global__ void scatter_kernel(Groups g, const __grid_constant__ Operand ids) {
    const int64_t i = thread_index();
    if (i >= g.positions) return;
    const int64_t id = ids.load_id(i);
    if (id >= 0 && id < g.vocabulary) g.scattered[g.starts[id] + atomicAdd(&g.filled[id], 1)] = static_cast<int>(i);
}

__global__ void order_kernel(Groups g, const __grid_constant__ Operand ids) {
    const int64_t i = thread_index();
    if (i >= g.positions) return;
    const int64_t id = ids.load_id(i);
    if (id < 0 || id >= g.vocabulary) return;
    const int start = g.starts[id], count = g.counts[id];
    int before = 0;
    for (int k = 0; k < count; ++k) before += g.scattered[start + k] < i;
    g.ordered[start + before] = static_cast<int>(i);
}

__global__ void backward_kernel(Groups g, RowElements dout, RowElements dweight, int64_t columns) {
    const int64_t runs = (columns + kRun - 1) / kRun, step = static_cast<int64_t>(gridDim.x) * blockDim.x;
    for (int64_t i = thread_index(); i < g.vocabulary * runs; i += step) {
        const int64_t id = i / runs, column = i % runs * kRun;
        const int positions = g.counts[id];
        if (positions == 0 && dweight.add) continue;
        const int count = static_cast<int>(min(int64_t{kRun}, columns - column));
        float sum[kRun] = {};
        const int* ordered = g.ordered + (positions > 0 ? g.starts[id] : 0);
#pragma unroll 4  // several rows under way at once: a padding id may have thousands of positions
        for (int k = 0; k < positions; ++k) {
            float values[kRun];
            dout.load(ordered[k], column, count, values);
#pragma unroll
            for (int j = 0; j < kRun; ++j) sum[j] += values[j];
        }
        dweight.store(id, column, count, sum);
    }
}

}  // namespace

void embedding_forward_cuda(const EmbeddingForward& args, Stream stream) {
    const DeviceRows weight(args.weight, args.weight.dtype);
    const DeviceOutRows out(args.out);
    const int64_t items = out.rows * ceil_div(out.columns, kRun);
    if (items == 0) return;
    const cudaStream_t queue = cuda::handle_of(stream);
    if (!forward_rows(weight, Operand(args.ids), out, queue))
        forward_kernel<<<grid_x(ceil_div(items, kThreads)), kThreads, 0, queue>>>(
            RowElements(weight), Operand(args.ids), RowElements(out), out.rows, out.columns, weight.rows);
    LC_LAUNCHED("embedding", queue);
    out.finish();
}

void embedding_backward_cuda(const EmbeddingBackward& args, Stream stream) {
    if (!args.dweight) return;
    const DeviceRows dout(args.dout, args.dout.dtype);
    const DeviceOutRows dweight(args.dweight);
    const int64_t n = args.ids.numel(), v = dweight.rows, items = v * ceil_div(dweight.columns, kRun);
    if (items == 0) return;
    const cudaStream_t queue = cuda::handle_of(stream);
    const DeviceScratch<int> zeroed(2 * v + 1, stream), rest(v + 2 * n, stream);
    LC_CUDA(cudaMemsetAsync(zeroed.data(), 0, static_cast<size_t>(2 * v + 1) * sizeof(int), queue));
    const Groups g{.counts = zeroed.data(),
                   .starts = rest.data(),
                   .filled = zeroed.data() + v,
                   .claimed = zeroed.data() + 2 * v,
                   .scattered = rest.data() + v,
                   .ordered = rest.data() + v + n,
                   .positions = n,
                   .vocabulary = v};
    const Operand ids(args.ids);
    const unsigned over_positions = grid_x(ceil_div(n, kThreads)), over_table = grid_x(ceil_div(v, kThreads));
    count_kernel<<<over_positions, kThreads, 0, queue>>>(g, ids);
    claim_kernel<<<over_table, kThreads, 0, queue>>>(g);
    scatter_kernel<<<over_positions, kThreads, 0, queue>>>(g, ids);
    order_kernel<<<over_positions, kThreads, 0, queue>>>(g, ids);
    backward_kernel<<<grid_x(ceil_div(items, kThreads)), kThreads, 0, queue>>>(g, RowElements(dout),
                                                                               RowElements(dweight), dweight.columns);
    LC_LAUNCHED("embedding", queue);
    dweight.finish();
}

}  // namespace lc::kernels
