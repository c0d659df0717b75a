// Softmax attention on the GPU for any layout, f32 or bf16, and any head_dim up to 512. softmax_attention_mma.cu is faster where
// it applies.
//
// MATHS    softmax_attention.h. Forward: online softmax, saved: lse. Backward: p recomputed from lse.
// TILING   256 threads as 16 x 16; tiles of R rows, R = 64 for D <= 128, else 16. Thread (ty, tx) has R/16 rows from ty R/16 and
//          every sixteenth column from tx: of a block of scores [R,R] and of an accumulator [R,D] alike, so that a row lies in
//          one half-warp.
//
//            forward, dq    block = (batch, head, R queries), walks key tiles
//              shared: q [R,D]  (dy [R,D])  k, v [R,D] (forward: one buffer for both in turn)  p or ds [R,R]
//            dk and dv      block = (batch, KV head, R keys), walks query tiles of every head of the group
//              shared: k, v, q, dy [R,D]  p^T, ds^T [R,R]
//
//          Every output element has one writer and one order of summation: no atomics, repeatable bit by bit.
// COST     forward 4 D, backward 14 D FLOPs a visible (query, key) pair (scores are made in both backward kernels); memory O(T).
// NUMERICS f32 throughout, accurate exp. delta is summed in the order of the scores' dot products: where a row sees one key,
//          y = v and dp - delta is exactly 0, as it should be.
// LADDER   1 this: FFMA with 4 x 4 (scores) and 4 x 8 (values) results a thread.
// SOURCE   arXiv 1805.02867, 2205.14135, 2307.08691.
#include "kernels/common/cuda/reduce.cuh"
#include "kernels/softmax_attention/softmax_attention_device.cuh"

namespace lc::kernels {
namespace {

constexpr int kThreads = 256;

template <int MaxD>
struct Traits {
    static constexpr int kTile = MaxD <= 128 ? 64 : 16;
    static constexpr int kMicro = kTile / 16;   // rows a thread, and columns of scores
    static constexpr int kColumns = MaxD / 16;  // columns of [R,D] a thread
    static constexpr int kScoreStride = kTile + 1;
    static constexpr int kScores = kTile * kScoreStride;
    // Odd: the rows that a warp reads at one column lie in different banks.
    static __host__ __device__ int stride(int d) { return d | 1; }
    static int64_t bytes(int d, int tiles, int scores) {
        return (int64_t{tiles} * kTile * stride(d) + scores * kScores) * int64_t{sizeof(float)};
    }
    static constexpr int64_t kMostBytes = (int64_t{4} * kTile * (MaxD + 1) + 2 * kScores) * int64_t{sizeof(float)};
    static_assert(kMostBytes <= 163 * 1024, "shared memory of one block on sm_80");
};

__device__ __forceinline__ int lane_row() {
    return threadIdx.x / 16;
}
__device__ __forceinline__ int lane_column() {
    return threadIdx.x % 16;
}

// tile[r][c] = from(b, h, first + r, c); rows from `rows` on are zeros.
template <class Tr>
__device__ void load_tile(const HeadTensor& from, int64_t b, int64_t h, int64_t first, int64_t rows, int d,
                          float* tile) {
    for (int r = threadIdx.x / kWarp; r < Tr::kTile; r += kThreads / kWarp) {
        const bool inside = first + r < rows;
        const int64_t row = inside ? from.row(b, h, first + r) : 0;
        for (int c = threadIdx.x % kWarp; c < d; c += kWarp)
            tile[r * Tr::stride(d) + c] = inside ? from.load(row, c) : 0.0f;
    }
}

// dots[i][j] = a[row i] . b[row j of the columns]
template <class Tr>
__device__ void tile_dots(const float* a, const float* b, int d, float (&dots)[Tr::kMicro][Tr::kMicro]) {
    constexpr int kMicro = Tr::kMicro;
    const int stride = Tr::stride(d);
    a += lane_row() * kMicro * stride, b += lane_column() * stride;
#pragma unroll
    for (int i = 0; i < kMicro; ++i)
#pragma unroll
        for (int j = 0; j < kMicro; ++j) dots[i][j] = 0;
    for (int c = 0; c < d; ++c) {
        float left[kMicro], right[kMicro];
#pragma unroll
        for (int i = 0; i < kMicro; ++i) left[i] = a[i * stride + c], right[i] = b[i * 16 * stride + c];
#pragma unroll
        for (int i = 0; i < kMicro; ++i)
#pragma unroll
            for (int j = 0; j < kMicro; ++j) dots[i][j] = fmaf(left[i], right[j], dots[i][j]);
    }
}

// sum[i][j] += sum_k weights[row i][k] x[k][column j]
template <class Tr>
__device__ void tile_accumulate(const float* weights, const float* x, int d, float (&sum)[Tr::kMicro][Tr::kColumns]) {
    const int stride = Tr::stride(d);
    weights += lane_row() * Tr::kMicro * Tr::kScoreStride;
    for (int k = 0; k < Tr::kTile; ++k) {
        float weight[Tr::kMicro];
#pragma unroll
        for (int i = 0; i < Tr::kMicro; ++i) weight[i] = weights[i * Tr::kScoreStride + k];
#pragma unroll
        for (int j = 0; j < Tr::kColumns; ++j) {
            const int c = lane_column() + 16 * j;
            if (c >= d) break;
            const float value = x[k * stride + c];
#pragma unroll
            for (int i = 0; i < Tr::kMicro; ++i) sum[i][j] = fmaf(weight[i], value, sum[i][j]);
        }
    }
}

// to(b, h, first + row i, column j) = factor * sum[i][j]
template <class Tr>
__device__ void store_tile(const HeadTensor& to, int64_t b, int64_t h, int64_t first, int64_t rows, int d, float factor,
                           const float (&sum)[Tr::kMicro][Tr::kColumns]) {
#pragma unroll
    for (int i = 0; i < Tr::kMicro; ++i) {
        const int64_t t = first + lane_row() * Tr::kMicro + i;
        if (t >= rows) continue;
        const int64_t row = to.row(b, h, t);
#pragma unroll
        for (int j = 0; j < Tr::kColumns; ++j) {
            const int c = lane_column() + 16 * j;
            if (c < d) to.put(row, c, factor * sum[i][j]);
        }
    }
}

struct ForwardArgs {
    AttentionShape shape;
    HeadTensor q, k, v, y, lse;
};

template <class Tr>
__global__ void __launch_bounds__(kThreads) forward_kernel(const __grid_constant__ ForwardArgs args) {
    constexpr int kTile = Tr::kTile, kMicro = Tr::kMicro;
    extern __shared__ float shared[];
    const AttentionShape& s = args.shape;
    float* q = shared;                        // [R,D]
    float* kv = q + kTile * Tr::stride(s.d);  // [R,D]
    float* p = kv + kTile * Tr::stride(s.d);  // [R,R]
    const int64_t tiles = ceil_div(s.t, kTile), head = blockIdx.x % (s.batch * s.heads);
    const int64_t q0 = (tiles - 1 - blockIdx.x / (s.batch * s.heads)) * kTile;  // the longest first
    const int64_t b = head / s.heads, h = head % s.heads, hk = h / s.group;
    load_tile<Tr>(args.q, b, h, q0, s.t, s.d, q);

    float y[kMicro][Tr::kColumns] = {}, high[kMicro], sum[kMicro] = {};
#pragma unroll
    for (int i = 0; i < kMicro; ++i) high[i] = -INFINITY;
    const int64_t limit = s.visible(min(q0 + kTile, s.t) - 1);
    for (int64_t k0 = s.first_visible(q0) / kTile * kTile; k0 < limit; k0 += kTile) {
        load_tile<Tr>(args.k, b, hk, k0, s.keys, s.d, kv);
        __syncthreads();
        float score[kMicro][kMicro];
        tile_dots<Tr>(q, kv, s.d, score);
#pragma unroll
        for (int i = 0; i < kMicro; ++i) {
            const int row = lane_row() * kMicro + i;
            const int64_t hidden = s.first_visible(q0 + row) - k0, seen = s.visible(q0 + row) - k0;
            float top = high[i];
#pragma unroll
            for (int j = 0; j < kMicro; ++j) {
                const int column = lane_column() + 16 * j;
                score[i][j] = column >= hidden && column < seen ? score[i][j] * s.scale : -INFINITY;
                top = fmaxf(top, score[i][j]);
            }
            top = warp_max<16>(top);
            const float from = top == -INFINITY ? 0.0f : top;  // a window may begin in a later tile
            const float shrink = expf(high[i] - from);
            high[i] = top;
            float part = 0;
#pragma unroll
            for (int j = 0; j < kMicro; ++j) {
                const float weight = expf(score[i][j] - from);
                p[row * Tr::kScoreStride + lane_column() + 16 * j] = weight;
                part += weight;
            }
            sum[i] = sum[i] * shrink + warp_sum<16>(part);
#pragma unroll
            for (int j = 0; j < Tr::kColumns; ++j) y[i][j] *= shrink;
        }
        __syncthreads();
        load_tile<Tr>(args.v, b, hk, k0, s.keys, s.d, kv);
        __syncthreads();
        tile_accumulate<Tr>(p, kv, s.d, y);
        __syncthreads();
    }
#pragma unroll
    for (int i = 0; i < kMicro; ++i) {
        const int64_t t = q0 + lane_row() * kMicro + i;
#pragma unroll
        for (int j = 0; j < Tr::kColumns; ++j) y[i][j] /= sum[i];
        if (args.lse && lane_column() == 0 && t < s.t) args.lse.put(args.lse.row(b, h, t), 0, high[i] + logf(sum[i]));
    }
    store_tile<Tr>(args.y, b, h, q0, s.t, s.d, 1.0f, y);
}

// One thread a row: see NUMERICS.
__global__ void delta_kernel(AttentionShape s, HeadTensor y, HeadTensor dy, float* delta) {
    const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i >= s.batch * s.heads * s.t) return;
    const int64_t b = i / s.t / s.heads, h = i / s.t % s.heads, t = i % s.t;
    const int64_t y_row = y.row(b, h, t), dy_row = dy.row(b, h, t);
    float sum = 0;
    for (int c = 0; c < s.d; ++c) sum = fmaf(dy.load(dy_row, c), y.load(y_row, c), sum);
    delta[i] = sum;
}

struct BackwardArgs {
    AttentionShape shape;
    HeadTensor q, k, v, lse, dy, dq, dk, dv;
    const float* delta;  // [B,H,T]
};

// p and ds of a block of queries and keys, each written by `put(row, column, value)`.
template <class Tr, class PutP, class PutDs>
__device__ void recompute(const BackwardArgs& args, int64_t b, int64_t h, int64_t q0, int64_t k0, const float* q,
                          const float* k, const float* v, const float* dy, PutP&& put_p, PutDs&& put_ds) {
    constexpr int kMicro = Tr::kMicro;
    const AttentionShape& s = args.shape;
    float p[kMicro][kMicro], dp[kMicro][kMicro];
    tile_dots<Tr>(q, k, s.d, p);
    tile_dots<Tr>(dy, v, s.d, dp);
#pragma unroll
    for (int i = 0; i < kMicro; ++i) {
        const int row = lane_row() * kMicro + i;
        const int64_t t = q0 + row, hidden = s.first_visible(t) - k0, seen = t < s.t ? s.visible(t) - k0 : 0;
        const float lse = t < s.t ? args.lse.load(args.lse.row(b, h, t)) : 0.0f;
        const float delta = t < s.t ? args.delta[(b * s.heads + h) * s.t + t] : 0.0f;
#pragma unroll
        for (int j = 0; j < kMicro; ++j) {
            const int column = lane_column() + 16 * j;
            const float weight = column >= hidden && column < seen ? expf(p[i][j] * s.scale - lse) : 0.0f;
            put_p(row, column, weight);
            put_ds(row, column, weight * (dp[i][j] - delta));
        }
    }
}

template <class Tr>
__global__ void __launch_bounds__(kThreads) dq_kernel(const __grid_constant__ BackwardArgs args) {
    constexpr int kTile = Tr::kTile;
    extern __shared__ float shared[];
    const AttentionShape& s = args.shape;
    const int size = kTile * Tr::stride(s.d);
    float *q = shared, *dy = q + size, *k = dy + size, *v = k + size;  // [R,D] each
    float* ds = v + size;                                              // [R,R]
    const int64_t tiles = ceil_div(s.t, kTile), head = blockIdx.x % (s.batch * s.heads);
    const int64_t q0 = (tiles - 1 - blockIdx.x / (s.batch * s.heads)) * kTile;
    const int64_t b = head / s.heads, h = head % s.heads, hk = h / s.group;
    load_tile<Tr>(args.q, b, h, q0, s.t, s.d, q);
    load_tile<Tr>(args.dy, b, h, q0, s.t, s.d, dy);

    float dq[Tr::kMicro][Tr::kColumns] = {};
    const int64_t limit = s.visible(min(q0 + kTile, s.t) - 1);
    for (int64_t k0 = s.first_visible(q0) / kTile * kTile; k0 < limit; k0 += kTile) {
        load_tile<Tr>(args.k, b, hk, k0, s.keys, s.d, k);
        load_tile<Tr>(args.v, b, hk, k0, s.keys, s.d, v);
        __syncthreads();
        recompute<Tr>(
            args, b, h, q0, k0, q, k, v, dy, [](int, int, float) {},
            [&](int row, int column, float value) { ds[row * Tr::kScoreStride + column] = value; });
        __syncthreads();
        tile_accumulate<Tr>(ds, k, s.d, dq);
        __syncthreads();
    }
    store_tile<Tr>(args.dq, b, h, q0, s.t, s.d, s.scale, dq);
}

template <class Tr>
__global__ void __launch_bounds__(kThreads) dkv_kernel(const __grid_constant__ BackwardArgs args) {
    constexpr int kTile = Tr::kTile;
    extern __shared__ float shared[];
    const AttentionShape& s = args.shape;
    const int size = kTile * Tr::stride(s.d);
    float *q = shared, *dy = q + size, *k = dy + size, *v = k + size;  // [R,D] each
    float *p = v + size, *ds = p + Tr::kScores;                        // [R,R] each, a row a key
    const int64_t head = blockIdx.x % (s.batch * s.kv_heads), k0 = blockIdx.x / (s.batch * s.kv_heads) * kTile;
    const int64_t b = head / s.kv_heads, hk = head % s.kv_heads;
    load_tile<Tr>(args.k, b, hk, k0, s.keys, s.d, k);
    load_tile<Tr>(args.v, b, hk, k0, s.keys, s.d, v);

    float dk[Tr::kMicro][Tr::kColumns] = {}, dv[Tr::kMicro][Tr::kColumns] = {};
    const int64_t end = s.end_of_view(min(k0 + kTile, s.keys) - 1);
    for (int64_t h = hk * s.group; h < (hk + 1) * s.group; ++h)
        for (int64_t q0 = s.first_seeing(k0) / kTile * kTile; q0 < end; q0 += kTile) {
            load_tile<Tr>(args.q, b, h, q0, s.t, s.d, q);
            load_tile<Tr>(args.dy, b, h, q0, s.t, s.d, dy);
            __syncthreads();
            recompute<Tr>(
                args, b, h, q0, k0, q, k, v, dy,
                [&](int row, int column, float value) { p[column * Tr::kScoreStride + row] = value; },
                [&](int row, int column, float value) { ds[column * Tr::kScoreStride + row] = value; });
            __syncthreads();
            tile_accumulate<Tr>(p, dy, s.d, dv);
            tile_accumulate<Tr>(ds, q, s.d, dk);
            __syncthreads();
        }
    if (args.dk) store_tile<Tr>(args.dk, b, hk, k0, s.keys, s.d, s.scale, dk);
    if (args.dv) store_tile<Tr>(args.dv, b, hk, k0, s.keys, s.d, 1.0f, dv);
}

// f(Traits<...>{}) for the smallest that holds the head.
template <class F>
void dispatch_head_dim(int d, F&& f) {
    if (d <= 128) return f(Traits<128>{});
    f(Traits<512>{});
}

}  // namespace

void softmax_attention_forward_cuda(const SoftmaxAttentionForward& a, Stream stream) {
    const ForwardArgs args{AttentionShape(a), HeadTensor(a.q), HeadTensor(a.k),
                           HeadTensor(a.v),   HeadTensor(a.y), HeadTensor(a.lse)};
    const AttentionShape& s = args.shape;
    dispatch_head_dim(s.d, [&](auto traits) {
        using Tr = decltype(traits);
        const int64_t blocks = s.batch * s.heads * ceil_div(s.t, Tr::kTile), bytes = Tr::bytes(s.d, 2, 1);
        if (blocks == 0) return;
        allow_shared_memory(forward_kernel<Tr>, bytes);
        forward_kernel<Tr><<<grid_x(blocks), kThreads, bytes, cuda::handle_of(stream)>>>(args);
        LC_LAUNCHED("softmax_attention", cuda::handle_of(stream));
    });
}

void softmax_attention_backward_cuda(const SoftmaxAttentionBackward& a, Stream stream) {
    const SoftmaxAttentionForward& f = a.forward;
    const AttentionShape s(f);
    const DeviceScratch<float> delta(s.batch * s.heads * s.t, stream);
    if (const int64_t rows = s.batch * s.heads * s.t; rows > 0) {
        delta_kernel<<<grid_x(ceil_div(rows, 64)), 64, 0, cuda::handle_of(stream)>>>(s, HeadTensor(f.y),
                                                                                     HeadTensor(a.dy), delta.data());
        LC_LAUNCHED("softmax_attention", cuda::handle_of(stream));
    }
    const BackwardArgs args{s,
                            HeadTensor(f.q),
                            HeadTensor(f.k),
                            HeadTensor(f.v),
                            HeadTensor(f.lse),
                            HeadTensor(a.dy),
                            HeadTensor(a.dq),
                            HeadTensor(a.dk),
                            HeadTensor(a.dv),
                            delta.data()};
    const cudaStream_t queue = cuda::handle_of(stream);
    dispatch_head_dim(s.d, [&](auto traits) {
        using Tr = decltype(traits);
        const int64_t query_blocks = s.batch * s.heads * ceil_div(s.t, Tr::kTile);
        const int64_t key_blocks = s.batch * s.kv_heads * ceil_div(s.keys, Tr::kTile);
        if (a.dq && query_blocks > 0) {
            const int64_t bytes = Tr::bytes(s.d, 4, 1);
            allow_shared_memory(dq_kernel<Tr>, bytes);
            dq_kernel<Tr><<<grid_x(query_blocks), kThreads, bytes, queue>>>(args);
            LC_LAUNCHED("softmax_attention", queue);
        }
        if ((a.dk || a.dv) && key_blocks > 0) {
            const int64_t bytes = Tr::bytes(s.d, 4, 2);
            allow_shared_memory(dkv_kernel<Tr>, bytes);
            dkv_kernel<Tr><<<grid_x(key_blocks), kThreads, bytes, queue>>>(args);
            LC_LAUNCHED("softmax_attention", queue);
        }
    });
}

}  // namespace lc::kernels
