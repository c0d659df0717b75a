// Softmax attention on tensor cores: bf16, D = 64 or 128, rows aligned to 16 bytes; sm_80 and newer.
//
// MATHS    softmax_attention.h. Forward: online softmax, saved: lse. Backward: p recomputed from lse.
// TILING   forward   block = (batch, head, 128 queries), 4 warps of 32 queries; key tiles of 64 from the diagonal to the left
//            shared  q [128,D]  k, v [64,D]: v arrives under q k^T, the next k under the softmax and p v
//            a warp  S 2 x 8 and y 2 x D/8 accumulators of 16 x 8; p becomes an operand in registers
//          dq        block = (batch, head, 128 queries), 8 warps of 16 queries; key tiles of 64, two in flight
//            shared  q, dy [128,D]  k, v 2 x [64,D];  q and dy live in registers as operands
//          dk, dv    block = (batch, KV head, 128 keys), 8 warps of 16 keys; query tiles of 64 of every head of the group
//            shared  k, v [128,D]  q, dy 2 x [64,D]  lse, delta 2 x [64]
//            S^T = k q^T and dP^T = v dy^T: p^T and ds^T become operands in registers
//          Tiles that nobody sees are skipped; only tiles on the diagonal or at the end of the keys are masked.
// COST     forward 4 D, backward 14 D FLOPs a visible (query, key) pair: scores twice, for outputs with one writer each.
// NUMERICS products of bf16 with f32 sums; softmax, lse, delta in f32; p and ds are rounded to bf16 as operands, the row sum
//          is not. exp2 of (score - maximum) scale log2 e: at most 1 in the forward; results below 2^-126 become 0.
// LADDER   1 this.
// SOURCE   FlashAttention-2, arXiv 2307.08691.
#include "kernels/common/cuda/mma.cuh"
#include "kernels/common/cuda/pack.cuh"
#include "kernels/common/cuda/reduce.cuh"
#include "kernels/softmax_attention/softmax_attention_device.cuh"

namespace lc::kernels {
namespace {

constexpr float kLog2E = 1.44269504088896340736f;
constexpr int kOwned = 128;  // queries or keys of a block
constexpr int kOther = 64;   // keys or queries of a step

// [B,H,T,D] in bf16 with rows that cp.async can copy.
struct AlignedHeads {
    __nv_bfloat16* data = nullptr;
    int64_t strides[3] = {};
    explicit AlignedHeads(const TensorView& view) : data(device_data<__nv_bfloat16>(view)) {
        for (int axis = 0; axis < 3; ++axis) strides[axis] = view.stride(axis);
    }
    __device__ __nv_bfloat16* head(int64_t b, int64_t h) const { return data + b * strides[0] + h * strides[1]; }
};

__device__ __forceinline__ float exp2_approx(float x) {
    float result;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
    return result;
}
// Over the four lanes that share a row of an accumulator.
__device__ __forceinline__ float quad_max(float x) {
    x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 1));
    return fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 2));
}
__device__ __forceinline__ float quad_sum(float x) {
    x += __shfl_xor_sync(0xffffffffu, x, 1);
    return x + __shfl_xor_sync(0xffffffffu, x, 2);
}
// How many of `count` keys from k0 on the query at position i sees.
__device__ __forceinline__ int seen_keys(const AttentionShape& s, int64_t i, int64_t k0, int count) {
    return static_cast<int>(max(min(s.visible(i) - k0, int64_t{count}), int64_t{0}));
}

// ------------------------------------------------------------------------------------------------------------- forward

struct ForwardArgs {
    AttentionShape shape;
    AlignedHeads q, k, v, y;
    HeadTensor lse;
};

template <int D>
struct ForwardTraits {
    static constexpr int kThreads = 128, kRowTiles = 2, kKeyTiles = kOther / 8, kDimTiles = D / 8;
    static constexpr int kBytes = SharedTile<D>::bytes(kOwned) + 2 * SharedTile<D>::bytes(kOther);
    static_assert(2 * (kBytes + 1024) <= 163 * 1024, "two blocks on an SM of sm_80");
};

// One warp's 32 rows of queries.
template <int D>
struct ForwardRows {
    using Tr = ForwardTraits<D>;
    Accumulator score[Tr::kRowTiles][Tr::kKeyTiles];
    Accumulator y[Tr::kRowTiles][Tr::kDimTiles];
    float high[Tr::kRowTiles][2], sum[Tr::kRowTiles][2];  // of rows g and g + 8; sum: this lane's share

    __device__ ForwardRows() {
#pragma unroll
        for (int i = 0; i < Tr::kRowTiles; ++i) {
            high[i][0] = high[i][1] = -INFINITY, sum[i][0] = sum[i][1] = 0;
#pragma unroll
            for (int n = 0; n < Tr::kDimTiles; ++n) y[i][n] = {};
        }
    }

    // score = q k^T
    __device__ __forceinline__ void multiply_keys(const SharedTile<D>& q, int row, const SharedTile<D>& k) {
#pragma unroll
        for (int i = 0; i < Tr::kRowTiles; ++i)
#pragma unroll
            for (int n = 0; n < Tr::kKeyTiles; ++n) score[i][n] = {};
#pragma unroll
        for (int c = 0; c < D; c += 16) {
            FragmentA a[Tr::kRowTiles];
#pragma unroll
            for (int i = 0; i < Tr::kRowTiles; ++i) a[i] = load_a(q, row + 16 * i, c);
#pragma unroll
            for (int n = 0; n < Tr::kKeyTiles; n += 2) {
                const FragmentB b = load_b(k, 8 * n, c);
#pragma unroll
                for (int i = 0; i < Tr::kRowTiles; ++i) mma(score[i][n], a[i], b, 0), mma(score[i][n + 1], a[i], b, 1);
            }
        }
    }

    // Row r of the warp sees the first seen(r) keys of the tile.
    template <class Seen>
    __device__ __forceinline__ void mask(Seen&& seen) {
        const int g = threadIdx.x % kWarp / 4, t = threadIdx.x % 4;
#pragma unroll
        for (int i = 0; i < Tr::kRowTiles; ++i)
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                const int limit = seen(16 * i + 8 * half + g);
#pragma unroll
                for (int n = 0; n < Tr::kKeyTiles; ++n)
#pragma unroll
                    for (int e = 0; e < 2; ++e)
                        if (8 * n + 2 * t + e >= limit) score[i][n].c[2 * half + e] = -INFINITY;
            }
    }

    // Scores become weights relative to the running maximum; y and sum are rescaled to it. factor = scale log2 e.
    __device__ __forceinline__ void online_softmax(float factor) {
#pragma unroll
        for (int i = 0; i < Tr::kRowTiles; ++i)
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                float top = high[i][half];
#pragma unroll
                for (int n = 0; n < Tr::kKeyTiles; ++n)
                    top = fmaxf(top, fmaxf(score[i][n].c[2 * half], score[i][n].c[2 * half + 1]));
                top = quad_max(top);
                // A row that has seen no key yet (its tiles come later): all weights are exp2(-inf) = 0.
                const float shift = top == -INFINITY ? 0.0f : top * factor;
                const float shrink = exp2_approx(fmaf(high[i][half], factor, -shift));
                high[i][half] = top;
                float part = 0;
#pragma unroll
                for (int n = 0; n < Tr::kKeyTiles; ++n)
#pragma unroll
                    for (int e = 0; e < 2; ++e) {
                        float& c = score[i][n].c[2 * half + e];
                        c = exp2_approx(fmaf(c, factor, -shift));
                        part += c;
                    }
                sum[i][half] = fmaf(sum[i][half], shrink, part);
#pragma unroll
                for (int n = 0; n < Tr::kDimTiles; ++n)
                    y[i][n].c[2 * half] *= shrink, y[i][n].c[2 * half + 1] *= shrink;
            }
    }

    // y += weights v
    __device__ __forceinline__ void multiply_values(const SharedTile<D>& v) {
#pragma unroll
        for (int j = 0; j < Tr::kKeyTiles; j += 2) {
            FragmentA a[Tr::kRowTiles];
#pragma unroll
            for (int i = 0; i < Tr::kRowTiles; ++i) a[i] = as_a(score[i][j], score[i][j + 1]);
#pragma unroll
            for (int n = 0; n < Tr::kDimTiles; n += 2) {
                const FragmentB b = load_b_transposed(v, 8 * n, 8 * j);
#pragma unroll
                for (int i = 0; i < Tr::kRowTiles; ++i) mma(y[i][n], a[i], b, 0), mma(y[i][n + 1], a[i], b, 1);
            }
        }
    }
};

template <int D>
__global__ void __launch_bounds__(ForwardTraits<D>::kThreads, 2)
    forward_kernel(const __grid_constant__ ForwardArgs args) {
    using Tr = ForwardTraits<D>;
    extern __shared__ __align__(128) unsigned char shared[];
    const SharedTile<D> q{reinterpret_cast<__nv_bfloat16*>(shared)};     // [128,D]
    const SharedTile<D> k{q.data + kOwned * D}, v{k.data + kOther * D};  // [64,D] each
    const AttentionShape& s = args.shape;
    const int64_t tiles = ceil_div(s.t, kOwned), head = blockIdx.x % (s.batch * s.heads);
    const int64_t q0 = (tiles - 1 - blockIdx.x / (s.batch * s.heads)) * kOwned;  // the longest first
    const int64_t b = head / s.heads, h = head % s.heads, hk = h / s.group;
    const __nv_bfloat16 *keys = args.k.head(b, hk), *values = args.v.head(b, hk);
    const int lane = threadIdx.x % kWarp, warp_row = threadIdx.x / kWarp * 32;
    const float factor = s.scale * kLog2E;

    const int64_t limit = s.visible(min(q0 + kOwned, s.t) - 1);
    int64_t k0 = (ceil_div(limit, kOther) - 1) * kOther;
    copy_tile_async<kOwned, Tr::kThreads>(q, args.q.head(b, h), args.q.strides[2], q0, s.t);
    copy_tile_async<kOther, Tr::kThreads>(k, keys, args.k.strides[2], k0, s.keys);
    copy_async_commit();

    ForwardRows<D> rows;
    for (; k0 >= 0; k0 -= kOther) {
        copy_async_wait<0>();
        __syncthreads();  // k is here; every warp is done with v
        copy_tile_async<kOther, Tr::kThreads>(v, values, args.v.strides[2], k0, s.keys);
        copy_async_commit();
        rows.multiply_keys(q, warp_row, k);
        copy_async_wait<0>();
        __syncthreads();  // v is here; every warp is done with k
        if (k0 > 0) copy_tile_async<kOther, Tr::kThreads>(k, keys, args.k.strides[2], k0 - kOther, s.keys);
        copy_async_commit();
        if (s.visible(q0) < k0 + kOther) rows.mask([&](int r) { return seen_keys(s, q0 + warp_row + r, k0, kOther); });
        rows.online_softmax(factor);
        rows.multiply_values(v);
    }

    // y leaves through the warp's own rows of q, so that it can be stored in 16-byte pieces.
    const int g = lane / 4, t = lane % 4;
#pragma unroll
    for (int i = 0; i < Tr::kRowTiles; ++i)
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const int row = warp_row + 16 * i + 8 * half + g;
            const float sum = quad_sum(rows.sum[i][half]), inverse = 1 / sum;
#pragma unroll
            for (int n = 0; n < Tr::kDimTiles; ++n)
                *reinterpret_cast<uint32_t*>(q.at(row, 8 * n + 2 * t)) =
                    pack_bf16(rows.y[i][n].c[2 * half] * inverse, rows.y[i][n].c[2 * half + 1] * inverse);
            if (args.lse && t == 0 && q0 + row < s.t)
                args.lse.put(args.lse.row(b, h, q0 + row), 0, rows.high[i][half] * s.scale + logf(sum));
        }
    __syncwarp();
    __nv_bfloat16* y = args.y.head(b, h);
    constexpr int kChunks = SharedTile<D>::kChunks;
#pragma unroll
    for (int i = 0; i < kChunks; ++i) {
        const int chunk = i * kWarp + lane, row = warp_row + chunk / kChunks, column = chunk % kChunks * 8;
        if (q0 + row < s.t)
            *reinterpret_cast<uint4*>(y + (q0 + row) * args.y.strides[2] + column) =
                *reinterpret_cast<const uint4*>(q.chunk(row, column));
    }
}

// ------------------------------------------------------------------------------------------------------------ backward

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
    fetch(0, 0);

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
    for (int64_t k0 = 0; k0 < limit; k0 += kOther, stage ^= 1) {
        if (k0 + kOther < limit)
            fetch(k0 + kOther, stage ^ 1);
        else
            copy_async_commit();  // an empty group: the wait below is for all but the newest
        copy_async_wait<1>();
        __syncthreads();
        const bool masked = s.visible(q0) < k0 + kOther;
#pragma unroll
        for (int n = 0; n < kOther; n += kStep) {
            Accumulator p[kStep / 8], ds[kStep / 8];
            multiply_rows<D>(
                p, [&](int c) { return q_rows[c / 16]; }, k_of(stage), n);
            multiply_rows<D>(
                ds, [&](int c) { return dy_rows[c / 16]; }, v_of(stage), n);
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                const int seen = masked ? seen_keys(s, q0 + warp_row + 8 * half + g, k0, kOther) : kOther;
#pragma unroll
                for (int j = 0; j < kStep / 8; ++j)
#pragma unroll
                    for (int e = 0; e < 2; ++e) {
                        const float weight = exp2_approx(fmaf(p[j].c[2 * half + e], factor, -shift[half]));
                        float& d = ds[j].c[2 * half + e];
                        d = n + 8 * j + 2 * t + e < seen ? weight * (d - delta[half]) : 0.0f;
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
    const int64_t first = s.first_seeing(k0) / kOther, tiles = ceil_div(s.t, kOther) - first, steps = s.group * tiles;
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
        const bool masked = s.visible(q0) < k0 + kOwned;
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
                    const int seen = masked ? seen_keys(s, q0 + column, k0, kOwned) : kOwned;
#pragma unroll
                    for (int half = 0; half < 2; ++half) {
                        float &weight = p[j].c[2 * half + e], &d = ds[j].c[2 * half + e];
                        weight =
                            warp_row + 8 * half + g < seen ? exp2_approx(fmaf(weight, factor, -shift[column])) : 0.0f;
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

template <class F>
void dispatch_head_dim(int d, F&& f) {
    if (d == 64) return f(std::integral_constant<int, 64>{});
    f(std::integral_constant<int, 128>{});
}

}  // namespace

void softmax_attention_forward_mma(const SoftmaxAttentionForward& a, Stream stream) {
    const ForwardArgs args{AttentionShape(a), AlignedHeads(a.q), AlignedHeads(a.k),
                           AlignedHeads(a.v), AlignedHeads(a.y), HeadTensor(a.lse)};
    const AttentionShape& s = args.shape;
    const int64_t blocks = s.batch * s.heads * ceil_div(s.t, kOwned);
    if (blocks == 0) return;
    dispatch_head_dim(s.d, [&](auto d) {
        using Tr = ForwardTraits<d()>;
        allow_shared_memory(forward_kernel<d()>, Tr::kBytes);
        forward_kernel<d()><<<grid_x(blocks), Tr::kThreads, Tr::kBytes, cuda::handle_of(stream)>>>(args);
        LC_LAUNCHED("softmax_attention", cuda::handle_of(stream));
    });
}

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
