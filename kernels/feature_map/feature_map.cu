// Feature maps on the GPU, any shape and layout.
//
// MATHS    feature_map.h.
// TILING   256 threads as 16 x 16.
//            forward   block = (batch, head, 32 rows): u [32,F] in shared memory as a product in steps of 32 x 64 results, thread
//                      (ty, tx) two rows and every sixteenth column from tx; then a warp a row: activation, clamp, store
//            dx        block = (batch, head of x, 32 rows), for each head that reads it: u again, du over u (a warp a row), dx +=
//                      du W^T, dx [32,D] in shared memory. Leaves du for dw and db.
//            dw, db    block = (head, 64 x 64 of [D,F], 1024 rows): sums of x^T du and of du go to workspace; a last kernel adds
//                      the parts in order.
//          Every output has one writer and one order of summation.
// COST     2 rows D F FLOPs forward, three times that backward. du is rows F 4 bytes of workspace.
// NUMERICS f32 throughout, accurate exp; parameters of f32 beside bf16 activations are read as they are. The backward makes phi
//          again from u.
// LADDER   1 this: FFMA, 2 x 4 results a thread. Attention makes its features on the fly; this op serves tests and inspection.
//          2 feature_map_tiles.cu, feature_map_tiles_backward.cu: bf16 rows on tensor cores, 13 and 20 times as fast.
// SOURCE   arXiv 2402.04347.
#include "kernels/common/cuda/head_tensor.cuh"
#include "kernels/common/cuda/launch.h"
#include "kernels/feature_map/feature_map_device.cuh"
#include "kernels/feature_map/feature_map_tiles.h"

namespace lc::kernels {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / kWarp;
constexpr int kRows = 32, kDepth = 32, kColumns = 64;  // of a product step
constexpr int kMicroRows = kRows / 16, kMicroColumns = kColumns / 16;
constexpr int64_t kSliceRows = 1024;  // of one part of dw and db

struct Args {
    int64_t batch, heads, group, t;  // group heads read one head of x
    int d, f;
    FeatureActivation activation;
    bool skip, vector_bias;
    HeadTensor x, w, b, phi, dphi, dx;  // b and the last two may be absent
    float* du;                          // [B,H,T,F], or null
};

struct ProductTiles {
    float a[kRows][kDepth + 1], b[kDepth][kColumns];
};

// store(r, n, sum_k a(r, k) b(k, n)) for r < 32, n < `columns`. Starts with a barrier; a thread stores what it owns.
template <class A, class B, class Store>
__device__ void product(ProductTiles& tiles, int depth, int columns, A&& a, B&& b, Store&& store) {
    const int ty = threadIdx.x / 16, tx = threadIdx.x % 16;
    for (int n0 = 0; n0 < columns; n0 += kColumns) {
        float sum[kMicroRows][kMicroColumns] = {};
        for (int k0 = 0; k0 < depth; k0 += kDepth) {
            __syncthreads();
            for (int i = threadIdx.x; i < kRows * kDepth; i += kThreads) {
                const int r = i / kDepth, k = i % kDepth;
                tiles.a[r][k] = k0 + k < depth ? a(r, k0 + k) : 0.0f;
            }
            for (int i = threadIdx.x; i < kDepth * kColumns; i += kThreads) {
                const int k = i / kColumns, n = i % kColumns;
                tiles.b[k][n] = k0 + k < depth && n0 + n < columns ? b(k0 + k, n0 + n) : 0.0f;
            }
            __syncthreads();
            for (int k = 0; k < kDepth; ++k)
#pragma unroll
                for (int i = 0; i < kMicroRows; ++i)
#pragma unroll
                    for (int j = 0; j < kMicroColumns; ++j)
                        sum[i][j] = fmaf(tiles.a[ty * kMicroRows + i][k], tiles.b[k][tx + 16 * j], sum[i][j]);
        }
#pragma unroll
        for (int i = 0; i < kMicroRows; ++i)
#pragma unroll
            for (int j = 0; j < kMicroColumns; ++j)
                if (n0 + tx + 16 * j < columns) store(ty * kMicroRows + i, n0 + tx + 16 * j, sum[i][j]);
    }
}

// u [32,F] = x W + b (+ x) of the rows from t0 on; a row beyond the end is b. Ends with a barrier.
__device__ void project(const Args& args, ProductTiles& tiles, int64_t batch, int64_t h, int64_t t0, float* u) {
    const auto x = [&](int r, int c) {
        return t0 + r < args.t ? args.x.load(args.x.row(batch, h / args.group, t0 + r), c) : 0.0f;
    };
    product(
        tiles, args.d, args.f, x, [&](int k, int n) { return args.w.load(args.w.row(h, k, n)); },
        [&](int r, int n, float sum) {
            if (args.b) sum += args.b.load(args.b.row(h, args.vector_bias ? n : 0, 0));
            if (args.skip) sum += x(r, n);
            u[r * args.f + n] = sum;
        });
    __syncthreads();
}

__global__ void __launch_bounds__(kThreads) forward_kernel(const __grid_constant__ Args args) {
    extern __shared__ float u[];  // [32,F]
    __shared__ ProductTiles tiles;
    const int64_t blocks = ceil_div(args.t, kRows), t0 = blockIdx.x % blocks * kRows;
    const int64_t b = blockIdx.x / blocks / args.heads, h = blockIdx.x / blocks % args.heads;
    project(args, tiles, b, h, t0, u);
    for (int r = threadIdx.x / kWarp; r < kRows && t0 + r < args.t; r += kWarps) {
        const int64_t row = args.phi.row(b, h, t0 + r);
        feature_map_row_warp(args.activation, u + r * args.f, args.f,
                             [&](int i, float phi) { args.phi.put(row, i, phi); });
    }
}

__global__ void __launch_bounds__(kThreads) backward_kernel(const __grid_constant__ Args args) {
    extern __shared__ float shared[];
    __shared__ ProductTiles tiles;
    float *du = shared, *dx = du + kRows * args.f;  // [32,F] (first u), [32,D]
    const int64_t blocks = ceil_div(args.t, kRows), t0 = blockIdx.x % blocks * kRows, heads_x = args.heads / args.group;
    const int64_t b = blockIdx.x / blocks / heads_x, hx = blockIdx.x / blocks % heads_x;
    for (int64_t h = hx * args.group; h < (hx + 1) * args.group; ++h) {
        project(args, tiles, b, h, t0, du);
        for (int r = threadIdx.x / kWarp; r < kRows; r += kWarps) {
            float* row = du + r * args.f;
            if (t0 + r >= args.t) {
                for (int i = threadIdx.x % kWarp; i < args.f; i += kWarp) row[i] = 0;
                continue;
            }
            const int64_t dphi = args.dphi.row(b, h, t0 + r);
            float* kept = args.du ? args.du + ((b * args.heads + h) * args.t + t0 + r) * args.f : nullptr;
            // A lane overwrites u_i when it has read it for the last time.
            feature_map_row_backward_warp(
                args.activation, row, args.f, [&](int i) { return args.dphi.load(dphi, i); },
                [&](int i, float value) {
                    row[i] = value;
                    if (kept) kept[i] = value;
                });
        }
        __syncthreads();
        if (args.dx)
            product(
                tiles, args.f, args.d, [&](int r, int k) { return du[r * args.f + k]; },
                [&](int k, int n) { return args.w.load(args.w.row(h, n, k)); },
                [&](int r, int n, float sum) {
                    if (args.skip) sum += du[r * args.f + n];
                    float& target = dx[r * args.d + n];
                    target = h > hx * args.group ? target + sum : sum;
                });
        __syncthreads();
    }
    if (!args.dx) return;
    for (int i = threadIdx.x; i < kRows * args.d; i += kThreads) {
        const int r = i / args.d, c = i % args.d;
        if (t0 + r < args.t) args.dx.put(args.dx.row(b, hx, t0 + r), c, dx[i]);
    }
}

// One slice of rows of one head: dw_parts[slice][h] [D,F] and db_parts[slice][h] [F], each null if unwanted.
__global__ void __launch_bounds__(kThreads)
    parts_kernel(const __grid_constant__ Args args, float* dw_parts, float* db_parts) {
    constexpr int kSize = 64, kMicro = kSize / 16;
    __shared__ float x[kRows][kSize], du[kRows][kSize];
    const int64_t d_tiles = ceil_div(args.d, kSize), f_tiles = ceil_div(args.f, kSize);
    const int64_t h = blockIdx.x % args.heads, tile = blockIdx.x / args.heads % (d_tiles * f_tiles);
    const int64_t slice = blockIdx.x / args.heads / (d_tiles * f_tiles);
    const int d0 = static_cast<int>(tile / f_tiles) * kSize, f0 = static_cast<int>(tile % f_tiles) * kSize;
    const int ty = threadIdx.x / 16, tx = threadIdx.x % 16, column = threadIdx.x;
    const int64_t end = min((slice + 1) * kSliceRows, args.batch * args.t);
    float sum[kMicro][kMicro] = {}, column_sum = 0;
    for (int64_t first = slice * kSliceRows; first < end; first += kRows) {
        for (int i = threadIdx.x; i < kRows * kSize; i += kThreads) {
            const int r = i / kSize, c = i % kSize;
            const bool inside = first + r < end;
            const int64_t b = inside ? (first + r) / args.t : 0, t = inside ? (first + r) % args.t : 0;
            x[r][c] = inside && d0 + c < args.d ? args.x.load(args.x.row(b, h / args.group, t), d0 + c) : 0.0f;
            du[r][c] =
                inside && f0 + c < args.f ? args.du[((b * args.heads + h) * args.t + t) * args.f + f0 + c] : 0.0f;
        }
        __syncthreads();
        for (int r = 0; r < kRows; ++r)
#pragma unroll
            for (int i = 0; i < kMicro; ++i)
#pragma unroll
                for (int j = 0; j < kMicro; ++j) sum[i][j] = fmaf(x[r][ty + 16 * i], du[r][tx + 16 * j], sum[i][j]);
        if (column < kSize)
            for (int r = 0; r < kRows; ++r) column_sum += du[r][column];
        __syncthreads();
    }
    const int64_t part = slice * args.heads + h;
    if (dw_parts)
#pragma unroll
        for (int i = 0; i < kMicro; ++i)
#pragma unroll
            for (int j = 0; j < kMicro; ++j) {
                const int row = d0 + ty + 16 * i, c = f0 + tx + 16 * j;
                if (row < args.d && c < args.f) dw_parts[(part * args.d + row) * args.f + c] = sum[i][j];
            }
    if (db_parts && d0 == 0 && column < kSize && f0 + column < args.f)
        db_parts[part * args.f + f0 + column] = column_sum;
}

// out [H,rows,columns] (+)= sum of the parts [slices][H,rows,columns]
__global__ void total_kernel(const float* parts, int64_t slices, int64_t heads, int64_t rows, int64_t columns,
                             const __grid_constant__ HeadTensor out) {
    const int64_t count = heads * rows * columns, i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i >= count) return;
    float sum = 0;
    for (int64_t slice = 0; slice < slices; ++slice) sum += parts[slice * count + i];
    out.put(out.row(i / columns / rows, i / columns % rows, i % columns), 0, sum);
}

// db [H,1] or [H,F] from parts [slices][H,F].
__global__ void bias_kernel(const float* parts, int64_t slices, int64_t heads, int64_t f, bool vector,
                            const __grid_constant__ HeadTensor out) {
    const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x, entries = vector ? f : 1;
    if (i >= heads * entries) return;
    const int64_t h = i / entries, first = vector ? i % f : 0, last = vector ? first + 1 : f;
    float sum = 0;
    for (int64_t slice = 0; slice < slices; ++slice)
        for (int64_t j = first; j < last; ++j) sum += parts[(slice * heads + h) * f + j];
    out.put(out.row(h, i % entries, 0), 0, sum);
}

Args make_args(const FeatureMapForward& a) {
    return {.batch = a.x.size(0),
            .heads = a.w.size(0),
            .group = a.w.size(0) / a.x.size(1),
            .t = a.x.size(2),
            .d = static_cast<int>(a.x.size(3)),
            .f = static_cast<int>(a.w.size(2)),
            .activation = a.activation,
            .skip = a.skip,
            .vector_bias = a.b && a.b.size(1) > 1,
            .x = HeadTensor(a.x),
            .w = HeadTensor(a.w),
            .b = HeadTensor(a.b),
            .phi = HeadTensor(a.phi),
            .dphi = {},
            .dx = {},
            .du = nullptr};
}

// Dynamic shared memory; the limit of 48 KiB that must be lifted counts the static tiles too.
constexpr int64_t shared_bytes(int64_t columns) {
    return kRows * columns * int64_t{sizeof(float)};
}
static_assert(shared_bytes(2 * kFeatureMapMostColumns) + 2 * int64_t{sizeof(ProductTiles)} <= 163 * 1024,
              "one block on sm_80");

}  // namespace

void feature_map_forward_cuda(const FeatureMapForward& a, Stream stream) {
    if (feature_map_forward_tiled(a, stream)) return;
    const Args args = make_args(a);
    const int64_t blocks = args.batch * args.heads * ceil_div(args.t, kRows), bytes = shared_bytes(args.f);
    if (blocks == 0) return;
    allow_shared_memory(forward_kernel, bytes + int64_t{sizeof(ProductTiles)});
    forward_kernel<<<grid_x(blocks), kThreads, bytes, cuda::handle_of(stream)>>>(args);
    LC_LAUNCHED("feature_map", cuda::handle_of(stream));
}

void feature_map_backward_cuda(const FeatureMapBackward& a, Stream stream) {
    if (!a.db && feature_map_backward_tiled(a, stream)) return;
    Args args = make_args(a.forward);
    const cudaStream_t queue = cuda::handle_of(stream);
    const int64_t rows = args.batch * args.t, slices = ceil_div(rows, kSliceRows);
    const bool parameters = a.dw || a.db;
    const DeviceScratch<float> du(parameters ? rows * args.heads * args.f : 0, stream);
    const DeviceScratch<float> dw_parts(a.dw ? slices * args.heads * args.d * args.f : 0, stream);
    const DeviceScratch<float> db_parts(a.db ? slices * args.heads * args.f : 0, stream);
    args.dphi = HeadTensor(a.dphi), args.dx = HeadTensor(a.dx);
    args.du = parameters ? du.data() : nullptr;
    const int64_t blocks = args.batch * (args.heads / args.group) * ceil_div(args.t, kRows);
    if (blocks > 0 && (parameters || a.dx)) {
        const int64_t bytes = shared_bytes(args.f + (a.dx ? args.d : 0));
        allow_shared_memory(backward_kernel, bytes + int64_t{sizeof(ProductTiles)});
        backward_kernel<<<grid_x(blocks), kThreads, bytes, queue>>>(args);
        LC_LAUNCHED("feature_map", queue);
    }
    if (parameters && slices > 0) {
        const int64_t tiles = ceil_div(args.d, 64) * ceil_div(args.f, 64);
        parts_kernel<<<grid_x(slices * tiles * args.heads), kThreads, 0, queue>>>(
            args, a.dw ? dw_parts.data() : nullptr, a.db ? db_parts.data() : nullptr);
        LC_LAUNCHED("feature_map", queue);
    }
    if (a.dw) {
        total_kernel<<<grid_x(ceil_div(args.heads * args.d * args.f, 256)), 256, 0, queue>>>(
            dw_parts.data(), slices, args.heads, args.d, args.f, HeadTensor(a.dw));
        LC_LAUNCHED("feature_map", queue);
    }
    if (a.db) {
        bias_kernel<<<grid_x(ceil_div(a.db.view.numel(), 256)), 256, 0, queue>>>(
            db_parts.data(), slices, args.heads, args.f, a.db.view.size(1) > 1, HeadTensor(a.db));
        LC_LAUNCHED("feature_map", queue);
    }
}

}  // namespace lc::kernels
