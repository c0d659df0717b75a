// Feature maps on tensor cores: bf16 rows of 64 or 128 numbers, maps of 64, no bias, no skip.
//
// MATHS    feature_map.h.
// TILING   block = (batch, head, up to 512 rows): four warps, each 16 rows at a time. Nothing but W goes through shared memory: a
//          product sums over k in any order, so an operand's registers may hold whichever eight neighbours a thread loads at once.
//
//            thread t of the four of a row    loads x[8 (t + 4 j) ..+8], j = 0, 1, ...: k = those eight, in two mma of 16
//            W transposed [64,D]              the same eight k of a column of W are one 16-byte read; WeightTile, feature_map_tiles.cuh
//            result                           column n of tile i is feature 32 (i/4) + 8 (n/2) + 2 (i%4) + n%2: a thread ends with two
//                                             runs of eight features of a row, its own 16-byte stores
//
//          The next 16 rows are loaded while these are made into features.
//            registers: 32 x, 32 u and 32 negative features, 124 in all; four blocks an SM; shared, D = 128: W 16 KiB
// COST     2 rows D F FLOPs; bytes: x and phi once, W once a block: D = 128, F' = 128 in bf16: 31.6 us for 8 x 32 x 1024 rows on an H200.
// NUMERICS W is rounded to bf16, as attention does; f32 sums; exp by ex2.approx (2 ulp, and 2^-22 of the exponent, at most 0: far below
//          the bf16 of phi); sums over a row of four threads in a fixed order.
// LADDER   8 x 32 heads x 1024 rows, D = 128, softmax_dim, H200, us; meant for 45 (0.7 of a copy)
//          1 576 (H100)  feature_map.cu: FFMA.
//          2 107  this with 256 rows a block, W split in two bf16 and read number by number: each load was awaited, two waves of blocks
//          3  62  W in 16-byte loads, all under way at once; 58 with 512 rows a block (one wave)
//          4  48  W rounded once: half the products and half the reads of shared memory
//          5  45  ex2.approx instead of expf, five blocks an SM: 0.70. Without any activation it is 45 to 50. 256 rows a block: 47; 1024: 60.
//          6  44  exponents by one fma, no branches an element, both rows of a thread in one branch; meant for 38. An H100 takes 60 (0.75):
//                 the time follows the memory, not the instructions. Beside it, x by cp.async a tile or two ahead in 4, 3 and 2 blocks an
//                 SM: 49, 55, 64.
// SOURCE   arXiv 2402.04347; PTX ISA, "Matrix Fragments for mma.m16n8k16".
#include "kernels/common/cuda/early.cuh"
#include "kernels/feature_map/feature_map_tiles.cuh"
#include "kernels/feature_map/feature_map_tiles.h"

namespace lc::kernels {
namespace {

constexpr int kTileRows = 16, kBlockRows = 512;

struct Args {
    HeadTensor x, w, phi;
    int64_t heads, group, t;  // group heads read one head of x
    FeatureActivation activation;
    bool two_sided;
};

// One row of 16 x D as this thread of its four has it.
template <int D>
struct RowPart {
    uint4 chunks[D / 32];
    __device__ __forceinline__ static RowPart load(const __nv_bfloat16* row, bool valid) {
        RowPart part;
#pragma unroll
        for (int j = 0; j < D / 32; ++j) {
            part.chunks[j] = {};
            if (valid) part.chunks[j] = *reinterpret_cast<const uint4*>(row + (threadIdx.x % 4 + 4 * j) * 8);
        }
        return part;
    }
};

// A chunk of a column of W lies as x has it.
struct InOrder {
    __device__ __forceinline__ int operator()(int c, int j) const { return 8 * c + j; }
};

// u [16,64] += x w, where a column of the product is the feature that the head of this file says.
template <int D>
__device__ __forceinline__ void project(const RowPart<D> (&x)[2], const WeightTile<D>& weight,
                                        Accumulator (&u)[kMapTiles]) {
    const int g = threadIdx.x % kWarp / 4, t = threadIdx.x % 4;
#pragma unroll
    for (int j = 0; j < D / 32; ++j) {
        const uint4 upper = x[0].chunks[j], lower = x[1].chunks[j];
        const FragmentA first{{upper.x, lower.x, upper.y, lower.y}}, second{{upper.z, lower.z, upper.w, lower.w}};
#pragma unroll
        for (int i = 0; i < kMapTiles; ++i) {
            const uint4 column = *reinterpret_cast<const uint4*>(weight.chunk(feature_of(i, g), t + 4 * j));
            const FragmentB b{{column.x, column.y, column.z, column.w}};
            mma(u[i], first, b, 0);
            mma(u[i], second, b, 1);
        }
    }
}

// The features of this thread's two rows from u: positive over u; negative, which a one-sided map does not store. Both rows in one
// branch, so that the steps of one fill the waits of the other.
__device__ __forceinline__ void activate(FeatureActivation activation, float (&u)[2][kMapOwn],
                                         float (&negative)[2][kMapOwn]) {
    if (!is_shift_invariant(activation)) {
#pragma unroll
        for (auto& row : u)
#pragma unroll
            for (float& x : row) x = feature_map_positive(activation, {}, x);
        return;
    }
    float sums[2][2] = {};
#pragma unroll
    for (int r = 0; r < 2; ++r) {
        const MapExponentials exponentials(u[r]);
#pragma unroll
        for (int i = 0; i < kMapOwn; ++i) {
            sums[r][1] += negative[r][i] = exponentials.negative(u[r][i]);
            sums[r][0] += u[r][i] = exponentials.positive(u[r][i]);
        }
    }
    const bool softmax = is_softmax(activation);
#pragma unroll
    for (int r = 0; r < 2; ++r) {
        const float sum_p = sum_of_row(sums[r][0]), sum_n = sum_of_row(sums[r][1]);
        const float scale_p = softmax ? __fdividef(1, sum_p) : 1.0f, scale_n = softmax ? __fdividef(1, sum_n) : 1.0f;
#pragma unroll
        for (int i = 0; i < kMapOwn; ++i) {
            u[r][i] = feature_map_clamp(scale_p * u[r][i]);
            negative[r][i] = feature_map_clamp(scale_n * negative[r][i]);
        }
    }
}

// This thread's sixteen of 64 features: two runs of eight.
__device__ __forceinline__ void store(__nv_bfloat16* row, const float (&values)[kMapOwn]) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        Pack<__nv_bfloat16> pack;
#pragma unroll
        for (int j = 0; j < 8; ++j) pack.set(j, values[half * 8 + j]);
        store_pack(row + half * 32 + threadIdx.x % 4 * 8, pack);
    }
}

template <int D>
__global__ void __launch_bounds__(kMapThreads, 4) forward_kernel(const __grid_constant__ Args args) {
    extern __shared__ __align__(16) unsigned char shared[];
    auto& weight = *reinterpret_cast<WeightTile<D>*>(shared);
    join_stream();
    const int64_t blocks = ceil_div(args.t, kBlockRows);
    const int64_t b = blockIdx.x / blocks / args.heads, h = blockIdx.x / blocks % args.heads;
    const int64_t first = blockIdx.x % blocks * kBlockRows, end = min(args.t, first + kBlockRows);
    const int g = threadIdx.x % kWarp / 4;
    const auto* x = reinterpret_cast<const __nv_bfloat16*>(args.x.base);
    auto* phi = reinterpret_cast<__nv_bfloat16*>(args.phi.base);
    int64_t row = first + threadIdx.x / kWarp * kTileRows + g;  // and row + 8
    RowPart<D> next[2];
    const auto fetch = [&] {
#pragma unroll
        for (int i = 0; i < 2; ++i)
            next[i] = next[i].load(x + args.x.row(b, h / args.group, row + 8 * i), row + 8 * i < end);
    };
    fetch();
    load_weight(args.w, h, weight, InOrder{});
    __syncthreads();
    while (row - g < end) {
        Accumulator u[kMapTiles] = {};
        project(next, weight, u);
        const int64_t at = row;
        row += kMapWarps * kTileRows;
        fetch();
        float positive[2][kMapOwn], negative[2][kMapOwn] = {};
#pragma unroll
        for (int i = 0; i < kMapOwn; ++i) positive[0][i] = u[i / 2].c[i % 2], positive[1][i] = u[i / 2].c[2 + i % 2];
        activate(args.activation, positive, negative);
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            if (at + 8 * i >= end) continue;
            __nv_bfloat16* to = phi + args.phi.row(b, h, at + 8 * i);
            store(to, positive[i]);
            if (args.two_sided) store(to + kMapSize, negative[i]);
        }
    }
}

}  // namespace

bool feature_map_forward_tiled(const FeatureMapForward& a, Stream stream) {
    const int64_t d = a.w.size(1);
    if (a.b || a.skip || a.w.size(2) != kMapSize || (d != 64 && d != 128)) return false;
    if (a.x.dtype != DType::bf16 || a.phi.dtype != DType::bf16) return false;
    if (!is_packed(a.x) || !is_packed(a.w) || !is_packed(a.phi)) return false;
    const Args args{.x = HeadTensor(a.x),
                    .w = HeadTensor(a.w),
                    .phi = HeadTensor(a.phi),
                    .heads = a.w.size(0),
                    .group = a.w.size(0) / a.x.size(1),
                    .t = a.x.size(2),
                    .activation = a.activation,
                    .two_sided = is_two_sided(a.activation)};
    const int64_t blocks = a.x.size(0) * args.heads * ceil_div(args.t, kBlockRows);
    if (blocks == 0) return true;
    const cudaStream_t queue = cuda::handle_of(stream);
    dispatch_bool(d == 128, [&](auto wide) {
        constexpr int kD = wide() ? 128 : 64;
        launch_early(forward_kernel<kD>,
                     {.blocks = blocks,
                      .threads = kMapThreads,
                      .shared_bytes = sizeof(WeightTile<kD>),
                      .early = hopper_applies({})},
                     queue, args);
    });
    LC_LAUNCHED("feature_map", queue);
    return true;
}

}  // namespace lc::kernels
