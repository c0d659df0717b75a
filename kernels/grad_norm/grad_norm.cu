// Norms over many tensors on the GPU.
//
// MATHS    grad_norm.h.
// TILING   one launch for all tensors, whose table travels as kernel arguments (no copy to the device, nothing to keep alive). A
//          block finds by bisection the tensor that its chunk of 8192 elements lies in; a thread has four runs of eight under way
//          and leaves with the block one f64. A second launch adds the chunks of each group, a block a group.
//
//            tensor 0            tensor 1      tensor 2 ...
//            [chunk][chunk][ch]  [chunk][c]    [chunk]...      parts: f64 a chunk, in this order
//            `----------- group 0 ---------'   `-- group 1
//
// COST     each gradient once, two launches, and one wait of the host for eight bytes a group: a training step decides on the host
//          what to do next.
// NUMERICS f64 squares and sums in an order that depends on shapes and layouts alone.
// LADDER   1 a launch a tensor and a wait a call: 250 adapters and 32 calls a step are then bound by the host.
//          2 one table, all groups in one call: two launches and a wait a step, whatever the number of tensors.
// SOURCE   derived here.
#include <cmath>
#include <deque>

#include "core/cuda/runtime.h"
#include "kernels/common/cuda/reduce.cuh"
#include "kernels/common/cuda/rows.h"
#include "kernels/common/cuda/run.cuh"
#include "kernels/grad_norm/grad_norm.h"

namespace lc::kernels {
namespace {

constexpr int kThreads = 256, kRuns = 4;
constexpr int64_t kChunk = int64_t{kThreads} * kRuns * kRun;  // elements of a block
constexpr int kTensors = 1000, kGroups = 2000;                // of one launch
constexpr size_t kMostArguments = 32764;                      // bytes, since CUDA 12.1

struct Entry {
    Elements elements;
    int64_t numel;
    int64_t first_chunk;
};
struct Table {
    Entry entries[kTensors];
    int count = 0;
    double* parts = nullptr;  // one a chunk
};
struct GroupTable {
    int64_t starts[kGroups + 1];  // group g has the parts from starts[g] up to starts[g + 1]
    const double* parts;
    double* squares;
};
static_assert(sizeof(Table) <= kMostArguments && sizeof(GroupTable) <= kMostArguments);

// Adds the squares of this thread's run r of the chunk to sums[r]. The order is that of a chunk's end, too.
template <class T>
__device__ void add_whole_chunk(const T* chunk, double (&sums)[kRuns]) {
    RunBits<T> bits[kRuns];
#pragma unroll
    for (int r = 0; r < kRuns; ++r) bits[r] = RunBits<T>::load(chunk + (r * kThreads + threadIdx.x) * kRun);
#pragma unroll
    for (int r = 0; r < kRuns; ++r)
#pragma unroll
        for (int j = 0; j < kRun; ++j) {
            const double value = bits[r].get(j);
            sums[r] += value * value;
        }
}
__device__ void add_part_of_chunk(const Entry& e, int64_t begin, double (&sums)[kRuns]) {
#pragma unroll
    for (int r = 0; r < kRuns; ++r) {
        const int64_t first = begin + (r * kThreads + threadIdx.x) * kRun;
        if (first >= e.numel) continue;
        float values[kRun];
        load_run(e.elements, first, static_cast<int>(min(int64_t{kRun}, e.numel - first)), values);
#pragma unroll
        for (int j = 0; j < kRun; ++j) {
            const double value = values[j];
            sums[r] += value * value;
        }
    }
}

__global__ void __launch_bounds__(kThreads) chunk_kernel(const __grid_constant__ Table table) {
    int low = 0, high = table.count - 1;
    while (low < high) {  // the last entry that starts at or before this block
        const int middle = (low + high + 1) / 2;
        if (table.entries[middle].first_chunk <= blockIdx.x)
            low = middle;
        else
            high = middle - 1;
    }
    const Entry& e = table.entries[low];
    const int64_t begin = (blockIdx.x - e.first_chunk) * kChunk;
    double sums[kRuns] = {};
    if (!e.elements.packed || begin + kChunk > e.numel)
        add_part_of_chunk(e, begin, sums);
    else if (e.elements.dtype == DType::bf16)
        add_whole_chunk(reinterpret_cast<const __nv_bfloat16*>(e.elements.base) + begin, sums);
    else
        add_whole_chunk(reinterpret_cast<const float*>(e.elements.base) + begin, sums);
    double sum = 0;
#pragma unroll
    for (int r = 0; r < kRuns; ++r) sum += sums[r];
    sum = block_sum(sum);
    if (threadIdx.x == 0) table.parts[blockIdx.x] = sum;
}

__global__ void __launch_bounds__(kThreads) group_kernel(const __grid_constant__ GroupTable table) {
    double sum = 0;
    for (int64_t i = table.starts[blockIdx.x] + threadIdx.x; i < table.starts[blockIdx.x + 1]; i += kThreads)
        sum += table.parts[i];
    sum = block_sum(sum);
    if (threadIdx.x == 0) table.squares[blockIdx.x] = sum;
}

// The parts of all tensors, as many launches as tables.
void sum_chunks(std::span<const TensorView> tensors, double* parts, Stream stream) {
    Table table;
    table.parts = parts;
    int64_t chunks = 0;
    const auto launch = [&] {
        if (table.count == 0) return;
        chunk_kernel<<<grid_x(chunks), kThreads, 0, cuda::handle_of(stream)>>>(table);
        LC_LAUNCHED("grad_norm", cuda::handle_of(stream));
        table.parts += chunks, table.count = 0, chunks = 0;
    };
    std::deque<DenseCopy> copies;  // a copy's memory is reused in stream order: after the kernels that read it
    for (TensorView view : tensors) {
        if (view.numel() == 0) continue;
        if (!view.layout.is_dense()) {
            copies.emplace_back(view, view.dtype);
            copy_strided(view, copies.back().view);
            view = copies.back().view;
        }
        if (table.count == kTensors) launch();
        const std::byte* base = view.base + view.layout.offset * size_of(view.dtype);
        table.entries[table.count++] = {
            {const_cast<std::byte*>(base), view.dtype, is_pack_aligned(base)}, view.numel(), chunks};
        chunks += ceil_div(view.numel(), kChunk);
    }
    launch();
}

}  // namespace

std::vector<double> grad_norms_cuda(const GradNorms& args, Stream stream) {
    std::vector<int64_t> starts(static_cast<size_t>(args.count + 1), 0);
    for (size_t i = 0; i < args.tensors.size(); ++i)
        starts[args.groups[i] + 1] += ceil_div(args.tensors[i].numel(), kChunk);
    for (int64_t g = 0; g < args.count; ++g) starts[g + 1] += starts[g];
    const DeviceScratch<double> parts(starts.back(), stream), squares(args.count, stream);
    sum_chunks(args.tensors, parts.data(), stream);
    for (int64_t first = 0; first < args.count; first += kGroups) {
        const int64_t count = std::min<int64_t>(kGroups, args.count - first);
        GroupTable table;
        std::copy_n(starts.begin() + first, count + 1, table.starts);
        table.parts = parts.data(), table.squares = squares.data() + first;
        group_kernel<<<grid_x(count), kThreads, 0, cuda::handle_of(stream)>>>(table);
        LC_LAUNCHED("grad_norm", cuda::handle_of(stream));
    }
    std::vector<double> norms(static_cast<size_t>(args.count));
    cuda::copy_bytes(reinterpret_cast<std::byte*>(norms.data()), reinterpret_cast<const std::byte*>(squares.data()),
                     args.count * static_cast<int64_t>(sizeof(double)), stream);  // waits: pageable
    for (double& norm : norms) norm = std::sqrt(norm);
    return norms;
}

}  // namespace lc::kernels
