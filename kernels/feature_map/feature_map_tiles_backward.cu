// Gradients of feature maps on tensor cores: bf16 rows of 64 or 128 numbers, maps of 64, no bias, no skip.
//
// MATHS    feature_map.h; u and phi are made again: dx = du W^T, dW = x^T du.
// TILING   block = (head, as many tiles of 64 rows as there are for two blocks an SM): four warps, each 16 rows of a tile. With dW a block
//          has one head; without it all heads that read one head of x, one after the other into the same dx. Where several heads read one
//          head of x and both gradients are wanted, each has its launch.
//
//            x [64,D]      two stages in shared memory, copied a tile ahead: rows for u, columns for dW
//            dphi          a tile ahead, where only the thread that wants it looks; then du in registers, feature_map_tiles.cuh
//            u = x W       a chunk of W holds, of 32 rows of W, the eight that thread t of a row has of four operands of x: one 16-byte
//                          read a feature for two mma; read transposed it makes eight neighbours of dx of a thread's accumulators
//            dx = du W^T   32 columns at a time, from registers to memory
//            dW = x^T du   du [64,64] through shared memory; a warp has a quarter of D: 64 registers, for the whole walk
//
//          A block's dW goes to workspace; a second kernel adds the blocks of a head in order.
//            shared, D = 128, dW: x 32 + dphi 16 + du 8 + W 16 = 72 KiB; registers: 64 dW, 32 u, 32 exponentials, 16 dphi
// COST     6 rows D F FLOPs; bytes: x, dphi and dx once: 47 us for 8 x 32 x 1024 rows on an H200 (the case counts phi, too: 63), and 8 MB
//          of parts written and read.
// NUMERICS W and du are rounded to bf16, sums are f32. exp by ex2.approx. The clamp of phi at 1e-12 is ignored for softmax and exp maps: it
//          would take at most 1e-12 of a gradient. Order of summation: by shape and number of multiprocessors.
// LADDER   8 x 32 heads x 1024 rows, D = 128, softmax_dim, H200, us; meant for 105 (0.6 of the roofline)
//          1 1885  feature_map.cu: FFMA
//          2  134  (H100: 0.67 there) branches on the map's kind and 64-bit places inside loops, dphi in swizzled rows
//          3   90  no branches an element, places by addition, each thread's dphi by itself, two blocks an SM without spills: 0.70.
//                  Three blocks an SM, 168 registers, spills: 92. Without u 69, without du 72, without dx's product or dW's 81, without
//                  any of them 68: what shared memory moves (66 % of its wavefronts) and instructions add to the copies.
//          4   91  (H100 95: 0.94 there) both rows of a thread in one branch, so that the steps of one fill the waits of the other
// SOURCE   arXiv 2402.04347; PTX ISA, "Matrix Fragments for mma.m16n8k16".
#include "kernels/common/cuda/early.cuh"
#include "kernels/common/cuda/roles.cuh"
#include "kernels/feature_map/feature_map_tiles.h"
#include "kernels/feature_map/feature_map_tiles_backward.cuh"

namespace lc::kernels {
namespace {

constexpr int kBlocks = 2;                                           // an SM
constexpr int64_t kMostTogether = 4, kMostTiles = int64_t{1} << 30;  // heads of a block; tiles of a head

struct Args {
    HeadTensor x, w, dphi;
    HeadTensor dx;
    float* parts;              // [slices,H,D,64] of dW
    int t, sequence_tiles;     // rows and tiles of a sequence
    int tiles, share, slices;  // tiles of a head; of a slice; slices of a head
    int heads, group;          // group heads read one head of x
    FeatureActivation activation;
    bool two_sided;
};

template <int D, bool kDw>
struct Shared {
    static constexpr int kStages = kDw ? 2 : 1;
    __nv_bfloat16 x[kStages][kTileRows * D];
    uint4 dphi[8][kMapThreads];  // of two rows four chunks; a thread reads what it copied itself
    __nv_bfloat16 du[kDw ? kTileRows * kMapSize : 64];
    WeightTile<D> weights[1];  // as many as a block has heads
};

// Where a tile's rows begin.
struct Place {
    int sequence, row;
    __device__ __forceinline__ void next(int t) {
        row += kTileRows;
        if (row >= t) row = 0, ++sequence;
    }
};

// A block's way through its tiles.
template <int D, bool kDx, bool kDw>
struct Walk {
    static constexpr int kParts = D / 32;  // of dx, at a time; with dW it is stored part by part
    const Args& args;
    Shared<D, kDw>& shared;
    int head, heads;  // the first of this block's, and how many
    int lane = threadIdx.x % kWarp, warp_row = threadIdx.x / kWarp * kWarpRows, g = lane / 4, t = lane % 4;
    int chunks = args.two_sided ? 4 : 2;  // of a row of dphi, a thread
    Accumulator dw[kDw ? D / 64 : 1][kMapTiles] = {};

    // This warp's rows.
    __device__ __forceinline__ void fetch_x(Place at, int stage) const {
        constexpr int kRowChunks = D / 8, kRows = kWarp / kRowChunks;
        const SharedTile<D> to{shared.x[stage]};
        const auto* start = reinterpret_cast<const __nv_bfloat16*>(args.x.base);
        const int row = at.row + warp_row + lane / kRowChunks, column = lane % kRowChunks * 8;
        const int64_t from = args.x.row(at.sequence, head / args.group, row) + column, step = kRows * args.x.strides[2];
#pragma unroll
        for (int i = 0; i < kWarpRows / kRows; ++i) {
            const bool valid = row + i * kRows < args.t;
            copy_async(to.chunk(warp_row + i * kRows + lane / kRowChunks, column),
                       start + (valid ? from + i * step : 0), valid);
        }
    }
    // What this thread reads itself.
    __device__ __forceinline__ void fetch_dphi(Place at, int h) const {
        const auto* start = reinterpret_cast<const __nv_bfloat16*>(args.dphi.base);
        const int row = at.row + warp_row + g;
        const int64_t from = args.dphi.row(at.sequence, head + h, row) + 8 * t, step = 8 * args.dphi.strides[2];
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            const bool valid = row + 8 * i < args.t;
#pragma unroll
            for (int c = 0; c < 4; ++c)
                if (c < chunks)
                    copy_async(&shared.dphi[4 * i + c][threadIdx.x], start + (valid ? from + i * step + 32 * c : 0),
                               valid);
        }
    }
    // du as the left operand of du W^T, from u and dphi; in shared memory, too, where dW needs it.
    __device__ __forceinline__ void make_du(const Accumulator (&u)[kMapTiles], FragmentA (&du)[kMapTiles / 2]) const {
        RowGradient gradient[2] = {};
        float own[2][kMapOwn];
#pragma unroll
        for (int i = 0; i < 2; ++i) {
#pragma unroll
            for (int c = 0; c < 4; ++c)
                if (c < chunks) gradient[i].chunks[c] = shared.dphi[4 * i + c][threadIdx.x];
#pragma unroll
            for (int n = 0; n < kMapOwn; ++n) own[i][n] = u[n / 2].c[2 * i + n % 2];
        }
        differentiate(args.activation, gradient, own);
#pragma unroll
        for (int i = 0; i < 2; ++i) {
#pragma unroll
            for (int n = 0; n < kMapTiles; ++n)
                du[n / 2].r[n % 2 * 2 + i] = pack_bf16(own[i][2 * n], own[i][2 * n + 1]);
            if constexpr (!kDw) continue;
            const SharedTile<kMapSize> tile{shared.du};
#pragma unroll
            for (int half = 0; half < 2; ++half)
                *reinterpret_cast<uint4*>(tile.chunk(warp_row + g + 8 * i, 32 * half + 8 * t)) = {
                    du[2 * half].r[i], du[2 * half].r[2 + i], du[2 * half + 1].r[i], du[2 * half + 1].r[2 + i]};
        }
    }
    // 32 columns of this warp's rows.
    __device__ __forceinline__ void store_dx(Place at, int part, const Accumulator (&dx)[4]) const {
        const int row = at.row + warp_row + g;
        const int64_t first = args.dx.row(at.sequence, head / args.group, row) + 32 * part + 8 * t;
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            if (row + 8 * i >= args.t) continue;
            float values[kRun];
#pragma unroll
            for (int q = 0; q < 4; ++q) values[2 * q] = dx[q].c[2 * i], values[2 * q + 1] = dx[q].c[2 * i + 1];
            store_packed({args.dx.base, args.dx.dtype, true}, first + i * 8 * args.dx.strides[2], args.dx.accumulate,
                         values);
        }
    }
    __device__ __forceinline__ void store_dw(float* part) const {
        float* to = part + (threadIdx.x / kWarp * (D / 4) + g) * kMapSize + 2 * t;
#pragma unroll
        for (int m = 0; m < D / 64; ++m)
#pragma unroll
            for (int n = 0; n < kMapTiles; ++n)
#pragma unroll
                for (int i = 0; i < 2; ++i)
                    *reinterpret_cast<float2*>(to + (16 * m + 8 * i) * kMapSize + 8 * n) = {dw[m][n].c[2 * i],
                                                                                            dw[m][n].c[2 * i + 1]};
    }
    __device__ __forceinline__ void run(int tiles, Place place) {
        fetch_x(place, 0), fetch_dphi(place, 0);
        copy_async_commit();
        for (int h = 0; h < heads; ++h) load_weight(args.w, head + h, shared.weights[h], Interleaved{});
        if constexpr (!kDw) __syncthreads();
        for (int tile = 0; tile < tiles; ++tile) {
            const int stage = kDw ? tile % 2 : 0;
            const SharedTile<D> x{shared.x[stage]};
            const bool more = tile + 1 < tiles;
            Place next = place;
            next.next(args.t);
            Accumulator dx[kDw ? 1 : kParts][4] = {};
            FragmentA du[kMapTiles / 2];
            for (int h = 0; h < heads; ++h) {
                copy_async_wait<0>();
                if constexpr (kDw) {
                    __syncthreads();  // x is there, and everyone is done with the tile before
                    if (more) fetch_x(next, stage ^ 1);
                } else {
                    __syncwarp();
                }
                Accumulator u[kMapTiles] = {};
                project(x, shared.weights[h], u);
                if constexpr (!kDw) {
                    __syncwarp();
                    if (more && h + 1 == heads) fetch_x(next, 0);
                }
                make_du(u, du);
                if (h + 1 < heads)
                    fetch_dphi(place, h + 1);
                else if (more)
                    fetch_dphi(next, 0);
                copy_async_commit();
                if constexpr (!kDw)
#pragma unroll
                    for (int part = 0; part < kParts; ++part) add_dx(du, shared.weights[h], part, dx[part]);
            }
            if constexpr (kDx)
#pragma unroll
                for (int part = 0; part < kParts; ++part) {
                    if constexpr (kDw) {
                        Accumulator sums[4] = {};
                        add_dx(du, shared.weights[0], part, sums);
                        store_dx(place, part, sums);
                    } else {
                        store_dx(place, part, dx[part]);
                    }
                }
            if constexpr (kDw) {
                __syncthreads();
                add_dw(x, SharedTile<kMapSize>{shared.du}, dw);
            }
            place = next;
        }
    }
};

template <int D, bool kDx, bool kDw>
__global__ void __launch_bounds__(kMapThreads, kBlocks) backward_kernel(const __grid_constant__ Args args) {
    extern __shared__ __align__(128) unsigned char shared[];
    join_stream();
    const int heads = kDw ? 1 : args.group, block = static_cast<int>(blockIdx.x), slice = block % args.slices;
    const int head = block / args.slices * heads, first = slice * args.share;
    Walk<D, kDx, kDw> walk{args, *reinterpret_cast<Shared<D, kDw>*>(shared), head, heads};
    walk.run(min(args.share, args.tiles - first),
             {first / args.sequence_tiles, first % args.sequence_tiles * kTileRows});
    if constexpr (kDw) walk.store_dw(args.parts + (int64_t{slice} * args.heads + head) * D * kMapSize);
}

// dW [H,D,64] (+)= the parts of its slices, in order; four numbers a thread.
__global__ void __launch_bounds__(kMapThreads)
    sum_kernel(const float4* parts, int slices, int count, int d, const __grid_constant__ HeadTensor dw) {
    join_stream();
    const int i = static_cast<int>(blockIdx.x) * kMapThreads + static_cast<int>(threadIdx.x);
    if (i >= count) return;
    float4 sum{};
#pragma unroll 4
    for (int slice = 0; slice < slices; ++slice) {
        const float4 part = parts[static_cast<int64_t>(slice) * count + i];
        sum.x += part.x, sum.y += part.y, sum.z += part.z, sum.w += part.w;
    }
    constexpr int kFours = kMapSize / 4;
    const int64_t row = dw.row(i / kFours / d, i / kFours % d, i % kFours * 4);
    const float values[4] = {sum.x, sum.y, sum.z, sum.w};
#pragma unroll
    for (int j = 0; j < 4; ++j) dw.put(row + j * dw.strides[2], 0, values[j]);
}

template <int D, bool kDx, bool kDw>
void launch(const FeatureMapBackward& a, Stream stream) {
    const FeatureMapForward& f = a.forward;
    const int heads = static_cast<int>(f.w.size(0)), t = static_cast<int>(f.x.size(2));
    Args args{.x = HeadTensor(f.x),
              .w = HeadTensor(f.w),
              .dphi = HeadTensor(a.dphi),
              .dx = HeadTensor(a.dx),
              .parts = nullptr,
              .t = t,
              .sequence_tiles = static_cast<int>(ceil_div(t, kTileRows)),
              .tiles = 0,
              .share = 0,
              .slices = 0,
              .heads = heads,
              .group = static_cast<int>(heads / f.x.size(1)),
              .activation = f.activation,
              .two_sided = is_two_sided(f.activation)};
    const int together = kDw ? 1 : args.group, walks = heads / together;
    args.tiles = static_cast<int>(f.x.size(0)) * args.sequence_tiles;
    args.share = static_cast<int>(ceil_div(args.tiles, std::clamp(kBlocks * multiprocessors() / walks, 1, args.tiles)));
    args.slices = static_cast<int>(ceil_div(args.tiles, args.share));
    const int count = heads * D * kMapSize;
    const DeviceScratch<float> parts(kDw ? int64_t{args.slices} * count : 0, stream);
    args.parts = parts.data();
    constexpr int64_t kBytes = sizeof(Shared<D, kDw>), kWeight = sizeof(WeightTile<D>);
    static_assert(kBlocks * (kBytes + (kDw ? 0 : kMostTogether - 1) * kWeight) <= kSharedLimit);
    const bool early = hopper_applies({});
    const cudaStream_t queue = cuda::handle_of(stream);
    launch_early(backward_kernel<D, kDx, kDw>,
                 {.blocks = int64_t{walks} * args.slices,
                  .threads = kMapThreads,
                  .shared_bytes = kBytes + (together - 1) * kWeight,
                  .early = early},
                 queue, args);
    LC_LAUNCHED("feature_map", queue);
    if (!kDw) return;
    launch_early(sum_kernel, {.blocks = ceil_div(count / 4, kMapThreads), .threads = kMapThreads, .early = early},
                 queue, reinterpret_cast<const float4*>(parts.data()), args.slices, count / 4, D, HeadTensor(a.dw));
    LC_LAUNCHED("feature_map", queue);
}

}  // namespace

bool feature_map_backward_tiled(const FeatureMapBackward& a, Stream stream) {
    const FeatureMapForward& f = a.forward;
    const int64_t d = f.w.size(1), group = f.w.size(0) / f.x.size(1);
    if (f.b || f.skip || f.w.size(2) != kMapSize || (d != 64 && d != 128) || f.x.numel() == 0) return false;
    if (f.x.dtype != DType::bf16 || a.dphi.dtype != DType::bf16 || (a.dx && group > kMostTogether)) return false;
    if (f.x.size(0) * ceil_div(f.x.size(2), kTileRows) > kMostTiles) return false;
    if (!is_packed(f.x) || !is_packed(f.w) || !is_packed(a.dphi) || (a.dx && !is_packed(a.dx.view))) return false;
    dispatch_bool(d == 128, [&](auto wide) {
        constexpr int kD = wide() ? 128 : 64;
        if (a.dx && a.dw && group == 1) return launch<kD, true, true>(a, stream);
        if (a.dx) launch<kD, true, false>(a, stream);
        if (a.dw) launch<kD, false, true>(a, stream);
    });
    return true;
}

}  // namespace lc::kernels
