// Step 2: tiles in shared memory. A block has 64 queries.
//
// IDEA     What a block of queries reads, it reads once: a tile of 32 keys and values goes to shared memory and serves all 64 rows, and a
//          thread makes several results of each number that it loads.
//
//            scores [64,32] = q [64,D] k^T       thread (ty, tx): rows 4 ty .. 4 ty + 3, keys tx, tx + 16
//            softmax                              the 16 threads of a row meet by shuffles
//            y [64,D] += weights [64,32] v        thread (ty, tx): the same rows, columns tx, tx + 16, ...
//
// COST     4 D bytes a pair / 64. Now arithmetic binds: a fused multiply-add is two FLOPs of one lane, and each needs operands from shared
//          memory: 6 loads for 8 of them in the scores, 12 for 32 in y (D = 128).
#include "bench/ladder/heads.cuh"
#include "bench/ladder/steps.h"

namespace lc::bench {
namespace {

constexpr int kThreads = 256, kRows = 64, kKeys = 32, kMine = 4;  // rows of a thread

struct Args {
    Heads q, k, v, y;
    int64_t heads, t;
    float scale;
};

template <int D>
struct Tiles {
    float q[kRows][D + 1], k[kKeys][D + 1], v[kKeys][D], weights[kRows][kKeys + 1];  // + 1: columns hit different banks
};

// to[r] = row first + r of a matrix of `rows` rows, zeros beyond.
template <int Rows, int D, int Width>
__device__ void load_tile(float (&to)[Rows][Width], const __nv_bfloat16* matrix, int64_t stride, int64_t first,
                          int64_t rows) {
    for (int i = threadIdx.x; i < Rows * D; i += kThreads)
        to[i / D][i % D] = first + i / D < rows ? __bfloat162float(matrix[(first + i / D) * stride + i % D]) : 0.0f;
}

// Over the 16 threads that share rows.
__device__ float row_max(float x) {
    for (int step = 8; step > 0; step /= 2) x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, step));
    return x;
}
__device__ float row_sum(float x) {
    for (int step = 8; step > 0; step /= 2) x += __shfl_xor_sync(0xffffffffu, x, step);
    return x;
}

template <int D>
__global__ void __launch_bounds__(kThreads) tile_kernel(const __grid_constant__ Args a) {
    extern __shared__ float shared[];
    Tiles<D>& tiles = *reinterpret_cast<Tiles<D>*>(shared);
    const int64_t first = static_cast<int64_t>(blockIdx.x) * kRows, b = blockIdx.y / a.heads, h = blockIdx.y % a.heads;
    const int ty = threadIdx.x / 16, tx = threadIdx.x % 16;
    load_tile<kRows, D>(tiles.q, a.q.row(b, h, a.heads, 0), a.q.strides[2], first, a.t);
    float y[kMine][D / 16] = {}, high[kMine], sum[kMine] = {};
    for (float& x : high) x = -INFINITY;
    for (int64_t j0 = 0; j0 < min(first + kRows, a.t); j0 += kKeys) {
        __syncthreads();  // nobody reads the tiles before
        load_tile<kKeys, D>(tiles.k, a.k.row(b, h, a.heads, 0), a.k.strides[2], j0, a.t);
        load_tile<kKeys, D>(tiles.v, a.v.row(b, h, a.heads, 0), a.v.strides[2], j0, a.t);
        __syncthreads();
        float score[kMine][2] = {};
        for (int c = 0; c < D; ++c)
#pragma unroll
            for (int i = 0; i < kMine; ++i)
#pragma unroll
                for (int e = 0; e < 2; ++e) score[i][e] += tiles.q[ty * kMine + i][c] * tiles.k[tx + 16 * e][c];
#pragma unroll
        for (int i = 0; i < kMine; ++i) {
            const int64_t row = first + ty * kMine + i;
            for (int e = 0; e < 2; ++e) score[i][e] = j0 + tx + 16 * e <= row ? score[i][e] * a.scale : -INFINITY;
            const float higher = fmaxf(high[i], row_max(fmaxf(score[i][0], score[i][1])));
            const float shift = higher == -INFINITY ? 0.0f : higher, shrink = expf(high[i] - shift);
            float part = 0;
            for (int e = 0; e < 2; ++e) {
                const float weight = expf(score[i][e] - shift);
                tiles.weights[ty * kMine + i][tx + 16 * e] = weight, part += weight;
            }
            high[i] = higher, sum[i] = sum[i] * shrink + row_sum(part);
            for (int c = 0; c < D / 16; ++c) y[i][c] *= shrink;
        }
        __syncwarp();  // a row's weights are its own warp's
        for (int j = 0; j < kKeys; ++j)
#pragma unroll
            for (int i = 0; i < kMine; ++i)
#pragma unroll
                for (int c = 0; c < D / 16; ++c) y[i][c] += tiles.weights[ty * kMine + i][j] * tiles.v[j][tx + 16 * c];
    }
#pragma unroll
    for (int i = 0; i < kMine; ++i) {
        const int64_t row = first + ty * kMine + i;
        if (row >= a.t) continue;
        for (int c = 0; c < D / 16; ++c) a.y.row(b, h, a.heads, row)[tx + 16 * c] = __float2bfloat16(y[i][c] / sum[i]);
    }
}

}  // namespace

void softmax_shared(const kernels::SoftmaxAttentionForward& args, Stream stream) {
    const int64_t t = args.q.size(2), d = args.q.size(3);
    const Args a{Heads(args.q),
                 Heads(args.k),
                 Heads(args.v),
                 Heads(args.y),
                 args.q.size(1),
                 t,
                 1 / sqrtf(static_cast<float>(d))};
    const dim3 grid(kernels::grid_x(kernels::ceil_div(t, kRows)),
                    static_cast<unsigned>(args.q.size(0) * args.q.size(1)));
    dispatch_size(d, [&](auto size) {
        kernels::allow_shared_memory(tile_kernel<size()>, sizeof(Tiles<size()>));
        tile_kernel<size()><<<grid, kThreads, sizeof(Tiles<size()>), cuda::handle_of(stream)>>>(a);
    });
    LC_LAUNCHED("softmax_shared", cuda::handle_of(stream));
}

}  // namespace lc::bench
