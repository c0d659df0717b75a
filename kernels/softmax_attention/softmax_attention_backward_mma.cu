// Softmax attention backward on tensor cores. TILING of all three kernels is drawn in softmax_attention_mma.cu, the forward.
//
// MATHS    softmax_attention.h: p recomputed from lse.
// TILING   delta: D/8 lanes a row. dq: block = 128 queries, key tiles of 64. dk, dv: block = 128 keys, query tiles of 64.
// COST     14 D FLOPs a visible (query, key) pair.
// NUMERICS as the forward; p and ds are rounded to bf16 as operands.
// LADDER   1 this.
// SOURCE   FlashAttention-2, arXiv 2307.08691.
#include "kernels/softmax_attention/softmax_attention_mma.cuh"

namespace lc::kernels {
namespace {

constexpr int kBackwardThreads = 256;
constexpr int kStep = 32;  // of the kOther columns of scores, held in registers at a time

struct BackwardArgs {
    AttentionShape shape;
    AlignedHeads q, k, v, y, dy;
    HeadTensor lse, dq, dk, dv;
    float* delta;  // [B,H,T]
};

template <int D>
constexpr int kBackwardBytes = 2 * SharedTile<D>::bytes(kOwned) + 4 * SharedTile<D>::bytes(kOther) +
                               4 * kOther* static_cast<int>(sizeof(float));
static_assert(kBackwardBytes<128> <= 163 * 1024, "shared memory of one block on sm_80");

// D/8 lanes a row.
template <int D>
__global__ void delta_kernel(const __grid_constant__ BackwardArgs args) {
    constexpr int kLanes = D / 8;
    const AttentionShape& s = args.shape;
    const int64_t i = static_cast<int64_t>(blockIdx.x) * (blockDim.x / kLanes) + threadIdx.x / kLanes;
    const bool inside = i < s.batch * s.heads * s.t;
    float sum = 0;
    if (inside) {
        const int64_t b = i / s.t / s.heads, h = i / s.t % s.heads, t = i % s.t, c = threadIdx.x % kLanes * 8;
        const auto y = load_pack(args.y.head(b, h) + t * args.y.strides[2] + c);
        const auto dy = load_pack(args.dy.head(b, h) + t * args.dy.strides[2] + c);
#pragma unroll
        for (int e = 0; e < 8; ++e) sum = fmaf(dy.get(e), y.get(e), sum);
    }
    sum = warp_sum<kLanes>(sum);
    if (inside && threadIdx.x % kLanes == 0) args.delta[i] = sum;
}

// c [16,32] = A [16,D] tile[n .. n+31, D]^T;  a(column) gives A's operand at that column.
template <int D, class LoadA>
__device__ __forceinline__ void multiply_rows(Accumulator (&c)[kStep / 8], LoadA&& a, const SharedTile<D>& tile,
                                              int n) {
#pragma unroll
    for (Accumulator& part : c) part = {};
#pragma unroll
    for (int column = 0; column < D; column += 16) {
        const FragmentA left = a(column);
#pragma unroll
        for (int j = 0; j < kStep / 8; j += 2) {
            const FragmentB right = load_b(tile, n + 8 * j, column);
            mma(c[j], left, right, 0), mma(c[j + 1], left, right, 1);
        }
    }
}

// sum [16,D] += A [16,32] tile[k .. k+31, D];  A as two-by-two accumulators
template <int D>
__device__ __forceinline__ void accumulate_rows(Accumulator (&sum)[D / 8], const Accumulator (&a)[kStep / 8],
                                                const SharedTile<D>& tile, int k) {
#pragma unroll
    for (int j = 0; j < kStep / 8; j += 2) {
        const FragmentA left = as_a(a[j], a[j + 1]);
#pragma unroll
        for (int n = 0; n < D / 8; n += 2) {
            const FragmentB right = load_b_transposed(tile, 8 * n, k + 8 * j);
            mma(sum[n], left, right, 0), mma(sum[n + 1], left, right, 1);
        }
    }
}

// to(b, h, first + r, :) = factor * sum, r in the warp's 16 rows
template <int D>
__device__ __forceinline__ void store_rows(const HeadTensor& to, int64_t b, int64_t h, int64_t first, int64_t rows,
                                           float factor, const Accumulator (&sum)[D / 8]) {
    const int g = threadIdx.x % kWarp / 4, t = threadIdx.x % 4;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        if (first + 8 * half + g >= rows) continue;
        const int64_t row = to.row(b, h, first + 8 * half + g);
#pragma unroll
        for (int n = 0; n < D / 8; ++n)
            to.put_pair(row, 8 * n + 2 * t, factor * sum[n].c[2 * half], factor * sum[n].c[2 * half + 1]);
    }
}

template <int D>
__global__ void __launch_bounds__(kBackwardThreads) dq_kernel(const __grid_constant__ BackwardArgs args) {
    extern __shared__ __align__(128) unsigned char shared[];
    const SharedTile<D> q{reinterpret_cast<__nv_bfloat16*>(shared)}, dy{q.data + kOwned * D};  // [128,D] each
    __nv_bfloat16* stages = dy.data + kOwned * D;                                              // 2 x (k, v [64,D])
    const AttentionShape& s = args.shape;
    const int64_t tiles = ceil_div(s.t, kOwned), head = blockIdx.x % (s.batch * s.heads);
    const int64_t q0 = (tiles - 1 - blockIdx.x / (s.batch * s.heads)) * kOwned;
    const int64_t b = head / s.heads, h = head % s.heads, hk = h / s.group;
    const int lane = threadIdx.x % kWarp, g = lane / 4, t = lane % 4, warp_row = threadIdx.x / kWarp * 16;
    const float factor = s.scale * kLog2E;
    const auto k_of = [&](int stage) { return SharedTile<D>{stages + stage * 2 * kOther * D}; };
    const auto v_of = [&](int stage) { return SharedTile<D>{stages + (stage * 2 + 1) * kOther * D}; };
    const auto fetch = [&](int64_t k0, int stage) {
        copy_tile_async<kOther, kBackwardThreads>(k_of(stage), args.k.head(b, hk), args.k.strides[2], k0, s.keys);
        copy_tile_async<kOther, kBackwardThreads>(v_of(stage), args.v.head(b, hk), args.v.strides[2], k0, s.keys);
        copy_async_commit();
    };
    copy_tile_async<kOwned, kBackwardThreads>(q, args.q.head(b, h), args.q.strides[2], q0, s.t);
    copy_tile_async<kOwned, kBackwardThreads>(dy, args.dy.head(b, h), args.dy.strides[2], q0, s.t);
    copy_async_commit();
    const int64_t begin = s.first_visible(q0) / kOther * kOther;
    fetch(begin, 0);

    float shift[2], delta[2];  // of rows g and g + 8; beyond the end p = exp2(-inf) = 0
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const int64_t i = q0 + warp_row + 8 * half + g;
        shift[half] = i < s.t ? args.lse.load(args.lse.row(b, h, i)) * kLog2E : INFINITY;
        delta[half] = i < s.t ? args.delta[(b * s.heads + h) * s.t + i] : 0.0f;
    }
    copy_async_wait<1>();
    __syncthreads();
    FragmentA q_rows[D / 16], dy_rows[D / 16];
#pragma unroll
    for (int c = 0; c < D / 16; ++c) q_rows[c] = load_a(q, warp_row, 16 * c), dy_rows[c] = load_a(dy, warp_row, 16 * c);

    Accumulator dq[D / 8] = {};
    const int64_t limit = s.visible(min(q0 + kOwned, s.t) - 1);
    int stage = 0;
    for (int64_t k0 = begin; k0 < limit; k0 += kOther, stage ^= 1) {
        if (k0 + kOther < limit)
            fetch(k0 + kOther, stage ^ 1);
        else
            copy_async_commit();  // an empty group: the wait below is for all but the newest
        copy_async_wait<1>();
        __syncthreads();
        const bool masked = is_masked(s, q0, kOwned, k0, kOther);
#pragma unroll
        for (int n = 0; n < kOther; n += kStep) {
            Accumulator p[kStep / 8], ds[kStep / 8];
            multiply_rows<D>(
                p, [&](int c) { return q_rows[c / 16]; }, k_of(stage), n);
            multiply_rows<D>(
                ds, [&](int c) { return dy_rows[c / 16]; }, v_of(stage), n);
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                const int64_t i = q0 + warp_row + 8 * half + g;
                const int hidden = masked ? hidden_keys(s, i, k0, kOther) : 0;
                const int seen = masked ? seen_keys(s, i, k0, kOther) : kOther;
#pragma unroll
                for (int j = 0; j < kStep / 8; ++j)
#pragma unroll
                    for (int e = 0; e < 2; ++e) {
                        const float weight = exp2_approx(fmaf(p[j].c[2 * half + e], factor, -shift[half]));
                        float& d = ds[j].c[2 * half + e];
                        const int key = n + 8 * j + 2 * t + e;
                        d = key >= hidden && key < seen ? weight * (d - delta[half]) : 0.0f;
                    }
            }
            accumulate_rows<D>(dq, ds, k_of(stage), n);
        }
        __syncthreads();  // every warp is done with this stage
    }
    store_rows<D>(args.dq, b, h, q0 + warp_row, s.t, s.scale, dq);
}

template <int D>
__global__ void __launch_bounds__(kBackwardThreads) dkv_kernel(const __grid_constant__ BackwardArgs args) {
    extern __shared__ __align__(128) unsigned char shared[];
    const SharedTile<D> k{reinterpret_cast<__nv_bfloat16*>(shared)}, v{k.data + kOwned * D};  // [128,D] each
    __nv_bfloat16* stages = v.data + kOwned * D;                                              // 2 x (q, dy [64,D])
    float* rows = reinterpret_cast<float*>(stages + 4 * kOther * D);                          // 2 x (shift, delta [64])
    const AttentionShape& s = args.shape;
    const int64_t head = blockIdx.x % (s.batch * s.kv_heads), k0 = blockIdx.x / (s.batch * s.kv_heads) * kOwned;
    const int64_t b = head / s.kv_heads, hk = head % s.kv_heads;
    const int lane = threadIdx.x % kWarp, g = lane / 4, t = lane % 4, warp_row = threadIdx.x / kWarp * 16;
    const float factor = s.scale * kLog2E;
    const auto q_of = [&](int stage) { return SharedTile<D>{stages + stage * 2 * kOther * D}; };
    const auto dy_of = [&](int stage) { return SharedTile<D>{stages + (stage * 2 + 1) * kOther * D}; };

    // Steps: query tiles that see key k0, for each head of the group.
    const int64_t first = s.first_seeing(k0) / kOther, end = s.end_of_view(min(k0 + kOwned, s.keys) - 1);
    const int64_t tiles = max(ceil_div(end, kOther) - first, int64_t{0}), steps = s.group * tiles;
    const auto fetch = [&](int64_t step, int stage) {
        const int64_t h = hk * s.group + step / tiles, q0 = (first + step % tiles) * kOther;
        copy_tile_async<kOther, kBackwardThreads>(q_of(stage), args.q.head(b, h), args.q.strides[2], q0, s.t);
        copy_tile_async<kOther, kBackwardThreads>(dy_of(stage), args.dy.head(b, h), args.dy.strides[2], q0, s.t);
        copy_async_commit();
        if (threadIdx.x < kOther) {  // beyond the end p = exp2(-inf) = 0
            const int64_t i = q0 + threadIdx.x;
            float* to = rows + stage * 2 * kOther + threadIdx.x;
            to[0] = i < s.t ? args.lse.load(args.lse.row(b, h, i)) * kLog2E : INFINITY;
            to[kOther] = i < s.t ? args.delta[(b * s.heads + h) * s.t + i] : 0.0f;
        }
    };
    copy_tile_async<kOwned, kBackwardThreads>(k, args.k.head(b, hk), args.k.strides[2], k0, s.keys);
    copy_tile_async<kOwned, kBackwardThreads>(v, args.v.head(b, hk), args.v.strides[2], k0, s.keys);
    if (steps > 0) fetch(0, 0);

    Accumulator dk[D / 8] = {}, dv[D / 8] = {};
    int stage = 0;
    for (int64_t step = 0; step < steps; ++step, stage ^= 1) {
        if (step + 1 < steps)
            fetch(step + 1, stage ^ 1);
        else
            copy_async_commit();  // an empty group: the wait below is for all but the newest
        copy_async_wait<1>();
        __syncthreads();
        const int64_t q0 = (first + step % tiles) * kOther;
        const bool masked = is_masked(s, q0, kOther, k0, kOwned);
        const float *shift = rows + stage * 2 * kOther, *delta = shift + kOther;
#pragma unroll 1  // registers: dk and dv take half of them
        for (int n = 0; n < kOther; n += kStep) {
            Accumulator p[kStep / 8], ds[kStep / 8];  // transposed: a row a key
            multiply_rows<D>(
                p, [&](int c) { return load_a(k, warp_row, c); }, q_of(stage), n);
            multiply_rows<D>(
                ds, [&](int c) { return load_a(v, warp_row, c); }, dy_of(stage), n);
#pragma unroll
            for (int j = 0; j < kStep / 8; ++j)
#pragma unroll
                for (int e = 0; e < 2; ++e) {
                    const int column = n + 8 * j + 2 * t + e;
                    const int hidden = masked ? hidden_keys(s, q0 + column, k0, kOwned) : 0;
                    const int seen = masked ? seen_keys(s, q0 + column, k0, kOwned) : kOwned;
#pragma unroll
                    for (int half = 0; half < 2; ++half) {
                        float &weight = p[j].c[2 * half + e], &d = ds[j].c[2 * half + e];
                        const int key = warp_row + 8 * half + g;
                        weight = key >= hidden && key < seen ? exp2_approx(fmaf(weight, factor, -shift[column])) : 0.0f;
                        d = weight * (d - delta[column]);
                    }
                }
            accumulate_rows<D>(dv, p, dy_of(stage), n);
            accumulate_rows<D>(dk, ds, q_of(stage), n);
        }
        __syncthreads();  // every warp is done with this stage
    }
    if (args.dk) store_rows<D>(args.dk, b, hk, k0 + warp_row, s.keys, s.scale, dk);
    if (args.dv) store_rows<D>(args.dv, b, hk, k0 + warp_row, s.keys, 1.0f, dv);
}

}  // namespace

void softmax_attention_backward_mma(const SoftmaxAttentionBackward& a, Stream stream) {
    const SoftmaxAttentionForward& f = a.forward;
    const AttentionShape s(f);
    const int64_t rows = s.batch * s.heads * s.t;
    const DeviceScratch<float> delta(rows, stream);
    const BackwardArgs args{s,
                            AlignedHeads(f.q),
                            AlignedHeads(f.k),
                            AlignedHeads(f.v),
                            AlignedHeads(f.y),
                            AlignedHeads(a.dy),
                            HeadTensor(f.lse),
                            HeadTensor(a.dq),
                            HeadTensor(a.dk),
                            HeadTensor(a.dv),
                            delta.data()};
    const cudaStream_t queue = cuda::handle_of(stream);
    const int64_t query_blocks = s.batch * s.heads * ceil_div(s.t, kOwned);
    const int64_t key_blocks = s.batch * s.kv_heads * ceil_div(s.keys, kOwned);
    dispatch_head_dim(s.d, [&](auto d) {
        constexpr int kBytes = kBackwardBytes<d()>, kThreads = kBackwardThreads;
        if (rows > 0) {
            delta_kernel<d()><<<grid_x(ceil_div(rows, kThreads / (d() / 8))), kThreads, 0, queue>>>(args);
            LC_LAUNCHED("softmax_attention", queue);
        }
        if (a.dq && query_blocks > 0) {
            allow_shared_memory(dq_kernel<d()>, kBytes);
            dq_kernel<d()><<<grid_x(query_blocks), kThreads, kBytes, queue>>>(args);
            LC_LAUNCHED("softmax_attention", queue);
        }
        if ((a.dk || a.dv) && key_blocks > 0) {
            allow_shared_memory(dkv_kernel<d()>, kBytes);
            dkv_kernel<d()><<<grid_x(key_blocks), kThreads, kBytes, queue>>>(args);
            LC_LAUNCHED("softmax_attention", queue);
        }
    });
}

}  // namespace lc::kernels
