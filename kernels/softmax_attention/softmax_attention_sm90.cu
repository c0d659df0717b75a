// Softmax attention forward on Hopper (sm_90a): wgmma, TMA, warps with roles; bf16, D = 64 or 128, rows aligned to 16
// bytes.
//
// MATHS    softmax_attention.h: online softmax, saved: lse.
// TILING   blocks stay, one on each SM, and take tiles of 128 queries of a (batch, head) in turn; key tiles of 128 from
//          the diagonal to the left, as far as the window reaches.
//            warpgroup 0, 1   64 queries each: score [64,128] and y [64,D] in registers; p becomes an operand there
//            warpgroup 2      one thread numbers the tiles and queues copies: q, then k, v, k, v, ...
//            shared           y, 2 x q [128,D]  2 x (k, v [128,D]), with D = 64 4 x
//          One warpgroup's turn: queue q k(next)^T and y += p v, then make p(next) while the tensor cores work, first
//          on these and then on those of the other warpgroup, whose turn begins when this one has queued.
// COST     4 D FLOPs a visible (query, key) pair, 35/32 of it at T = 1024: of a tile on the diagonal the upper warpgroup
//          multiplies half of q k^T (in short walks) and all of p v.
// NUMERICS as softmax_attention_mma.cu.
// LADDER   H100, causal, 32/8 heads of 128, 8x1024; cuDNN 157 us.
//          1 softmax_attention_mma.cu: mma.sync, every warp copies and multiplies: 316 us.
//          2 wgmma from shared memory, TMA, producer and consumers, products under the softmax, blocks that stay: 150 to 158 us.
//            Turns give 2 %.
//            Clock stamps: a key tile takes 2,700 cycles, and each tile of queries 6,600 beyond its key tiles: 2,500 stores of y,
//            900 divisions for the next tile, 2,500 its first scores and weights, which nothing runs beside.
//          3 No seam: a tile's first scores queued with the last values of the one before. Predicted 125, measured 149 to 152 us: the next
//            keys are not there so early, and a step that may close a tile decides more; long sequences lost 2 to 4 %. With y stored under
//            the next scores' product: 152. Half of p v left out on the diagonal: 154, a branch among products costs more than they.
//          4 this: y by the copy engine, tiles from the producer, q a tile ahead: 146 in the run where 2 took 158; heads in parts that
//            stay in L2, shares without remainder (QueryTiles): 142; half of the first scores on the diagonal: 138.
//            2x4096 417 us (2: 424), heads of 64 at 8x1024 102 (118). Long walks, where the loop alone counts, lost: 1x8192 0.4 %,
//            1x16384 1.8 %, with the two masks and the half score in their loop 1.5 and 3 to 5 %; hence the forms of Walk.
//            Windows at 1x16384: 4,096 keys 1.4 ms (1: 3.3), 1,024 keys 0.46 ms (1.1).
// SOURCE   FlashAttention-3, arXiv 2407.08608.
#include "kernels/common/cuda/hopper.h"
#include "kernels/softmax_attention/softmax_attention_sm90.cuh"

namespace lc::kernels {
namespace {

struct ForwardArgs {
    CUtensorMap q, k, v, y;
    AttentionShape shape;
    HeadTensor lse;
};

constexpr int kKeys = 128;  // of a step

// What a walk's code spares: masks of windows, and half of the first scores, which shortens short walks. Long ones go faster without
// either: code beside the loop, even if skipped, costs the loop a percent.
enum class Walk { Short, Long, Windowed };
constexpr int64_t kLongWalk = 8192;  // keys

template <int D>
struct ForwardTraits {
    static constexpr int kStages = D == 128 ? 2 : 4;
    using Tile = WgmmaTile<kOwned, D>;  // [128,D]: q, y, k, v
    static constexpr int kBytes = kTileAlignment + (3 + 2 * kStages) * Tile::kBytes;
    static_assert(kOwned == kKeys && kBytes + 1024 <= kSharedLimit, "tiles, and barriers in static memory");
};

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

template <int Stages>
struct ForwardBarriers {
    QueryTile tile[2];  // with q
    Barrier q_full[2], q_free[2], k_full[Stages], k_free[Stages], v_full[Stages], v_free[Stages];

    __device__ void init() {
        for (int i = 0; i < 2; ++i) q_full[i].init(1), q_free[i].init(kConsumerThreads);  // each has read `tile`
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
    __device__ __forceinline__ Tile y() const { return {base}; }
    __device__ __forceinline__ Tile q(int stage) const { return {base + (1 + stage) * kOwned * D}; }
    __device__ __forceinline__ Tile k(int stage) const { return {base + (3 + 2 * stage) * kOwned * D}; }
    __device__ __forceinline__ Tile v(int stage) const { return {base + (4 + 2 * stage) * kOwned * D}; }
};

// The first and the last key tile that some query of the tile sees.
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
    Turn<2> q_ring;
    Turn<Tr::kStages> ring;
    QueryTiles tiles(args.shape);
    for (;; q_ring.next()) {
        QueryTile tile;
        Barrier& q_full = barriers.q_full[q_ring.stage];
        const bool more = tiles.next(tile);
        barriers.q_free[q_ring.stage].wait(q_ring.phase ^ 1);
        barriers.tile[q_ring.stage] = tile;
        if (!more) return q_full.arrive();
        q_full.expect(Tr::Tile::kBytes);
        copy_tile(shared.q(q_ring.stage), args.q, tile.q0, tile.h, tile.b, q_full);
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
    template <int Count>
    static __device__ __forceinline__ void mask(float (&score)[Count], int last) {
        last -= threadIdx.x % 4 * 2;
#pragma unroll
        for (int i = 0; i < Count; ++i)
            if (i / 4 * 8 + i % 2 > last + i / 2 % 2 * 8) score[i] = -INFINITY;
    }
    // Key n lies in front of the first row's window if n < first, of the second's if n < first + 8.
    template <int Count>
    static __device__ __forceinline__ void mask_front(float (&score)[Count], int first) {
        first -= threadIdx.x % 4 * 2;
#pragma unroll
        for (int i = 0; i < Count; ++i)
            if (i / 4 * 8 + i % 2 < first + i / 2 % 2 * 8) score[i] = -INFINITY;
    }

    // Scores become weights relative to the running maximum. factor = scale log2 e.
    template <int Count>
    __device__ __forceinline__ void weigh(float (&score)[Count], float factor) {
        float top[2][2], part[2][2] = {}, shift[2];
#pragma unroll
        for (int half = 0; half < 2; ++half) top[half][0] = top[half][1] = high[half];
#pragma unroll
        for (int i = 0; i < Count; ++i) top[i / 2 % 2][i % 2] = fmaxf(top[i / 2 % 2][i % 2], score[i]);
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const float most = quad_max(fmaxf(top[half][0], top[half][1]));
            // A row that has seen no key yet (its tiles come later): all weights are exp2(-inf) = 0.
            shift[half] = most == -INFINITY ? 0.0f : most * factor;
            shrink[half] = exp2_approx(fmaf(high[half], factor, -shift[half]));
            high[half] = most;
        }
#pragma unroll
        for (int i = 0; i < Count; ++i) {
            score[i] = exp2_approx(fmaf(score[i], factor, -shift[i / 2 % 2]));
            part[i / 2 % 2][i % 2] += score[i];
        }
#pragma unroll
        for (int half = 0; half < 2; ++half) sum[half] = fmaf(sum[half], shrink[half], part[half][0] + part[half][1]);
    }
};

enum NamedBarrier { kTurnOf = 1, kStagedFree = 3, kStagedFull = 5 };  // each and the next: of warpgroup 0 and 1

// y of the warpgroup's 64 rows leaves through its half of `staged`.
template <int D>
__device__ __forceinline__ void store_rows(const ForwardArgs& args, const QueryTile& tile,
                                           const WgmmaTile<kOwned, D>& staged, int warpgroup,
                                           const OnlineSoftmax& softmax, float (&y)[D / 2]) {
    const WgmmaTile<kOwned, D> rows{staged.data + 64 * 64 * warpgroup};
    const int first = tile.q0 + 64 * warpgroup, t = static_cast<int>(args.shape.t);
    const bool storing = threadIdx.x % kWarpgroup == 0;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const float sum = quad_sum(softmax.sum[half]), inverse = 1 / sum;
        const int i = first + accumulator_row() + 8 * half;
        const float lse = softmax.high[half] * args.shape.scale + logf(sum);
        float* to = reinterpret_cast<float*>(args.lse.base) + args.lse.row(tile.b, tile.h, i);
        if (args.lse && threadIdx.x % 4 == 0 && i < t) *to = lse;
#pragma unroll
        for (int j = 0; j < D / 4; ++j) y[j / 2 * 4 + 2 * half + j % 2] *= inverse;
    }
    if (storing) store_wait_read();  // of the last tile's
    named_sync<kWarpgroup>(kStagedFree + warpgroup);
#pragma unroll
    for (int i = 0; i < D / 16; ++i) store_operand(rows, wgmma_operand(y, i), i);
    fence_async_proxy();
    named_sync<kWarpgroup>(kStagedFull + warpgroup);
    if (!storing || first >= t) return;
#pragma unroll
    for (int column = 0; column < D; column += kMapColumns)
        store_panel({rows.data + column / 64 * rows.kPanel}, args.y, first, column, tile.h, tile.b);
    store_commit();
}

// Scores of 64 rows from `row` on with the first half of a key tile.
template <int D>
__device__ __forceinline__ void multiply_half(float (&score)[kKeys / 4], const WgmmaTile<kOwned, D>& q, int row,
                                              const WgmmaTile<kKeys, D>& keys) {
    using Tile = WgmmaTile<kKeys, D>;
    const WgmmaDescriptor left = k_major(q, row), right = k_major(keys);
#pragma unroll
    for (int k = 0; k < D; k += 16)
        wgmma_ss<Major::K>(score, left + k_offset<Tile>(k), right + k_offset<Tile>(k), k > 0);
}

template <int D, Walk W>
__device__ __forceinline__ void consume(const ForwardArgs& args, const ForwardShared<D>& shared,
                                        ForwardBarriers<ForwardTraits<D>::kStages>& barriers, int warpgroup) {
    const float factor = args.shape.scale * kLog2E;
    const int cached = static_cast<int>(args.shape.cached), window = static_cast<int>(args.shape.window);
    const int row = accumulator_row();
    Turn<ForwardTraits<D>::kStages> k_ring, v_ring;
    if (warpgroup == 1) named_arrive<kConsumers * kWarpgroup>(kTurnOf);
    for (int count = 0;; ++count) {
        barriers.q_full[count % 2].wait(count / 2 % 2);
        const QueryTile tile = barriers.tile[count % 2];
        if (tile.limit == 0) break;
        const auto q = shared.q(count % 2);
        const int first = first_keys(tile);
        int k0 = last_keys(tile);
        const auto weigh = [&](OnlineSoftmax& softmax, auto& score) {
            const int ahead = tile.q0 + 64 * warpgroup + cached - k0;  // key n is row r's own if n = r + ahead
            if (kKeys - 1 > ahead) OnlineSoftmax::mask(score, row + ahead);
            if (W == Walk::Windowed && 63 + ahead >= window) OnlineSoftmax::mask_front(score, row + ahead - window + 1);
            softmax.weigh(score, factor);
        };
        float score[kKeys / 2], y[D / 2] = {};
        FragmentA p[kKeys / 16];
        OnlineSoftmax softmax;
        barriers.k_full[k_ring.stage].wait(k_ring.phase);
        if (W != Walk::Long &&
            tile.q0 + 64 * warpgroup + cached <= k0) {  // the diagonal leaves the rows half of the keys
            float half[kKeys / 4];
            wgmma_fence();
            multiply_half<D>(half, q, 64 * warpgroup, shared.k(k_ring.stage));
            wgmma_commit();
            wgmma_wait<0>();
            wgmma_settle(half);
            weigh(softmax, half);
#pragma unroll
            for (int i = 0; i < kKeys / 16; ++i)
                p[i] = i < kKeys / 32 ? wgmma_operand(half, i % (kKeys / 32)) : FragmentA{};
        } else {
            wgmma_fence();
            multiply_rows<kKeys>(score, q, 64 * warpgroup, shared.k(k_ring.stage));
            wgmma_commit();
            wgmma_wait<0>();
            wgmma_settle(score);
            weigh(softmax, score);
#pragma unroll
            for (int i = 0; i < kKeys / 16; ++i) p[i] = wgmma_operand(score, i);
        }
        release(barriers.k_free[k_ring.stage]);
        k_ring.next();

        const auto await_next_keys = [&] {
            if (k0 - kKeys >= first) barriers.k_full[k_ring.stage].wait(k_ring.phase);
        };
        await_next_keys();
        for (k0 -= kKeys; k0 >= first; k0 -= kKeys) {
            named_sync<kConsumers * kWarpgroup>(kTurnOf + warpgroup);
            wgmma_fence();
            multiply_rows<kKeys>(score, q, 64 * warpgroup, shared.k(k_ring.stage));
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
            wgmma_settle(score);  // the weights are made while y's product runs: without this line and the branch in
            await_next_keys();    // the next the compiler moves the wait for y up
            wgmma_wait<0>();
            wgmma_settle(y);
            release(barriers.v_free[v_ring.stage]);
            v_ring.next();
#pragma unroll
            for (int i = 0; i < D / 2; ++i) y[i] *= softmax.shrink[i / 2 % 2];
#pragma unroll
            for (int i = 0; i < kKeys / 16; ++i) p[i] = wgmma_operand(score, i);
        }
        barriers.q_free[count % 2].arrive();
        barriers.v_full[v_ring.stage].wait(v_ring.phase);
        wgmma_fence();
        accumulate_rows<kKeys, D>(y, p, shared.v(v_ring.stage));
        wgmma_commit();
        wgmma_wait<0>();
        wgmma_settle(y);
        release(barriers.v_free[v_ring.stage]);
        v_ring.next();
        store_rows<D>(args, tile, shared.y(), warpgroup, softmax, y);
    }
    store_wait_read();  // not to leave with the tile
}

#endif

template <int D, Walk W>
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
        consume<D, W>(args, shared, barriers, warpgroup);
    }
#endif
}

}  // namespace

void softmax_attention_forward_sm90(const SoftmaxAttentionForward& a, Stream stream) {
    const AttentionShape s(a);
    const int64_t tiles = s.batch * s.heads * ceil_div(s.t, kOwned);
    if (tiles == 0) return;
    const ForwardArgs args{head_map(a.q), head_map(a.k), head_map(a.v), head_map(a.y), s, HeadTensor(a.lse)};
    clear_result(a.y, stream);
    dispatch_head_dim(s.d, [&](auto d) {
        constexpr int kBytes = ForwardTraits<d()>::kBytes;
        const auto kernel = s.window < s.keys     ? forward_kernel<d(), Walk::Windowed>
                            : s.keys >= kLongWalk ? forward_kernel<d(), Walk::Long>
                                                  : forward_kernel<d(), Walk::Short>;
        const int64_t blocks = std::min<int64_t>(tiles, multiprocessors());
        allow_shared_memory(kernel, kBytes);
        kernel<<<grid_x(blocks), kRoleThreads, kBytes, cuda::handle_of(stream)>>>(args);
        LC_LAUNCHED("softmax_attention", cuda::handle_of(stream));
    });
}

}  // namespace lc::kernels
