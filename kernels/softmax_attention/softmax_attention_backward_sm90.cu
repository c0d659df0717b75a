// Softmax attention backward on Hopper (sm_90a): wgmma, TMA, warps with roles; the cases of softmax_attention_sm90.cu.
//
// MATHS    softmax_attention.h: p recomputed from lse.
// TILING   rows    D/8 lanes a query: lse log2 e and delta, [64] each, side by side for 64 queries; beyond the end
//                  lse = inf, so that p = exp2(-inf) = 0
//          dq      blocks stay and take tiles of 128 queries in turn, the longest first; key tiles of 64
//            warpgroup 0, 1   64 queries each: S, dP [64,64] and dq [64,D] in registers; with D = 128 q and dy too
//            shared           q, dy [128,D]  4 x (k, v [64,D])
//          dk, dv  block = (batch, KV head, 128 keys); query tiles of 64 of every head of the group
//            warpgroup 0, 1   64 keys each: S^T = k q^T, dP^T = v dy^T [64,64] and dk, dv [64,D] in registers
//            shared           k, v [128,D]  4 x (q, dy [64,D]  lse, delta [64])
//          Both: p and ds become operands in registers, only copies are written to shared memory, and the products of
//          one step run while the next is begun. Walks begin and end with the first and last tile that the window lets see; a
//          warpgroup skips tiles that none of its queries or keys sees.
// COST     14 D FLOPs a visible (query, key) pair: scores twice, for outputs with one writer each. Long sequences with D = 128
//          and without a window are walked once: softmax_attention_backward_walk_sm90.cu.
// NUMERICS as softmax_attention_mma.cu.
// LADDER   1 softmax_attention_backward_mma.cu: mma.sync, every warp copies and multiplies.
//          2 this: wgmma, TMA, producer and consumers: 2.5 times as fast as 1.
//          The fence behind the reads of q and dy: without it 1 to 8 % of calls at 8x1024 had rows of dq from the next tile's q (H200,
//          f32 gradients; 1,015 of 19,263 calls, with it 0 of 14,505). The sanitizers do not see it.
//          Windows, H100, 1x16384, 32/8 heads of 128: 4,096 keys 4.7 ms (1: 13.7), 1,024 keys 1.6 ms (4.6). One walk: predicted 4.2,
//          measured 4.7 and 8.1 ms: blocks stand at queries far apart, whose sums of dq leave L2 between two additions.
// SOURCE   FlashAttention-2 and -3, arXiv 2307.08691, 2407.08608.
#include "kernels/softmax_attention/softmax_attention_backward_sm90.cuh"

namespace lc::kernels {
namespace {

constexpr int kStages = 4;

template <int D>
constexpr int kBackwardBytes =
    kTileAlignment + 2 * WgmmaTile<kOwned, D>::kBytes + 2 * kStages* WgmmaTile<kOther, D>::kBytes;
static_assert(kBackwardBytes<128> + kStages * kRowFloats * 4 + 1024 <= kSharedLimit, "tiles, rows and barriers");

// D/8 lanes a query.
template <int D>
__global__ void rows_kernel(const __grid_constant__ AttentionBackwardArgs args) {
    constexpr int kLanes = D / 8;
    const AttentionShape& s = args.shape;
    const int64_t padded = static_cast<int64_t>(args.row_tiles) * kOther;
    const int64_t i = static_cast<int64_t>(blockIdx.x) * (blockDim.x / kLanes) + threadIdx.x / kLanes;
    const int64_t head = i / padded, b = head / s.heads, h = head % s.heads, t = i % padded;
    const bool inside = b < s.batch && t < s.t;
    float sum = 0;
    if (inside) {
        const int c = static_cast<int>(threadIdx.x) % kLanes * 8;
        const auto y = load_pack(args.y_rows.head(b, h) + t * args.y_rows.strides[2] + c);
        const auto dy = load_pack(args.dy_rows.head(b, h) + t * args.dy_rows.strides[2] + c);
#pragma unroll
        for (int e = 0; e < 8; ++e) sum = fmaf(dy.get(e), y.get(e), sum);
    }
    sum = warp_sum<kLanes>(sum);
    if (b >= s.batch || threadIdx.x % kLanes != 0) return;
    float* to = args.rows + i / kOther * kRowFloats + i % kOther;
    to[0] = inside ? args.lse.load(args.lse.row(b, h, t)) * kLog2E : INFINITY;
    to[kOther] = sum;
}

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

struct BackwardBarriers {
    QueryTile tile;  // dq: with q and dy
    Barrier owned_full, owned_free, full[kStages], free[kStages];

    __device__ void init(int owned_arrivals, int stage_arrivals) {
        owned_full.init(1), owned_free.init(owned_arrivals);
        for (int i = 0; i < kStages; ++i) full[i].init(1), free[i].init(stage_arrivals);
        fence_barriers();
    }
};

template <int D>
struct BackwardShared {
    using Owned = WgmmaTile<kOwned, D>;
    using Other = WgmmaTile<kOther, D>;
    __nv_bfloat16* base;
    // Two tensors each: q and dy, k and v.
    __device__ __forceinline__ Owned owned(int which) const { return {base + which * kOwned * D}; }
    __device__ __forceinline__ Other other(int stage, int which) const {
        return {base + 2 * kOwned * D + (2 * stage + which) * kOther * D};
    }
};

// --- dq ---

// q and dy stay for all steps and lie in registers, which spares shared memory half of its reads. Not with D = 64:
// ptxas 13.0 then puts ds, which has as many fragments, into their registers.
template <int D>
constexpr bool kRowsInRegisters = D == 128;

__device__ __forceinline__ int first_keys(const QueryTile& tile) {
    return tile.begin / kOther * kOther;
}

template <int D>
__device__ __forceinline__ void produce_dq(const AttentionBackwardArgs& args, const BackwardShared<D>& shared,
                                           BackwardBarriers& barriers) {
    Turn<kStages> ring;
    int phase = 0;
    QueryTiles tiles(args.shape);
    for (;; phase ^= 1) {
        QueryTile tile;
        const bool more = tiles.next(tile);
        barriers.owned_free.wait(phase ^ 1);
        barriers.tile = tile;
        if (!more) return barriers.owned_full.arrive();
        barriers.owned_full.expect(2 * shared.owned(0).kBytes);
        copy_tile(shared.owned(0), args.q, tile.q0, tile.h, tile.b, barriers.owned_full);
        copy_tile(shared.owned(1), args.dy, tile.q0, tile.h, tile.b, barriers.owned_full);
        for (int k0 = first_keys(tile); k0 < tile.limit; k0 += kOther, ring.next()) {
            barriers.free[ring.stage].wait(ring.phase ^ 1);
            barriers.full[ring.stage].expect(2 * shared.other(0, 0).kBytes);
            copy_tile(shared.other(ring.stage, 0), args.k, k0, tile.kv, tile.b, barriers.full[ring.stage]);
            copy_tile(shared.other(ring.stage, 1), args.v, k0, tile.kv, tile.b, barriers.full[ring.stage]);
        }
    }
}

template <int D>
__device__ __forceinline__ void consume_dq(const AttentionBackwardArgs& args, const BackwardShared<D>& shared,
                                           BackwardBarriers& barriers, int warpgroup) {
    const float factor = args.shape.scale * kLog2E;
    const int cached = static_cast<int>(args.shape.cached), window = static_cast<int>(args.shape.window);
    const int row = accumulator_row(), column = threadIdx.x % 4 * 2;
    Turn<kStages> ring;
    for (int phase = 0;; phase ^= 1) {
        barriers.owned_full.wait(phase);
        const QueryTile tile = barriers.tile;
        if (tile.limit == 0) return;
        const int q0 = tile.q0 + 64 * warpgroup;
        const float* rows = rows_of(args, tile.b, tile.h, q0) + row;
        const float shift[2] = {rows[0], rows[8]}, delta[2] = {rows[kOther], rows[kOther + 8]};
        FragmentA rows_operand[2][D / 16], ds_operand[kOther / 16];  // q and dy
        float dq[D / 2] = {}, s[kOther / 2], ds[kOther / 2];
        if constexpr (kRowsInRegisters<D>) {
#pragma unroll
            for (int i = 0; i < 2 * (D / 16); ++i)
                rows_operand[i % 2][i / 2] = load_wgmma_a(shared.owned(i % 2), 64 * warpgroup, i / 2 * 16);
            fence_async_proxy();  // the copy engine writes there next, and does not wait for reads by ldmatrix
            barriers.owned_free.arrive();
        }
        const auto multiply = [&](float(&product)[kOther / 2], int which, const WgmmaTile<kOther, D>& keys) {
            if constexpr (kRowsInRegisters<D>)
                multiply_rows<kOther>(product, rows_operand[which], keys);
            else
                multiply_rows<kOther>(product, shared.owned(which), 64 * warpgroup, keys);
        };

        int unreleased = -1;  // the stage that products under way may read
        for (int k0 = first_keys(tile); k0 < tile.limit; k0 += kOther, ring.next()) {
            barriers.full[ring.stage].wait(ring.phase);
            const int ahead = q0 + cached - k0;  // key n is row r's own if n = r + ahead
            if (ahead + 63 < 0 || ahead - window >= kOther - 1) {
                release(barriers.free[ring.stage]);
                continue;
            }
            wgmma_fence();
            multiply(s, 0, shared.other(ring.stage, 0));
            wgmma_commit();
            multiply(ds, 1, shared.other(ring.stage, 1));
            wgmma_commit();
            wgmma_wait<1>();
            wgmma_settle(s);
            if (unreleased >= 0) release(barriers.free[unreleased]);
            unreleased = ring.stage;
#pragma unroll
            for (int i = 0; i < kOther / 2; ++i) s[i] = exp2_approx(fmaf(s[i], factor, -shift[i / 2 % 2]));
            if (kOther - 1 > ahead) {
                const int last = row + ahead - column;  // the first row sees key n if n <= last + column
#pragma unroll
                for (int i = 0; i < kOther / 2; ++i)
                    if (i / 4 * 8 + i % 2 > last + i / 2 % 2 * 8) s[i] = 0;
            }
            if (63 + ahead >= window) {
                const int hidden = row + ahead - window - column;  // its window hides key n if n <= hidden + column
#pragma unroll
                for (int i = 0; i < kOther / 2; ++i)
                    if (i / 4 * 8 + i % 2 <= hidden + i / 2 % 2 * 8) s[i] = 0;
            }
            wgmma_settle(s);  // not later: p is made while the product dP runs
            wgmma_wait<0>();
            wgmma_settle(ds);
#pragma unroll
            for (int i = 0; i < kOther / 2; ++i) ds[i] = s[i] * (ds[i] - delta[i / 2 % 2]);
#pragma unroll
            for (int i = 0; i < kOther / 16; ++i) ds_operand[i] = wgmma_operand(ds, i);
            wgmma_fence();
            accumulate_rows<kOther, D>(dq, ds_operand, shared.other(ring.stage, 0));
            wgmma_commit();
        }
        wgmma_wait<0>();
        wgmma_settle(dq);
        if (unreleased >= 0) release(barriers.free[unreleased]);
        if constexpr (!kRowsInRegisters<D>) barriers.owned_free.arrive();
        store_rows<D>(args.dq, tile.b, tile.h, q0, args.shape.t, args.shape.scale, dq);
    }
}

// --- dk and dv ---

// 128 keys of one KV head, and the query tiles that see them.
struct KeyTile {
    int b, kv, k0, first, queries;  // positions first, first + 64, ... below queries
};

__device__ __forceinline__ KeyTile key_tile(const AttentionShape& s) {
    const int heads = static_cast<int>(s.batch * s.kv_heads), head = static_cast<int>(blockIdx.x) % heads;
    const int kv_heads = static_cast<int>(s.kv_heads), k0 = static_cast<int>(blockIdx.x) / heads * kOwned;
    return {head / kv_heads, head % kv_heads, k0, static_cast<int>(s.first_seeing(k0)) / kOther * kOther,
            static_cast<int>(s.end_of_view(k0 + kOwned - 1))};
}

template <int D>
__device__ __forceinline__ void produce_dkv(const AttentionBackwardArgs& args, const BackwardShared<D>& shared,
                                            float* rows, BackwardBarriers& barriers) {
    const KeyTile tile = key_tile(args.shape);
    const int group = static_cast<int>(args.shape.group);
    barriers.owned_full.expect(2 * shared.owned(0).kBytes);
    copy_tile(shared.owned(0), args.k, tile.k0, tile.kv, tile.b, barriers.owned_full);
    copy_tile(shared.owned(1), args.v, tile.k0, tile.kv, tile.b, barriers.owned_full);
    Turn<kStages> ring;
    for (int h = tile.kv * group; h < (tile.kv + 1) * group; ++h)
        for (int q0 = tile.first; q0 < tile.queries; q0 += kOther, ring.next()) {
            Barrier& full = barriers.full[ring.stage];
            barriers.free[ring.stage].wait(ring.phase ^ 1);
            full.expect(2 * shared.other(0, 0).kBytes + kRowFloats * static_cast<int>(sizeof(float)));
            copy_tile(shared.other(ring.stage, 0), args.q, q0, h, tile.b, full);
            copy_tile(shared.other(ring.stage, 1), args.dy, q0, h, tile.b, full);
            copy_bulk(rows + ring.stage * kRowFloats, rows_of(args, tile.b, h, q0),
                      kRowFloats * static_cast<int>(sizeof(float)), full);
        }
}

template <int D>
__device__ __forceinline__ void consume_dkv(const AttentionBackwardArgs& args, const BackwardShared<D>& shared,
                                            const float* all_rows, BackwardBarriers& barriers, int warpgroup) {
    const KeyTile tile = key_tile(args.shape);
    const float factor = args.shape.scale * kLog2E;
    const int k0 = tile.k0 + 64 * warpgroup, cached = static_cast<int>(args.shape.cached);
    const int window = static_cast<int>(args.shape.window);
    const int row = accumulator_row(), column = threadIdx.x % 4 * 2;
    float dk[D / 2] = {}, dv[D / 2] = {}, p[kOther / 2], ds[kOther / 2];  // p, ds: transposed, a row a key
    FragmentA p_operand[kOther / 16], ds_operand[kOther / 16];
    Turn<kStages> ring;
    int unreleased = -1;  // the stage that products under way may read
    barriers.owned_full.wait(0);
    for (int h = 0; h < args.shape.group; ++h)
        for (int q0 = tile.first; q0 < tile.queries; q0 += kOther, ring.next()) {
            barriers.full[ring.stage].wait(ring.phase);
            const int ahead = k0 - q0 - cached;  // query n stands at key r if n = r + ahead
            if (ahead > kOther - 1 || ahead + 63 + window <= 0) {
                barriers.free[ring.stage].arrive();
                continue;
            }
            const auto q = shared.other(ring.stage, 0), dy = shared.other(ring.stage, 1);
            const float* rows = all_rows + ring.stage * kRowFloats + column;
            wgmma_fence();
            multiply_rows<kOther>(p, shared.owned(0), 64 * warpgroup, q);
            wgmma_commit();
            wgmma_wait<1>();  // for the last step, whose operands' registers are needed
            if (unreleased >= 0) barriers.free[unreleased].arrive();
            unreleased = ring.stage;
            wgmma_fence();
            multiply_rows<kOther>(ds, shared.owned(1), 64 * warpgroup, dy);
            wgmma_commit();
            wgmma_wait<1>();
            wgmma_settle(p);
#pragma unroll
            for (int j = 0; j < kOther / 8; ++j) {
                const float2 shift = *reinterpret_cast<const float2*>(rows + 8 * j);
#pragma unroll
                for (int e = 0; e < 4; ++e)
                    p[4 * j + e] = exp2_approx(fmaf(p[4 * j + e], factor, e % 2 == 0 ? -shift.x : -shift.y));
            }
            if (63 + ahead > 0) {
                const int first = row + ahead - column;  // query n sees the first row if n >= first + column
#pragma unroll
                for (int i = 0; i < kOther / 2; ++i)
                    if (i / 4 * 8 + i % 2 < first + i / 2 % 2 * 8) p[i] = 0;
            }
            if (kOther - 1 >= ahead + window) {
                const int end = row + ahead + window - column;  // and from end + column on no longer
#pragma unroll
                for (int i = 0; i < kOther / 2; ++i)
                    if (i / 4 * 8 + i % 2 >= end + i / 2 % 2 * 8) p[i] = 0;
            }
#pragma unroll
            for (int i = 0; i < kOther / 16; ++i) p_operand[i] = wgmma_operand(p, i);
            wgmma_fence();
            accumulate_rows<kOther, D>(dv, p_operand, dy);
            wgmma_commit();
            wgmma_wait<1>();
            wgmma_settle(ds);
#pragma unroll
            for (int j = 0; j < kOther / 8; ++j) {
                const float2 delta = *reinterpret_cast<const float2*>(rows + kOther + 8 * j);
#pragma unroll
                for (int e = 0; e < 4; ++e)
                    ds[4 * j + e] = p[4 * j + e] * (ds[4 * j + e] - (e % 2 == 0 ? delta.x : delta.y));
            }
#pragma unroll
            for (int i = 0; i < kOther / 16; ++i) ds_operand[i] = wgmma_operand(ds, i);
            wgmma_fence();
            accumulate_rows<kOther, D>(dk, ds_operand, q);
            wgmma_commit();
        }
    wgmma_wait<0>();
    wgmma_settle(dk);
    wgmma_settle(dv);
    if (args.dk) store_rows<D>(args.dk, tile.b, tile.kv, k0, args.shape.keys, args.shape.scale, dk);
    if (args.dv) store_rows<D>(args.dv, tile.b, tile.kv, k0, args.shape.keys, 1.0f, dv);
}

#endif

template <int D>
__global__ void __launch_bounds__(kRoleThreads, 1) dq_kernel(const __grid_constant__ AttentionBackwardArgs args) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
    extern __shared__ unsigned char dynamic[];
    __shared__ BackwardBarriers barriers;
    const BackwardShared<D> shared{aligned_shared(dynamic)};
    const int warpgroup = warpgroup_index();
    if (threadIdx.x == 0) barriers.init(kConsumerThreads, kConsumerWarps);  // each has read `tile`
    __syncthreads();
    if (warpgroup == kConsumers) {
        shrink_registers<kProducerRegisters>();
        if (threadIdx.x == kConsumers * kWarpgroup) produce_dq<D>(args, shared, barriers);
    } else {
        grow_registers<kConsumerRegisters>();
        consume_dq<D>(args, shared, barriers, warpgroup);
    }
#endif
}

template <int D>
__global__ void __launch_bounds__(kRoleThreads, 1) dkv_kernel(const __grid_constant__ AttentionBackwardArgs args) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
    extern __shared__ unsigned char dynamic[];
    __shared__ BackwardBarriers barriers;
    __shared__ alignas(16) float rows[kStages * kRowFloats];
    const BackwardShared<D> shared{aligned_shared(dynamic)};
    const int warpgroup = warpgroup_index();
    if (threadIdx.x == 0) barriers.init(kConsumerWarps, kConsumerThreads);
    __syncthreads();
    if (warpgroup == kConsumers) {
        shrink_registers<kProducerRegisters>();
        if (threadIdx.x == kConsumers * kWarpgroup) produce_dkv<D>(args, shared, rows, barriers);
    } else {
        grow_registers<kConsumerRegisters>();
        consume_dkv<D>(args, shared, rows, barriers, warpgroup);
    }
#endif
}

}  // namespace

void softmax_attention_backward_sm90(const SoftmaxAttentionBackward& a, Stream stream) {
    const SoftmaxAttentionForward& f = a.forward;
    const AttentionShape s(f);
    const cudaStream_t queue = cuda::handle_of(stream);
    const int64_t query_tiles = s.batch * s.heads * ceil_div(s.t, kOwned);
    const int64_t key_tiles = s.batch * s.kv_heads * ceil_div(s.keys, kOwned);
    const int64_t row_tiles = ceil_div(s.t, kOwned) * kOwned / kOther, rows = s.batch * s.heads * row_tiles * kOther;
    const DeviceScratch<float> scratch(2 * rows, stream);
    const AttentionBackwardArgs args{head_map(f.q),
                                     head_map(f.k),
                                     head_map(f.v),
                                     head_map(a.dy),
                                     s,
                                     AlignedHeads(f.y),
                                     AlignedHeads(a.dy),
                                     HeadTensor(f.lse),
                                     HeadTensor(a.dq),
                                     HeadTensor(a.dk),
                                     HeadTensor(a.dv),
                                     scratch.data(),
                                     static_cast<int>(row_tiles)};
    dispatch_head_dim(s.d, [&](auto d) {
        constexpr int kBytes = kBackwardBytes<d()>, kRowsThreads = 256;
        rows_kernel<d()><<<grid_x(ceil_div(rows, kRowsThreads / (d() / 8))), kRowsThreads, 0, queue>>>(args);
        LC_LAUNCHED("softmax_attention", queue);
        if (d() == kOneWalkD && s.keys >= kOneWalkKeys && s.window == s.keys && a.dq && (a.dk || a.dv))
            return softmax_attention_backward_one_walk(args, stream);
        if (a.dq) {
            allow_shared_memory(dq_kernel<d()>, kBytes);
            const int64_t blocks = std::min<int64_t>(query_tiles, multiprocessors());
            dq_kernel<d()><<<grid_x(blocks), kRoleThreads, kBytes, queue>>>(args);
            LC_LAUNCHED("softmax_attention", queue);
        }
        if (a.dk || a.dv) {
            allow_shared_memory(dkv_kernel<d()>, kBytes);
            dkv_kernel<d()><<<grid_x(key_tiles), kRoleThreads, kBytes, queue>>>(args);
            LC_LAUNCHED("softmax_attention", queue);
        }
    });
}

}  // namespace lc::kernels
