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
//          Tiles that nobody sees are skipped; only tiles on the diagonal, at the far edge of a window or at the end of the keys
//          are masked.
// COST     forward 4 D, backward 14 D FLOPs a visible (query, key) pair: scores twice, for outputs with one writer each.
// NUMERICS products of bf16 with f32 sums; softmax, lse, delta in f32; p and ds are rounded to bf16 as operands, the row sum
//          is not. exp2 of (score - maximum) scale log2 e: at most 1 in the forward; results below 2^-126 become 0.
// LADDER   1 this.
// SOURCE   FlashAttention-2, arXiv 2307.08691.
#include "kernels/softmax_attention/softmax_attention_mma.cuh"

namespace lc::kernels {
namespace {

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

    // Row r of the warp sees the keys [hidden(r), seen(r)) of the tile.
    template <class Hidden, class Seen>
    __device__ __forceinline__ void mask(Hidden&& hidden, Seen&& seen) {
        const int g = threadIdx.x % kWarp / 4, t = threadIdx.x % 4;
#pragma unroll
        for (int i = 0; i < Tr::kRowTiles; ++i)
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                const int row = 16 * i + 8 * half + g, begin = hidden(row), end = seen(row);
#pragma unroll
                for (int n = 0; n < Tr::kKeyTiles; ++n)
#pragma unroll
                    for (int e = 0; e < 2; ++e)
                        if (const int key = 8 * n + 2 * t + e; key < begin || key >= end)
                            score[i][n].c[2 * half + e] = -INFINITY;
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
    const int64_t first = s.first_visible(q0) / kOther * kOther;
    int64_t k0 = (ceil_div(limit, kOther) - 1) * kOther;
    copy_tile_async<kOwned, Tr::kThreads>(q, args.q.head(b, h), args.q.strides[2], q0, s.t);
    copy_tile_async<kOther, Tr::kThreads>(k, keys, args.k.strides[2], k0, s.keys);
    copy_async_commit();

    ForwardRows<D> rows;
    for (; k0 >= first; k0 -= kOther) {
        copy_async_wait<0>();
        __syncthreads();  // k is here; every warp is done with v
        copy_tile_async<kOther, Tr::kThreads>(v, values, args.v.strides[2], k0, s.keys);
        copy_async_commit();
        rows.multiply_keys(q, warp_row, k);
        copy_async_wait<0>();
        __syncthreads();  // v is here; every warp is done with k
        if (k0 > first) copy_tile_async<kOther, Tr::kThreads>(k, keys, args.k.strides[2], k0 - kOther, s.keys);
        copy_async_commit();
        if (is_masked(s, q0, kOwned, k0, kOther))
            rows.mask([&](int r) { return hidden_keys(s, q0 + warp_row + r, k0, kOther); },
                      [&](int r) { return seen_keys(s, q0 + warp_row + r, k0, kOther); });
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

}  // namespace lc::kernels
