// The two products of a low-rank adapter in one pass over the rows.
//
// MATHS    low = s_l z down^T,  wide (+)= s_w low up
// TILING   a block has 32 rows, its eight warps the columns in turn.
//
//            down   lane (g, t) loads columns 8t .. 8t+7 of a group of 32, of rows g, g+8, g+16, g+24 and of ranks g, g+8, ...: the
//                   four registers of a run are k-pairs t and t+4 of two products. The warps' sums meet in shared memory; `low` is
//                   rounded there and written.
//            up     a group of 64 columns: lane (g, t) loads a run of ranks 2t, 2t+1, 2t+8, 2t+9; element i of each is column g of
//                   tile i. The results of a lane are then whole runs of eight, stored as such.
//
// COST     z once, wide once (twice where it is added to); down and up from L2, once a block: a quarter of z for R = 8.
// NUMERICS bf16 operands, f32 sums in an order that depends on the shapes alone.
// LADDER   1 cuBLASLt: products with 8 columns run at half, those of depth 8 at a third of what memory allows, and strided copies
//            round A and B for it.
//          2 this: meant for 0.85 of a copy.
//          Next: `up` inside the large product's own kernel, which saves writing `wide` here and reading it there.
// SOURCE   arXiv 2106.09685; PTX ISA, "Matrix Fragments for mma.m16n8k16".
#include "kernels/common/cuda/operand.cuh"
#include "kernels/lora_linear/low_rank_device.cuh"

namespace lc::kernels {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / kWarp;
constexpr int kMostRanks = 64;

// --- A and B as the kernels read them ---

struct FactorArgs {
    Operand a, b;
    int64_t in, out, rank, padded;
    __nv_bfloat16* to;
};

__global__ void __launch_bounds__(kThreads) factor_kernel(const __grid_constant__ FactorArgs f) {
    const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads, of_a = f.padded * f.in;
    for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < of_a + f.padded * f.out;
         i += step) {
        const bool is_a = i < of_a;
        const int64_t j = is_a ? i : i - of_a, columns = is_a ? f.in : f.out, r = j / columns, c = j % columns;
        float value = 0;
        if (r < f.rank) value = is_a ? f.a.load(r * f.in + c) : f.b.load(c * f.rank + r);
        f.to[i] = __float2bfloat16_rn(value);
    }
}

// --- low = z down^T, wide = low up ---

struct PassArgs {
    LowRankPass pass;
    int rank;
};

template <int Tiles>  // of eight ranks
struct PassTraits {
    static constexpr int kRows = 32, kRanks = 8 * Tiles;
    static constexpr int kSteps = Tiles == 1   ? 4
                                  : Tiles == 2 ? 2
                                               : 1;  // groups of 32 columns whose loads are under way
    static constexpr int64_t kBytes = int64_t{kRows} * kRanks * (kWarps * sizeof(float) + sizeof(__nv_bfloat16));
};
static_assert(PassTraits<kMostRanks / 8>::kBytes <= 99 * 1024, "shared memory of one block on sm_86");

// sums[warp][row][rank] = this warp's share of z down^T.
template <class Tr, int Tiles>
__device__ void multiply_down(const LowRankPass& p, int64_t first_row, float* sums) {
    const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, g = lane / 4, t = lane % 4;
    const __nv_bfloat16* rows[4];
    bool inside[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        inside[i] = first_row + 8 * i + g < p.rows;
        rows[i] = row_of(p.z, first_row + (inside[i] ? 8 * i + g : 0));
    }
    Accumulator c[2][Tiles] = {};
    constexpr int kColumns = 32 * Tr::kSteps;
    for (int64_t begin = warp * kColumns; begin < p.depth; begin += kWarps * kColumns) {
        bf16x8 z[Tr::kSteps][4], down[Tr::kSteps][Tiles];
#pragma unroll
        for (int s = 0; s < Tr::kSteps; ++s) {
            const int64_t column = begin + 32 * s + 8 * t;
            const bool has_column = column < p.depth;
#pragma unroll
            for (int i = 0; i < 4; ++i) z[s][i] = load_if(has_column && inside[i], rows[i] + column);
#pragma unroll
            for (int n = 0; n < Tiles; ++n) down[s][n] = load_if(has_column, p.down + (8 * n + g) * p.depth + column);
        }
#pragma unroll
        for (int s = 0; s < Tr::kSteps; ++s)
#pragma unroll
            for (int m = 0; m < 2; ++m) {
                const bf16x8 &upper = z[s][2 * m], &lower = z[s][2 * m + 1];
                const FragmentA first{{upper.x, lower.x, upper.y, lower.y}},
                    second{{upper.z, lower.z, upper.w, lower.w}};
#pragma unroll
                for (int n = 0; n < Tiles; ++n) {
                    const FragmentB b{{down[s][n].x, down[s][n].y, down[s][n].z, down[s][n].w}};
                    mma(c[m][n], first, b, 0), mma(c[m][n], second, b, 1);
                }
            }
    }
#pragma unroll
    for (int m = 0; m < 2; ++m)
#pragma unroll
        for (int n = 0; n < Tiles; ++n)
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                float* to = sums + (warp * Tr::kRows + 16 * m + 8 * half + g) * Tr::kRanks + 8 * n + 2 * t;
                *reinterpret_cast<float2*>(to) = make_float2(c[m][n].c[2 * half], c[m][n].c[2 * half + 1]);
            }
}

// low[row][rank], in shared and in global memory, from the sums of all warps.
template <class Tr>
__device__ void join_warps(const LowRankPass& p, int rank, int64_t first_row, const float* sums, __nv_bfloat16* low) {
    constexpr int kEach = Tr::kRows * Tr::kRanks;
#pragma unroll
    for (int i = threadIdx.x; i < kEach; i += kThreads) {
        float sum = 0;
#pragma unroll
        for (int w = 0; w < kWarps; ++w) sum += sums[w * kEach + i];
        low[i] = __float2bfloat16_rn(p.low_scale * sum);
        const int row = i / Tr::kRanks, r = i % Tr::kRanks;
        if (first_row + row < p.rows && r < rank) p.low[(first_row + row) * rank + r] = low[i];
    }
}

// AddsBf16: `wide` is bf16 and added to; what is there is loaded before it is needed.
template <class Tr, int Tiles, bool AddsBf16>
__device__ void multiply_up(const LowRankPass& p, int64_t first_row, const __nv_bfloat16* low) {
    constexpr int kSteps = (Tiles + 1) / 2;  // of sixteen ranks
    const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, g = lane / 4, t = lane % 4;
    FragmentA a[2][kSteps];
    const auto pair = [&](int row, int r) {
        return r < Tr::kRanks ? *reinterpret_cast<const uint32_t*>(low + row * Tr::kRanks + r) : 0u;
    };
#pragma unroll
    for (int m = 0; m < 2; ++m)
#pragma unroll
        for (int s = 0; s < kSteps; ++s) {
            const int row = 16 * m + g, r = 16 * s + 2 * t;
            a[m][s] = {{pair(row, r), pair(row + 8, r), pair(row, r + 8), pair(row + 8, r + 8)}};
        }
    for (int64_t group = 64 * warp; group < p.width; group += 64 * kWarps) {
        const int64_t column = group + 8 * run_of_column(g);
        const auto run = [&](int r) { return load_if(column < p.width, p.up + r * p.width + column); };
        uint32_t lower[kSteps][kRun], upper[kSteps][kRun] = {};
#pragma unroll
        for (int s = 0; s < kSteps; ++s) {
            interleave(run(16 * s + 2 * t), run(16 * s + 2 * t + 1), lower[s]);
            if (16 * s + 8 < Tr::kRanks) interleave(run(16 * s + 2 * t + 8), run(16 * s + 2 * t + 9), upper[s]);
        }
#pragma unroll
        for (int m = 0; m < 2; ++m) {
            // This lane's runs: run `side` of row g + 8 half.
            const auto row_at = [&](int half) { return first_row + 16 * m + 8 * half + g; };
            const auto column_at = [&](int side) { return group + 8 * (4 * side + t); };
            const auto inside = [&](int half, int side) { return row_at(half) < p.rows && column_at(side) < p.width; };
            RunBits<__nv_bfloat16> before[2][2] = {};
            if constexpr (AddsBf16) {
#pragma unroll
                for (int i = 0; i < 4; ++i)
                    if (inside(i / 2, i % 2))
                        before[i / 2][i % 2] =
                            RunBits<__nv_bfloat16>::load(row_of(p.wide, row_at(i / 2)) + column_at(i % 2));
            }
            Accumulator c[kRun] = {};
#pragma unroll
            for (int s = 0; s < kSteps; ++s)
#pragma unroll
                for (int i = 0; i < kRun; ++i) mma(c[i], a[m][s], {{lower[s][i], upper[s][i], 0, 0}}, 0);
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const int half = i / 2, side = i % 2;
                if (!inside(half, side)) continue;
                float values[kRun];
#pragma unroll
                for (int j = 0; j < kRun; ++j) {
                    values[j] = p.wide_scale * c[j].c[2 * half + side];
                    if constexpr (AddsBf16) values[j] += before[half][side].get(j);
                }
                store_packed(p.wide.elements, row_at(half) * p.wide.stride + column_at(side), !AddsBf16 && p.wide.add,
                             values);
            }
        }
    }
}

template <int Tiles, bool AddsBf16>
__global__ void __launch_bounds__(kThreads, Tiles <= 2 ? 2 : 1) pass_kernel(const __grid_constant__ PassArgs args) {
    using Tr = PassTraits<Tiles>;
    extern __shared__ __align__(16) float sums[];  // [kWarps][kRows][kRanks], then low [kRows][kRanks]
    auto* low = reinterpret_cast<__nv_bfloat16*>(sums + kWarps * Tr::kRows * Tr::kRanks);
    const int64_t first_row = static_cast<int64_t>(blockIdx.x) * Tr::kRows;
    multiply_down<Tr, Tiles>(args.pass, first_row, sums);
    __syncthreads();
    join_warps<Tr>(args.pass, args.rank, first_row, sums, low);
    if (!args.pass.wide) return;
    __syncthreads();
    multiply_up<Tr, Tiles, AddsBf16>(args.pass, first_row, low);
}

template <int Tiles>
void launch_pass(const PassArgs& args, cudaStream_t queue) {
    using Tr = PassTraits<Tiles>;
    const RowElements& wide = args.pass.wide;
    dispatch_bool(wide && wide.add && wide.elements.dtype == DType::bf16, [&](auto adds_bf16) {
        constexpr auto kKernel = pass_kernel<Tiles, adds_bf16()>;
        allow_shared_memory(kKernel, Tr::kBytes);
        kKernel<<<grid_x(ceil_div(args.pass.rows, Tr::kRows)), kThreads, Tr::kBytes, queue>>>(args);
    });
}

}  // namespace

bool low_rank_covers(int64_t rank, std::initializer_list<RowElements> matrices, std::initializer_list<int64_t> widths) {
    if (rank % 8 != 0 || rank > kMostRanks) return false;
    for (const RowElements& matrix : matrices)
        if (matrix && !matrix.elements.packed) return false;
    return std::all_of(widths.begin(), widths.end(), [](int64_t width) { return width % kRun == 0; });
}

LowRankFactors::LowRankFactors(const TensorView& a_view, const TensorView& b_view, Stream stream)
    : rank(a_view.size(0)), padded(8) {
    while (padded < rank) padded *= 2;
    const int64_t in = a_view.size(1), out = b_view.size(0), count = padded * (in + out);
    memory = DeviceScratch<__nv_bfloat16>(count, stream);
    a = memory.data(), b = memory.data() + padded * in;
    const cudaStream_t queue = cuda::handle_of(stream);
    factor_kernel<<<grid_x(ceil_div(count, kThreads)), kThreads, 0, queue>>>(
        {Operand(a_view), Operand(b_view), in, out, rank, padded, memory.data()});
    LC_LAUNCHED("lora_linear", queue);
}

void low_rank_pass(const LowRankPass& pass, const LowRankFactors& factors, Stream stream) {
    if (pass.rows == 0) return;
    const PassArgs args{pass, static_cast<int>(factors.rank)};
    const cudaStream_t queue = cuda::handle_of(stream);
    switch (factors.padded) {
        case 8:
            launch_pass<1>(args, queue);
            break;
        case 16:
            launch_pass<2>(args, queue);
            break;
        case 32:
            launch_pass<4>(args, queue);
            break;
        default:
            launch_pass<8>(args, queue);
    }
    LC_LAUNCHED("lora_linear", queue);
}

}  // namespace lc::kernels
