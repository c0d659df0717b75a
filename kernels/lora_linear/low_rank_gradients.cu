// The gradients of a low-rank adapter's factors.
//
// MATHS    gradient (+)= s low^T z
// TILING   a block has 128 columns and a slice of the rows, a warp 64 columns and every fourth 16 rows. Lane (g, t) loads a run of
//          eight columns of rows 2t, 2t+1, 2t+8, 2t+9; element i of each is column g of tile i. low^T is made by movmatrix. The
//          warps of 64 columns meet in shared memory, slices go to workspace, and a second launch adds them in order.
//
//                    128 columns = 2 warps
//            slice   [16 rows: warps 0, 1]
//                    [16 rows: warps 2, 3]  ...  [warps 6, 7]  [0, 1] ...
//
// COST     z once; slices of R x columns f32, below 2 % of z. `low` is read once a strip, from L2.
// NUMERICS bf16 operands, f32 sums in an order that depends on the shapes alone.
// LADDER   1 cuBLASLt: outputs of 8 rows and a depth of 8192, at its heuristics' mercy.
//          2 this: meant for 0.85 of a copy's rate of reading; dB starts where the pass before it left off in L2.
// SOURCE   arXiv 2106.09685; PTX ISA, "Matrix Fragments for mma.m16n8k16", "movmatrix".
#include "kernels/common/cuda/operand.cuh"
#include "kernels/lora_linear/low_rank_device.cuh"

namespace lc::kernels {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / kWarp;
constexpr int kStrip = 128, kRowGroups = kWarps / 2, kStepRows = 16 * kRowGroups;

struct GradientJob {
    const __nv_bfloat16* low;
    RowElements z;
    int64_t columns, strips, slices, slice_rows;
    float* parts;  // [slices,rank,columns]
    bool backwards;

    // Enough blocks to fill a GPU a few times; fewer where that would leave a warp no 16 rows.
    GradientJob(const LowRankGradient& gradient, int64_t rows)
        : low(gradient.low), z(gradient.z), columns(gradient.columns), parts(nullptr), backwards(gradient.fresh) {
        constexpr int64_t kBlocks = 512;
        strips = ceil_div(columns, kStrip);
        const int64_t wanted = std::clamp<int64_t>(ceil_div(kBlocks, strips), 1, ceil_div(rows, kStepRows));
        slice_rows = ceil_div(ceil_div(rows, wanted), kStepRows) * kStepRows;
        slices = ceil_div(rows, slice_rows);
    }
    GradientJob() = default;
    int64_t blocks() const { return strips * slices; }
};
struct GradientArgs {
    GradientJob jobs[2];
    int64_t first_blocks;  // blocks of jobs[0]
    int64_t rows;
    int rank;
};

// An 8 x 8 matrix across the warp's lanes, turned.
__device__ __forceinline__ uint32_t transpose(uint32_t pair) {
    uint32_t turned;
    asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(turned) : "r"(pair));
    return turned;
}

// Adds rows [step, step + 16) of low^T z to this warp's 16 RankTiles ranks and 64 columns.
template <int RankTiles, int Steps>
struct GradientStep {
    bf16x8 z[Steps][4];
    uint32_t low[Steps][RankTiles][4];

    __device__ __forceinline__ void load(const GradientJob& job, int64_t first, int64_t end, int64_t column,
                                         int first_rank, int rank) {
        const int lane = threadIdx.x % kWarp, g = lane / 4, t = lane % 4;
#pragma unroll
        for (int s = 0; s < Steps; ++s) {
            const int64_t top = first + s * kStepRows;
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const int64_t row = top + 2 * t + i % 2 + i / 2 * 8;
                const bool inside = row < end && column < job.columns;
                z[s][i] = load_if(inside, row_of(job.z, inside ? row : 0) + (inside ? column : 0));
            }
#pragma unroll
            for (int n = 0; n < RankTiles; ++n)
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    const int64_t row = top + i / 2 * 8 + g;
                    const int r = first_rank + 16 * n + i % 2 * 8 + 2 * t;
                    low[s][n][i] =
                        row < end && r < rank ? *reinterpret_cast<const uint32_t*>(job.low + row * rank + r) : 0u;
                }
        }
    }
    __device__ __forceinline__ void add(Accumulator (&c)[RankTiles][kRun]) const {
#pragma unroll
        for (int s = 0; s < Steps; ++s) {
            uint32_t lower[kRun], upper[kRun];
            interleave(z[s][0], z[s][1], lower);
            interleave(z[s][2], z[s][3], upper);
#pragma unroll
            for (int n = 0; n < RankTiles; ++n) {
                FragmentA a;
#pragma unroll
                for (int i = 0; i < 4; ++i) a.r[i] = transpose(low[s][n][i]);
#pragma unroll
                for (int i = 0; i < kRun; ++i) mma(c[n][i], a, {{lower[i], upper[i], 0, 0}}, 0);
            }
        }
    }
};

template <int RankTiles>  // of sixteen ranks
__global__ void __launch_bounds__(kThreads, 2) gradient_kernel(const __grid_constant__ GradientArgs args) {
    __shared__ __align__(16) float sums[kRowGroups][16][kStrip];  // 32 KiB
    const bool second = blockIdx.x >= args.first_blocks;
    const GradientJob& job = args.jobs[second];
    const int64_t block = blockIdx.x - (second ? args.first_blocks : 0), strip = block % job.strips;
    const int64_t slice = job.backwards ? job.slices - 1 - block / job.strips : block / job.strips;
    const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, g = lane / 4, t = lane % 4;
    const int side = warp % 2 * 64, row_group = warp / 2;
    const int64_t column = strip * kStrip + side + 8 * run_of_column(g);
    const int64_t end = min(args.rows, (slice + 1) * job.slice_rows);
    const int first_rank = static_cast<int>(blockIdx.y) * 16 * RankTiles;
    constexpr int kSteps = RankTiles == 1 ? 2 : 1;
    Accumulator c[RankTiles][kRun] = {};
    GradientStep<RankTiles, kSteps> step;
    for (int64_t top = slice * job.slice_rows + 16 * row_group; top < end; top += kSteps * kStepRows) {
        step.load(job, top, end, column, first_rank, args.rank);
        step.add(c);
    }
#pragma unroll
    for (int n = 0; n < RankTiles; ++n) {
        __syncthreads();
#pragma unroll
        for (int i = 0; i < kRun; ++i)
#pragma unroll
            for (int k = 0; k < 4; ++k) sums[row_group][k / 2 * 8 + g][side + 8 * (k % 2 * 4 + t) + i] = c[n][i].c[k];
        __syncthreads();
        for (int i = threadIdx.x; i < 16 * kStrip; i += kThreads) {
            const int r = first_rank + 16 * n + i / kStrip;
            const int64_t to = strip * kStrip + i % kStrip;
            if (r >= args.rank || to >= job.columns) continue;
            float sum = 0;
#pragma unroll
            for (int k = 0; k < kRowGroups; ++k) sum += sums[k][i / kStrip][i % kStrip];
            job.parts[(slice * args.rank + r) * job.columns + to] = sum;
        }
    }
}

struct TotalArgs {
    struct Job {
        const float* parts = nullptr;
        int64_t slices = 0, columns = 0;
        Operand gradient;
        bool transposed = false;
        float scale = 1;
    } jobs[2];
    int64_t rank;
};

// The sum over slices, in order.
__global__ void __launch_bounds__(kThreads) total_kernel(const __grid_constant__ TotalArgs args) {
    const TotalArgs::Job& job = args.jobs[blockIdx.y];
    const int64_t size = args.rank * job.columns, step = static_cast<int64_t>(gridDim.x) * kThreads;
    for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < size; i += step) {
        float sum = 0;
#pragma unroll 8
        for (int64_t slice = 0; slice < job.slices; ++slice) sum += job.parts[slice * size + i];
        const int64_t r = i / job.columns, c = i % job.columns;
        job.gradient.put(job.transposed ? c * args.rank + r : i, job.scale * sum);
    }
}

}  // namespace

void low_rank_gradients(const LowRankGradient& first, const LowRankGradient& second, int64_t rows, int64_t rank,
                        Stream stream) {
    GradientArgs args{.rows = rows, .rank = static_cast<int>(rank)};
    TotalArgs totals{.rank = rank};
    DeviceScratch<float> parts[2];
    int count = 0;
    int64_t blocks = 0, widest = 0;
    for (const LowRankGradient* gradient : {&first, &second}) {
        if (!gradient->gradient) continue;
        GradientJob& job = args.jobs[count] = GradientJob(*gradient, rows);
        parts[count] = DeviceScratch<float>(job.slices * rank * job.columns, stream);
        job.parts = parts[count].data();
        totals.jobs[count] = {
            job.parts, job.slices, job.columns, Operand(gradient->gradient), gradient->transposed, gradient->scale};
        if (count == 0) args.first_blocks = job.blocks();
        blocks += job.blocks(), widest = std::max(widest, job.columns), ++count;
    }
    if (count == 0) return;
    const cudaStream_t queue = cuda::handle_of(stream);
    const bool few = rank <= 16;
    const dim3 grid(grid_x(blocks), static_cast<unsigned>(ceil_div(rank, few ? 16 : 32)));
    if (few)
        gradient_kernel<1><<<grid, kThreads, 0, queue>>>(args);
    else
        gradient_kernel<2><<<grid, kThreads, 0, queue>>>(args);
    LC_LAUNCHED("lora_linear", queue);
    total_kernel<<<dim3(grid_x(ceil_div(rank * widest, kThreads)), static_cast<unsigned>(count)), kThreads, 0, queue>>>(
        totals);
    LC_LAUNCHED("lora_linear", queue);
}

}  // namespace lc::kernels
