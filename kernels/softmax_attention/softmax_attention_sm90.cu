// Softmax attention forward on Hopper (sm_90a): wgmma, TMA, warps with roles; bf16, D = 64 or 128, rows aligned to 16
// bytes.
//
// MATHS    softmax_attention.h: online softmax, saved: lse.
// TILING   blocks stay, one on each SM, and take tiles of 128 queries of a (batch, head) in turn; key tiles of 128 from
//          the diagonal to the left.
//            warpgroup 0, 1   64 queries each: score [64,128] and y [64,D] in registers; p becomes an operand there
//            warpgroup 2      one thread queues copies: q, then k, v, k, v, ...
//            shared           q, y [128,D]  2 x (k, v [128,D])
//          One warpgroup's turn: queue q k(next)^T and y += p v, then make p(next) while the tensor cores work, first
//          on these and then on those of the other warpgroup, whose turn begins when this one has queued.
// COST     4 D FLOPs a visible (query, key) pair, 9/8 of it at T = 1024: tiles on the diagonal are multiplied whole.
// NUMERICS as softmax_attention_mma.cu.
// LADDER   1 softmax_attention_mma.cu: mma.sync, every warp copies and multiplies.
//          2 this: wgmma from shared memory, TMA, producer and consumers, products under the softmax, blocks that stay:
//            twice as fast as 1. Turns give 2 % of it.
// SOURCE   FlashAttention-3, arXiv 2407.08608.
#include "kernels/softmax_attention/softmax_attention_sm90.cuh"

namespace lc::kernels {
namespace {

struct ForwardArgs {
    CUtensorMap q, k, v;
    AttentionShape shape;
    AlignedHeads y;
    HeadTensor lse;
};

constexpr int kKeys = 128;  // of a step

template <int D>
struct ForwardTraits {
    static constexpr int kStages = 2;
    using Tile = WgmmaTile<kOwned, D>;  // [128,D]: q, y, k, v
    static constexpr int kBytes = kTileAlignment + (2 + 2 * kStages) * Tile::kBytes;
    static_assert(kOwned == kKeys && kBytes + 1024 <= kSharedLimit, "tiles, and barriers in static memory");
};

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

template <int Stages>
struct ForwardBarriers {
    Barrier q_full, q_free, k_full[Stages], k_free[Stages], v_full[Stages], v_free[Stages];

    __device__ void init() {
        q_full.init(1), q_free.init(kConsumerWarps);
        for (int i = 0; i < Stages; ++i) {
            k_full[i].init(1), v_full[i].init(1);
            k_free[i].init(kConsumerWarps), v_free[i].init(kConsumerWarps);
        }
        fence_barriers();
    }
};

template <int D>
struct ForwardShared {
    using Tr = ForwardTraits<D>;
    using Tile = typename Tr::Tile;
    __nv_bfloat16* base;
    __device__ __forceinline__ Tile q() const { return {base}; }
    __device__ __forceinline__ Tile y() const { return {base + kOwned * D}; }
    __device__ __forceinline__ Tile k(int stage) const { return {base + (2 + 2 * stage) * kOwned * D}; }
    __device__ __forceinline__ Tile v(int stage) const { return {base + (3 + 2 * stage) * kOwned * D}; }
};

// The key tiles that some query of the tile sees.
__device__ __forceinline__ int first_keys(const QueryTile& tile) {
    return tile.begin / kKeys * kKeys;
}
__device__ __forceinline__ int last_keys(const QueryTile& tile) {
    return (tile.limit - 1) / kKeys * kKeys;
}

template <int D>
__device__ __forceinline__ void produce(const ForwardArgs& args, const ForwardShared<D>& shared,
                                        ForwardBarriers<ForwardTraits<D>::kStages>& barriers) {
    using Tr = ForwardTraits<D>;
    Turn<Tr::kStages> ring;
    int q_phase = 0;
    QueryTiles tiles(args.shape);
    for (QueryTile tile; tiles.next(tile);) {
        barriers.q_free.wait(q_phase ^ 1);
        barriers.q_full.expect(Tr::Tile::kBytes);
        copy_tile(shared.q(), args.q, tile.q0, tile.h, tile.b, barriers.q_full);
        q_phase ^= 1;
        for (int k0 = last_keys(tile); k0 >= first_keys(tile); k0 -= kKeys, ring.next()) {
            barriers.k_free[ring.stage].wait(ring.phase ^ 1);
            barriers.k_full[ring.stage].expect(Tr::Tile::kBytes);
            copy_tile(shared.k(ring.stage), args.k, k0, tile.kv, tile.b, barriers.k_full[ring.stage]);
            barriers.v_free[ring.stage].wait(ring.phase ^ 1);
            barriers.v_full[ring.stage].expect(Tr::Tile::kBytes);
            copy_tile(shared.v(ring.stage), args.v, k0, tile.kv, tile.b, barriers.v_full[ring.stage]);
        }
    }
}

// Two rows of a thread: accumulator_row() and eight below.
struct OnlineSoftmax {
    float high[2] = {-INFINITY, -INFINITY}, sum[2] = {};  // sum: this lane's share
    float shrink[2] = {};                                 // what y must be multiplied with

    // Key n of the tile is seen by the first row if n <= last, by the second if n <= last + 8.
    static __device__ __forceinline__ void mask(float (&score)[kKeys / 2], int last) {
        last -= threadIdx.x % 4 * 2;
#pragma unroll
        for (int i = 0; i < kKeys / 2; ++i)
            if (i / 4 * 8 + i % 2 > last + i / 2 % 2 * 8) score[i] = -INFINITY;
    }
    // Key n lies in front of the first row's window if n < first, of the second's if n < first + 8.
    static __device__ __forceinline__ void mask_front(float (&score)[kKeys / 2], int first) {
        first -= threadIdx.x % 4 * 2;
#pragma unroll
        for (int i = 0; i < kKeys / 2; ++i)
            if (i / 4 * 8 + i % 2 < first + i / 2 % 2 * 8) score[i] = -INFINITY;
    }

    // Scores become weights relative to the running maximum. factor = scale log2 e.
    __device__ __forceinline__ void weigh(float (&score)[kKeys / 2], float factor) {
        float top[2][2], part[2][2] = {}, shift[2];
#pragma unroll
        for (int half = 0; half < 2; ++half) top[half][0] = top[half][1] = high[half];
#pragma unroll
        for (int i = 0; i < kKeys / 2; ++i) top[i / 2 % 2][i % 2] = fmaxf(top[i / 2 % 2][i % 2], score[i]);
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const float most = quad_max(fmaxf(top[half][0], top[half][1]));
            // A row that has seen no key yet (its tiles come later): all weights are exp2(-inf) = 0.
            shift[half] = most == -INFINITY ? 0.0f : most * factor;
            shrink[half] = exp2_approx(fmaf(high[half], factor, -shift[half]));
            high[half] = most;
        }
#pragma unroll
        for (int i = 0; i < kKeys / 2; ++i) {
            score[i] = exp2_approx(fmaf(score[i], factor, -shift[i / 2 % 2]));
            part[i / 2 % 2][i % 2] += score[i];
        }
#pragma unroll
        for (int half = 0; half < 2; ++half) sum[half] = fmaf(sum[half], shrink[half], part[half][0] + part[half][1]);
    }
};

// y leaves through the warp's own rows of the tile `staged`, so that it can be stored in 16-byte pieces.
template <int D>
__device__ __forceinline__ void store_rows(const ForwardArgs& args, const QueryTile& tile,
                                           const WgmmaTile<kOwned, D>& staged, int first, const OnlineSoftmax& softmax,
                                           const float (&y)[D / 2]) {
    const int lane = threadIdx.x % kWarp, t = lane % 4, row = first + lane / 4;
    const int rows = static_cast<int>(min(args.shape.t - tile.q0, int64_t{kOwned}));
    __syncwarp();
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const float sum = quad_sum(softmax.sum[half]), inverse = 1 / sum;
#pragma unroll
        for (int j = 0; j < D / 8; ++j)
            *reinterpret_cast<uint32_t*>(staged.chunk(row + 8 * half, 8 * j) + 2 * t) =
                pack_bf16(y[4 * j + 2 * half] * inverse, y[4 * j + 2 * half + 1] * inverse);
        if (args.lse && t == 0 && row + 8 * half < rows)
            args.lse.put(args.lse.row(tile.b, tile.h, tile.q0 + row + 8 * half), 0,
                         softmax.high[half] * args.shape.scale + logf(sum));
    }
    __syncwarp();
    __nv_bfloat16* to = args.y.head(tile.b, tile.h) + tile.q0 * args.y.strides[2];
#pragma unroll
    for (int i = 0; i < D / 16; ++i) {
        const int piece = i * kWarp + lane, r = first + piece / (D / 8), column = piece % (D / 8) * 8;
        if (r < rows)
            *reinterpret_cast<uint4*>(to + r * args.y.strides[2] + column) =
                *reinterpret_cast<const uint4*>(staged.chunk(r, column));
    }
}

enum NamedBarrier { kTurnOf = 1 };  // and the next: of warpgroup 0 and 1

template <int D>
__device__ __forceinline__ void consume(const ForwardArgs& args, const ForwardShared<D>& shared,
                                        ForwardBarriers<ForwardTraits<D>::kStages>& barriers, int warpgroup) {
    const float factor = args.shape.scale * kLog2E;
    const int cached = static_cast<int>(args.shape.cached), window = static_cast<int>(args.shape.window);
    const int row = accumulator_row();
    Turn<ForwardTraits<D>::kStages> k_ring, v_ring;
    int q_phase = 0;
    if (warpgroup == 1) named_arrive<kConsumers * kWarpgroup>(kTurnOf);
    QueryTiles tiles(args.shape);
    for (QueryTile tile; tiles.next(tile);) {
        const int first = first_keys(tile);
        int k0 = last_keys(tile);
        const auto weigh = [&](OnlineSoftmax& softmax, float(&score)[kKeys / 2]) {
            const int ahead = tile.q0 + 64 * warpgroup + cached - k0;  // key n is row r's own if n = r + ahead
            if (kKeys - 1 > ahead) OnlineSoftmax::mask(score, row + ahead);
            if (63 + ahead >= window) OnlineSoftmax::mask_front(score, row + ahead - window + 1);
            softmax.weigh(score, factor);
        };
        float score[kKeys / 2], y[D / 2] = {};
        FragmentA p[kKeys / 16];
        OnlineSoftmax softmax;

        barriers.q_full.wait(q_phase);
        q_phase ^= 1;
        barriers.k_full[k_ring.stage].wait(k_ring.phase);
        wgmma_fence();
        multiply_rows<kKeys>(score, shared.q(), 64 * warpgroup, shared.k(k_ring.stage));
        wgmma_commit();
        wgmma_wait<0>();
        wgmma_settle(score);
        release(barriers.k_free[k_ring.stage]);
        k_ring.next();
        weigh(softmax, score);
#pragma unroll
        for (int i = 0; i < kKeys / 16; ++i) p[i] = wgmma_operand(score, i);

        const auto await_next_keys = [&] {
            if (k0 - kKeys >= first) barriers.k_full[k_ring.stage].wait(k_ring.phase);
        };
        await_next_keys();
        for (k0 -= kKeys; k0 >= first; k0 -= kKeys) {
            named_sync<kConsumers * kWarpgroup>(kTurnOf + warpgroup);
            wgmma_fence();
            multiply_rows<kKeys>(score, shared.q(), 64 * warpgroup, shared.k(k_ring.stage));
            wgmma_commit();
            barriers.v_full[v_ring.stage].wait(v_ring.phase);
            wgmma_fence();
            accumulate_rows<kKeys, D>(y, p, shared.v(v_ring.stage));
            wgmma_commit();
            named_arrive<kConsumers * kWarpgroup>(kTurnOf + (warpgroup ^ 1));
            wgmma_wait<1>();
            wgmma_settle(score);
            release(barriers.k_free[k_ring.stage]);
            k_ring.next();
            weigh(softmax, score);
            wgmma_settle(
                score);  // the weights are made while y's product runs: without this line and the branch in the next
            await_next_keys();  // the compiler moves the wait for y up
            wgmma_wait<0>();
            wgmma_settle(y);
            release(barriers.v_free[v_ring.stage]);
            v_ring.next();
#pragma unroll
            for (int i = 0; i < D / 2; ++i) y[i] *= softmax.shrink[i / 2 % 2];
#pragma unroll
            for (int i = 0; i < kKeys / 16; ++i) p[i] = wgmma_operand(score, i);
        }
        release(barriers.q_free);
        barriers.v_full[v_ring.stage].wait(v_ring.phase);
        wgmma_fence();
        accumulate_rows<kKeys, D>(y, p, shared.v(v_ring.stage));
        wgmma_commit();
        wgmma_wait<0>();
        wgmma_settle(y);
        release(barriers.v_free[v_ring.stage]);
        v_ring.next();
        store_rows<D>(args, tile, shared.y(), 64 * warpgroup + static_cast<int>(threadIdx.x) % kWarpgroup / kWarp * 16,
                      softmax, y);
    }
}

#endif

template <int D>
__global__ void __launch_bounds__(kRoleThreads, 1) forward_kernel(const __grid_constant__ ForwardArgs args) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
    extern __shared__ unsigned char dynamic[];
    __shared__ ForwardBarriers<ForwardTraits<D>::kStages> barriers;
    const ForwardShared<D> shared{aligned_shared(dynamic)};
    const int warpgroup = warpgroup_index();
    if (threadIdx.x == 0) barriers.init();
    __syncthreads();
    if (warpgroup == kConsumers) {
        shrink_registers<kProducerRegisters>();
        if (threadIdx.x == kConsumers * kWarpgroup) produce<D>(args, shared, barriers);
    } else {
        grow_registers<kConsumerRegisters>();
        consume<D>(args, shared, barriers, warpgroup);
    }
#endif
}

}  // namespace

void softmax_attention_forward_sm90(const SoftmaxAttentionForward& a, Stream stream) {
    const AttentionShape s(a);
    const int64_t tiles = s.batch * s.heads * ceil_div(s.t, kOwned);
    if (tiles == 0) return;
    const ForwardArgs args{head_map(a.q), head_map(a.k), head_map(a.v), s, AlignedHeads(a.y), HeadTensor(a.lse)};
    dispatch_head_dim(s.d, [&](auto d) {
        constexpr int kBytes = ForwardTraits<d()>::kBytes;
        allow_shared_memory(forward_kernel<d()>, kBytes);
        forward_kernel<d()>
            <<<grid_x(std::min<int64_t>(tiles, multiprocessors())), kRoleThreads, kBytes, cuda::handle_of(stream)>>>(
                args);
        LC_LAUNCHED("softmax_attention", cuda::handle_of(stream));
    });
}

}  // namespace lc::kernels
