// The narrow parts of adapted layers: factors as operands of products, and the factors' gradients.
//
// MATHS    lora_linear.h; gradients dA = q^T x and dB^T = s p^T dy: low^T z with 1 to 64 ranks.
// TILING   a block has 128 columns of z and a slice of the rows, which it takes 32 at a time through a ring of tiles in shared memory:
//
//            z    [32 rows, 128 columns]   a warp multiplies 32 of the columns, as z^T [32, 32]
//            low  [32 rows, 64 ranks]      with all of low: sums [32 columns, ranks] stay in registers
//
//          Slices go to workspace; a second launch adds them in order and converts.
// COST     z once for up to 64 ranks: four blocks an SM have 96 KiB of it under way. low: ranks / columns of that, from L2. Workspace:
//          slices x ranks x columns f32, 2 % of z for 8 ranks.
// NUMERICS bf16 operands, f32 sums in an order that depends on the shapes alone.
// LADDER   1 cuBLASLt: outputs of 8 rows with 8192 terms, at its heuristics' mercy: 70 us for dA or dB of 8192 x 4096 (H100), a third
//            of what memory allows.
//          2 this: by its bytes 25 us, 0.9 of a copy.
//          Tried: loads to registers, movmatrix instead of shared memory, one step ahead: half of a copy's rate.
// SOURCE   arXiv 2106.09685.
#include "kernels/common/cuda/early.cuh"
#include "kernels/common/cuda/mma.cuh"
#include "kernels/common/cuda/operand.cuh"
#include "kernels/common/cuda/pack.cuh"
#include "kernels/common/cuda/reduce.cuh"
#include "kernels/lora_linear/lora_low_rank.h"

namespace lc::kernels {
namespace {

// --- factors ---

constexpr int kFactorThreads = 64, kRun = 8;  // elements of a row that a thread makes

struct FactorArgs {
    Operand a[kMostAdapted], b[kMostAdapted];
    float s[kMostAdapted];
    int rank[kMostAdapted], first_column[kMostAdapted], first_row[kMostAdapted];
    int count = 0, counters = 0, in = 0, out = 0, width = 0;
    bool transposed = false;  // b
    int* zeros = nullptr;
};

__device__ __forceinline__ int layer_of(const int (&first)[kMostAdapted], int count, int i) {
    int layer = 0;
    while (layer + 1 < count && i >= first[layer + 1]) ++layer;
    return layer;
}
// Elements `from` of a tensor, 0 where it is negative; all loads before anything waits for one.
__device__ __forceinline__ void load_run(const Operand& x, const int (&from)[kRun], float (&to)[kRun]) {
    if (x.flat && x.dtype == DType::f32) {
        const float* data = reinterpret_cast<const float*>(x.base) + x.offset;
#pragma unroll
        for (int k = 0; k < kRun; ++k) to[k] = from[k] < 0 ? 0 : data[from[k]];
    } else {
#pragma unroll
        for (int k = 0; k < kRun; ++k) to[k] = from[k] < 0 ? 0 : x.load(from[k]);
    }
}

template <class T>
__global__ void __launch_bounds__(kFactorThreads) factor_kernel(const __grid_constant__ FactorArgs f, T* to) {
    const int step = static_cast<int>(gridDim.x) * kFactorThreads;
    const int first = static_cast<int>(blockIdx.x) * kFactorThreads + static_cast<int>(threadIdx.x);
    for (int i = first; i < f.counters; i += step) f.zeros[i] = 0;
    const int b_columns = f.transposed ? f.out : f.width, b_rows = f.transposed ? f.width : f.out;
    const int a_runs = (f.in + kRun - 1) / kRun, b_runs = (b_columns + kRun - 1) / kRun, of_a = f.width * a_runs;
    for (int i = first; i < of_a + b_rows * b_runs; i += step) {
        const bool is_a = i < of_a;
        const int run = is_a ? i : i - of_a, runs = is_a ? a_runs : b_runs, columns = is_a ? f.in : b_columns;
        const int row = run / runs, column = run % runs * kRun;
        const bool by_rank = is_a || f.transposed;
        const int layer = layer_of(by_rank ? f.first_column : f.first_row, f.count, row);
        const Operand& x = is_a ? f.a[layer] : f.b[layer];
        int from[kRun];
#pragma unroll
        for (int k = 0; k < kRun; ++k) {
            const int other = column + k, of_rank = by_rank ? row : other;  // of all layers'
            const int rank = of_rank - f.first_column[layer];
            const int place = is_a ? other : (by_rank ? other : row) - f.first_row[layer];  // within the layer
            const bool there =
                rank >= 0 && rank < f.rank[layer] && place >= 0 && (is_a ? place < f.in : place < x.shape[0]);
            from[k] = !there ? -1 : is_a ? rank * f.in + place : place * f.rank[layer] + rank;
        }
        float values[kRun];
        load_run(x, from, values);
        Pack<T> packs[kRun / Pack<T>::kSize];
#pragma unroll
        for (int k = 0; k < kRun; ++k)
            packs[k / Pack<T>::kSize].set(k % Pack<T>::kSize, is_a ? values[k] : f.s[layer] * values[k]);
        T* at = to + (is_a ? 0 : int64_t{f.width} * f.in) + int64_t{row} * columns + column;
        if (columns % kRun == 0) {
#pragma unroll
            for (int k = 0; k < kRun; k += Pack<T>::kSize) store_pack(at + k, packs[k / Pack<T>::kSize]);
        } else {
            for (int k = 0; k < kRun && column + k < columns; ++k)
                at[k] = packs[k / Pack<T>::kSize].values[k % Pack<T>::kSize];
        }
    }
}

// --- gradients ---

constexpr int kThreads = 128, kWarps = kThreads / kWarp;
constexpr int kStrip = 128, kStepRows = 32, kStages = 4, kMostRanks = kLoraMostRank;
constexpr int kColumnTiles = kStrip / kWarps / 16, kRankPairs = kMostRanks / 16;  // of a warp: 16 columns, 16 ranks
constexpr int64_t kBlocks = 512;  // a wave of four on each of an H100's multiprocessors
constexpr size_t kMostJobs = 2 * kMostAdapted;

using StripTile = SharedTile<kStrip>;
using LowTile = SharedTile<kMostRanks>;
constexpr int kStageBytes = StripTile::bytes(kStepRows) + LowTile::bytes(kStepRows);
static_assert(4 * kStages * kStageBytes <= 227 * 1024, "four blocks on one multiprocessor");

// Sums of up to 64 ranks over one z.
struct Job {
    const __nv_bfloat16 *low, *z;
    int64_t low_stride, z_stride, columns;
    int ranks;  // a multiple of 8
    int first_block;
    float* parts;  // [slices, ranks, columns]
};
struct JobArgs {
    Job jobs[kMostJobs];
    int count = 0;
    int64_t rows = 0, slices = 0, slice_rows = 0;
};

// Queues rows [row, row + 32) of the strip and of low.
__device__ __forceinline__ void copy_step(const Job& job, int64_t first_column, int64_t row, int64_t end,
                                          const StripTile& z, const LowTile& low) {
    constexpr int kZChunks = kStrip / 8, kLowChunks = kMostRanks / 8;
#pragma unroll
    for (int i = 0; i < kStepRows * kZChunks / kThreads; ++i) {
        const int chunk = i * kThreads + static_cast<int>(threadIdx.x), r = chunk / kZChunks, c = chunk % kZChunks * 8;
        const bool valid = row + r < end && first_column + c < job.columns;
        copy_async(z.chunk(r, c), job.z + (valid ? (row + r) * job.z_stride + first_column + c : 0), valid);
    }
#pragma unroll
    for (int i = 0; i < kStepRows * kLowChunks / kThreads; ++i) {
        const int chunk = i * kThreads + static_cast<int>(threadIdx.x), r = chunk / kLowChunks,
                  c = chunk % kLowChunks * 8;
        const bool valid = row + r < end && c < job.ranks;
        copy_async(low.chunk(r, c), job.low + (valid ? (row + r) * job.low_stride + c : 0), valid);
    }
}

__device__ __forceinline__ const Job& job_of_block(const JobArgs& args) {
    int i = 0;
    while (i + 1 < args.count && static_cast<int>(blockIdx.x) >= args.jobs[i + 1].first_block) ++i;
    return args.jobs[i];
}

__global__ void __launch_bounds__(kThreads, 4) gradient_kernel(const __grid_constant__ JobArgs args) {
    extern __shared__ __align__(16) unsigned char shared[];
    const Job& job = job_of_block(args);
    const int strips = static_cast<int>((job.columns + kStrip - 1) / kStrip);
    const int block = static_cast<int>(blockIdx.x) - job.first_block, strip = block % strips, slice = block / strips;
    const int64_t first_column = static_cast<int64_t>(strip) * kStrip, begin = slice * args.slice_rows;
    const int64_t end = min(args.rows, begin + args.slice_rows);
    const int steps = static_cast<int>((end - begin + kStepRows - 1) / kStepRows);
    const auto z_at = [&](int step) {
        return StripTile{reinterpret_cast<__nv_bfloat16*>(shared + step % kStages * kStageBytes)};
    };
    const auto low_at = [&](int step) { return LowTile{z_at(step).data + kStepRows * kStrip}; };
    const auto copy = [&](int step) {
        if (step < steps) copy_step(job, first_column, begin + step * kStepRows, end, z_at(step), low_at(step));
        copy_async_commit();
    };
    for (int step = 0; step < kStages - 1; ++step) copy(step);

    const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, side = warp * 16 * kColumnTiles;
    const int pairs = (job.ranks + 15) / 16;
    Accumulator sums[kColumnTiles][2 * kRankPairs] = {};
    for (int step = 0; step < steps; ++step) {
        copy_async_wait<kStages - 2>();
        __syncthreads();  // this step's tiles are there, and nobody reads those of the last one
        copy(step + kStages - 1);
        const StripTile z = z_at(step);
        const LowTile low = low_at(step);
#pragma unroll
        for (int k = 0; k < kStepRows; k += 16) {
            FragmentA a[kColumnTiles];
#pragma unroll
            for (int m = 0; m < kColumnTiles; ++m) a[m] = load_a_transposed(z, side + 16 * m, k);
#pragma unroll
            for (int n = 0; n < kRankPairs; ++n) {
                if (n >= pairs) break;
                const FragmentB b = load_b_transposed(low, 16 * n, k);
#pragma unroll
                for (int m = 0; m < kColumnTiles; ++m)
                    mma(sums[m][2 * n], a[m], b, 0), mma(sums[m][2 * n + 1], a[m], b, 1);
            }
        }
    }
    float* to = job.parts + static_cast<int64_t>(slice) * job.ranks * job.columns;
#pragma unroll
    for (int m = 0; m < kColumnTiles; ++m)
#pragma unroll
        for (int n = 0; n < 2 * kRankPairs; ++n)
#pragma unroll
            for (int e = 0; e < 4; ++e) {
                const int rank = 8 * n + lane % 4 * 2 + e % 2;
                const int64_t column = first_column + side + 16 * m + lane / 4 + e / 2 * 8;
                if (rank < job.ranks && column < job.columns) to[rank * job.columns + column] = sums[m][n].c[e];
            }
}

constexpr int kTotalThreads = 256;

struct TotalArgs {
    struct Total {
        LoraParts parts;
        int64_t columns, rank;
        Operand gradient;
        bool transposed;
        float scale;
    } totals[2 * kMostAdapted];
};

// The sum over slices, in order.
__global__ void __launch_bounds__(kTotalThreads) total_kernel(const __grid_constant__ TotalArgs args) {
    wait_for_predecessor();
    const TotalArgs::Total& total = args.totals[blockIdx.y];
    const int64_t size = total.rank * total.columns, step = static_cast<int64_t>(gridDim.x) * kTotalThreads;
    for (int64_t i = static_cast<int64_t>(blockIdx.x) * kTotalThreads + threadIdx.x; i < size; i += step) {
        const float* part = total.parts.data + total.parts.first_rank * total.columns + i;
        float sum = 0;
#pragma unroll 8
        for (int64_t slice = 0; slice < total.parts.slices; ++slice)
            sum += part[slice * total.parts.ranks * total.columns];
        const int64_t r = i / total.columns, c = i % total.columns;
        total.gradient.put(total.transposed ? c * total.rank + r : i, total.scale * sum);
    }
}

}  // namespace

LoraFactors make_lora_factors(const std::vector<LoraFactor>& factors, DType dtype, bool transposed, int64_t counters,
                              Stream stream) {
    LoraFactors result;
    result.dtype = dtype, result.in = factors[0].a.size(1);
    FactorArgs args;
    args.counters = static_cast<int>(counters), args.transposed = transposed;
    for (const auto& [a, b, s] : factors) {
        const int64_t rank = a.size(0), out = b.size(0);
        result.places.push_back({rank, out, result.width, result.out});
        args.a[args.count] = Operand(a), args.b[args.count] = Operand(b), args.s[args.count] = static_cast<float>(s);
        args.rank[args.count] = static_cast<int>(rank);
        args.first_column[args.count] = static_cast<int>(result.width);
        args.first_row[args.count++] = static_cast<int>(result.out);
        result.width += lora_columns(rank), result.out += out;
    }
    const int64_t numel = result.width * (result.in + result.out);
    LC_CHECK(numel < int64_t{1} << 30, "lora_linear: {} ranks of {} inputs and {} outputs are too many", result.width,
             result.in, result.out);
    args.in = static_cast<int>(result.in), args.out = static_cast<int>(result.out);
    args.width = static_cast<int>(result.width);
    result.memory =
        DeviceScratch<std::byte>(numel * size_of(dtype) + counters * static_cast<int64_t>(sizeof(int)), stream);
    args.zeros = result.counters();
    const cudaStream_t queue = cuda::handle_of(stream);
    dispatch_cuda(dtype, "lora_linear", [&](auto type) {
        using T = typename decltype(type)::type;
        factor_kernel<T><<<grid_x(ceil_div(numel, kRun * kFactorThreads)), kFactorThreads, 0, queue>>>(
            args, reinterpret_cast<T*>(result.memory.data()));
    });
    LC_LAUNCHED("lora_linear", queue);
    return result;
}

void lora_gradients(const std::vector<LoraGradient>& gradients, int64_t rows, Stream stream) {
    JobArgs args{.rows = rows};
    TotalArgs totals;
    std::vector<int> job_of;  // of each total; -1: its parts are there
    int strips = 0;
    int64_t widest = 0;
    for (const LoraGradient& g : gradients) {
        totals.totals[job_of.size()] = {g.parts,         g.z->columns, g.rank,
                                        Operand(g.slot), g.transposed, static_cast<float>(g.scale)};
        widest = std::max(widest, g.rank * g.z->columns);
        if (g.parts.data) {
            job_of.push_back(-1);
            continue;
        }
        const auto* low = static_cast<const __nv_bfloat16*>(g.low);
        const auto* z = g.z->as<__nv_bfloat16>();
        LC_CHECK(g.rank <= kLoraMostRank, "lora_linear: a gradient of {} ranks, at most {}", g.rank, kLoraMostRank);
        Job* last = args.count > 0 ? &args.jobs[args.count - 1] : nullptr;
        const int ranks = static_cast<int>(lora_columns(g.rank));
        const bool joins = last && last->z == z && low == last->low + last->ranks && last->ranks + ranks <= kMostRanks;
        if (!joins) {
            args.jobs[args.count++] = {low, z, g.low_stride, g.z->stride, g.z->columns, 0, 0, nullptr};
            last = &args.jobs[args.count - 1];
            strips += static_cast<int>(ceil_div(g.z->columns, kStrip));
        }
        totals.totals[job_of.size()].parts.first_rank = last->ranks;
        last->ranks += ranks;
        job_of.push_back(args.count - 1);
    }
    if (job_of.empty()) return;
    const cudaStream_t queue = cuda::handle_of(stream);
    std::vector<DeviceScratch<float>> parts;
    if (args.count > 0) {
        const int64_t wanted = std::clamp<int64_t>(kBlocks / strips, 1, ceil_div(rows, kStepRows));
        args.slice_rows = ceil_div(ceil_div(rows, wanted), kStepRows) * kStepRows;
        args.slices = ceil_div(rows, args.slice_rows);
        int64_t blocks = 0;
        for (int i = 0; i < args.count; ++i) {
            Job& job = args.jobs[i];
            parts.emplace_back(args.slices * job.ranks * job.columns, stream);
            job.parts = parts.back().data(), job.first_block = static_cast<int>(blocks);
            blocks += args.slices * ceil_div(job.columns, kStrip);
        }
        constexpr int kBytes = kStages * kStageBytes;
        allow_shared_memory(gradient_kernel, kBytes);
        gradient_kernel<<<grid_x(blocks), kThreads, kBytes, queue>>>(args);
        LC_LAUNCHED("lora_linear", queue);
    }
    for (size_t i = 0; i < job_of.size(); ++i) {
        if (job_of[i] < 0) continue;
        const Job& job = args.jobs[job_of[i]];
        LoraParts& total = totals.totals[i].parts;
        total.data = job.parts, total.slices = args.slices, total.ranks = job.ranks;
    }
    const dim3 grid(grid_x(ceil_div(widest, kTotalThreads)), static_cast<unsigned>(job_of.size()));
    cudaLaunchAttribute early{};
    early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    early.val.programmaticStreamSerializationAllowed = 1;
    cudaLaunchConfig_t config{};
    config.gridDim = grid, config.blockDim = dim3(kTotalThreads), config.stream = queue;
    config.attrs = &early, config.numAttrs = 1;
    LC_CUDA(cudaLaunchKernelEx(&config, total_kernel, totals));
    LC_LAUNCHED("lora_linear", queue);
}

}  // namespace lc::kernels
