// The gradients' role in the walks over the keys (hybrid_keys.cuh): dphi_k, du and dWk; with the window dv and dk.
#pragma once
#include "kernels/hybrid_attention/hybrid_keys.cuh"

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

namespace lc::kernels::hybrid_keys {

// t in every row of g [64,F'], to which T v is added.
__device__ __forceinline__ void begin_dphi(float (&g)[kFusedFeatures / 2], const float* t) {
#pragma unroll
    for (int j = 0; j < kFusedFeatures / 8; ++j) {
        const float2 pair = *reinterpret_cast<const float2*>(t + 8 * j + 2 * quad_lane());
        g[4 * j] = g[4 * j + 2] = pair.x, g[4 * j + 1] = g[4 * j + 3] = pair.y;
    }
    wgmma_settle(g);
}

// From g = dphi_k [64,F'] to du = p (g+ - <p,g+>) - n (g- - <n,g->). A warp reads and writes its own 16 rows, columns of du after it
// has read them from phi: both may lie in one place.
__device__ __forceinline__ void put_du(float (&g)[kFusedFeatures / 2], const FeatureTile& phi, const Panel& du) {
    float dots[2][2] = {};
#pragma unroll
    for (int i = 0; i < kFusedFeatures / 16; ++i) {
        const FragmentA x = load_wgmma_a(phi, 0, 16 * i);
#pragma unroll
        for (int r = 0; r < 4; ++r) {
            const float2 feature = unpack_bf16(x.r[r]);
            float& dot = dots[i / (kFusedMap / 16)][r % 2];
            dot = fmaf(feature.x, g[8 * i + 2 * r], fmaf(feature.y, g[8 * i + 2 * r + 1], dot));
        }
    }
#pragma unroll
    for (int half = 0; half < 2; ++half)
        dots[0][half] = quad_sum(dots[0][half]), dots[1][half] = quad_sum(dots[1][half]);
#pragma unroll
    for (int i = 0; i < kFusedMap / 16; ++i) {
        const FragmentA p = load_wgmma_a(phi, 0, 16 * i), n = load_wgmma_a(phi, 0, kFusedMap + 16 * i);
        FragmentA result;
#pragma unroll
        for (int r = 0; r < 4; ++r) {
            const float *up = g + 8 * i + 2 * r, *down = up + kFusedMap / 2;
            const float2 x = unpack_bf16(p.r[r]), y = unpack_bf16(n.r[r]);
            result.r[r] = pack_bf16(x.x * (up[0] - dots[0][r % 2]) - y.x * (down[0] - dots[1][r % 2]),
                                    x.y * (up[1] - dots[0][r % 2]) - y.y * (down[1] - dots[1][r % 2]));
        }
        store_operand(du, result, i);
    }
}

// Queues g += v T^T.
template <int D>
__device__ __forceinline__ void add_dphi(float (&g)[kFusedFeatures / 2], const WgmmaTile<kFusedRows, D>& v,
                                         const WgmmaTile<kFusedFeatures, D>& copy) {
    const WgmmaDescriptor left = k_major(v), right = k_major(copy);
#pragma unroll
    for (int k = 0; k < D; k += 16)
        wgmma_ss<Major::K>(g, left + k_offset<WgmmaTile<kFusedRows, D>>(k),
                           right + k_offset<WgmmaTile<kFusedFeatures, D>>(k), true);
}

// Queues C [M = 64, D] += A B: A [K,64] or, K-major, [64,K]; B [K,D].
template <int D, Major A = Major::MN>
__device__ __forceinline__ void accumulate(float (&c)[D / 2], const Panel& a, const WgmmaTile<kFusedRows, D>& b,
                                           bool add = true) {
    const WgmmaDescriptor left = A == Major::MN ? mn_major(a) : k_major(a), right = mn_major(b);
#pragma unroll
    for (int k = 0; k < kFusedRows; k += 16)
        wgmma_ss<Major::MN, A>(c, left + (A == Major::MN ? 64 * k : k), right + 64 * k, add || k > 0);
}

// dWk^T [F,D] to the part [D,F].
template <int D>
__device__ __forceinline__ void store_dwk(const float (&dwk)[D / 2], float* part) {
#pragma unroll
    for (int i = 0; i < D / 2; ++i)
        part[(i / 4 * 8 + 2 * quad_lane() + i % 2) * kFusedMap + accumulator_row() + i / 2 % 2 * 8] = dwk[i];
}

// Head `h` of dk and dv; `adds`: to what a query head before has left there.
struct KeysPlace {
    int h;
    bool adds;
};

// dk or dv in bf16 to its place on the way out, which products of all four warps have read.
template <int D>
__device__ __forceinline__ void stage_keys(const KeysOutput& to, const Panel& staged, const float (&x)[D / 2]) {
    if (!to.wanted) return;
#pragma unroll
    for (int i = 0; i < D / 16; ++i) store_operand(WgmmaTile<kFusedRows, D>{staged.data}, wgmma_operand(x, i), i);
}
// By one thread: from there to block c.
template <int D>
__device__ __forceinline__ void store_keys(const FusedHead& head, const KeysPlace& place, const KeysOutput& to, int c,
                                           const Panel& staged) {
    if (!to.wanted) return;
    if (place.adds) store_wait();  // that head's stores: long done
    const int t = c * kFusedRows, b = static_cast<int>(head.b);
    constexpr int kPanel = WgmmaTile<kFusedRows, D>::kPanel;
    if (place.adds) {
#pragma unroll
        for (int p = 0; p < D / 64; ++p) add_panel({staged.data + p * kPanel}, to.map, t, 64 * p, place.h, b);
    } else {
#pragma unroll
        for (int p = 0; p < D / 64; ++p) store_panel({staged.data + p * kPanel}, to.map, t, 64 * p, place.h, b);
    }
}

// A step with the window; kFar: some rows see these keys through T. Without dWk there are registers for dv and dk at once.
template <int D, bool kMap, bool kFar>
__device__ __forceinline__ void make_gradient(const KeysArgs& args, const FusedHead& head,
                                              const KeysRoom<D, true>& room, KeysBarriers& barriers,
                                              const KeysWalk<true>& walk, const KeysPlace& place, int c,
                                              float (&dwk)[D / 2]) {
    const int parity = walk.step(c) % 2, own = walk.row_stage(c), next = own ^ 1;
    const bool leads = threadIdx.x % kWarpgroup == 0;
    {
        float g[kFusedFeatures / 2];
        barriers.v_full[0].wait(parity);
        if constexpr (kFar) {
            barriers.copy_full.wait(walk.far_turn(c) & 1);
            begin_dphi(g, room.t());
            wgmma_fence();
            add_dphi<D>(g, room.v(0), room.copy());
            wgmma_commit();
        }
        if (leads && walk.step(c) > 0) {
            store_wait_read();  // dk of the block before has left, and dv
            if (!kMap) barriers.weights_free.arrive();
            barriers.gradients_free.arrive();
        }
        __syncwarp();
        if constexpr (kFar) {
            wgmma_wait<0>();
            wgmma_settle(g);
        }
        release(barriers.v_free[0]);
        if constexpr (kFar) {
            barriers.phi_k_full.wait(walk.far_turn(c) & 1);
            put_du(g, room.phi_k(), room.du());
            fence_async_proxy();
            named_sync<kWarpgroup>(kGradientsBarrier);
        }
    }
    float dv[D / 2], dk[D / 2];
    const auto add_du = [&] {  // dk += du W^T
        const WgmmaDescriptor left = k_major(room.du()), right = k_major(room.map(1));
#pragma unroll
        for (int f = 0; f < kFusedMap; f += 16) wgmma_ss<Major::K>(dk, left + f, right + f, kMap || f > 0);
    };
    barriers.k_full[0].wait(parity);
    if constexpr (kFar) {
        wgmma_fence();
        if constexpr (kMap) {
            accumulate<D>(dwk, room.du(), room.k(0));
            wgmma_commit();
        }
        const WgmmaDescriptor left = k_major(room.phi_k()), right = mn_major(room.copy());
#pragma unroll
        for (int f = 0; f < kFusedFeatures; f += 16)
            wgmma_ss<Major::MN>(dv, left + k_offset<FeatureTile>(f), right + 64 * f, f > 0);
        if constexpr (!kMap) add_du();
        wgmma_commit();
        if constexpr (kMap) wgmma_wait<1>();
    }
    release(barriers.k_free[0]);
    barriers.dn_full[next].wait(walk.row_parity(c + 1));
    if constexpr (!kMap) barriers.q_full[next].wait(walk.row_parity(c + 1));
    barriers.weights_full[0].wait(parity);
    wgmma_fence();
    accumulate<D>(dv, room.weights(0), room.dn(next), kFar);
    if constexpr (!kMap) accumulate<D>(dk, room.score_gradients(0), room.q(next), kFar);
    wgmma_commit();
    if constexpr (kFar) {
        wgmma_wait<1>();
        barriers.copy_free.arrive();
        barriers.phi_k_free.arrive();
    }
    wgmma_wait<0>();  // weights of block c come later than that: the copies of block c - 1 need not wait for them
    release(barriers.dn_free[next]);
    if constexpr (!kMap) release(barriers.q_free[next]);
    barriers.dn_full[own].wait(walk.row_parity(c));
    if constexpr (!kMap) barriers.q_full[own].wait(walk.row_parity(c));
    barriers.weights_full[1].wait(parity);
    wgmma_fence();
    accumulate<D>(dv, room.weights(1), room.dn(own));
    if constexpr (!kMap) accumulate<D>(dk, room.score_gradients(1), room.q(own));
    wgmma_commit();
    wgmma_wait<0>();
    wgmma_settle(dv);
    if constexpr (kMap) {
        if constexpr (kFar) wgmma_settle(dwk);
        named_sync<kWarpgroup>(kGradientsBarrier);
        stage_keys<D>(args.dv, room.weights(0), dv);
        fence_async_proxy();
        named_sync<kWarpgroup>(kGradientsBarrier);
        if (leads) {
            store_keys<D>(head, place, args.dv, c, room.weights(0));
            store_commit();
        }
        __syncwarp();
        barriers.q_full[next].wait(walk.row_parity(c + 1));
        barriers.q_full[own].wait(walk.row_parity(c));
        wgmma_fence();
        accumulate<D>(dk, room.score_gradients(0), room.q(next), false);
        accumulate<D>(dk, room.score_gradients(1), room.q(own));
        if constexpr (kFar) add_du();
        wgmma_commit();
        if (leads) {
            store_wait_read();  // dv of this block has left
            barriers.weights_free.arrive();
        }
        __syncwarp();
        wgmma_wait<0>();
        release(barriers.q_free[next]);
    }
    wgmma_settle(dk);
    named_sync<kWarpgroup>(kGradientsBarrier);
    if constexpr (!kMap) stage_keys<D>(args.dv, room.weights(0), dv);
    stage_keys<D>(args.dk, room.score_gradients(0), dk);
    fence_async_proxy();
    named_sync<kWarpgroup>(kGradientsBarrier);
    if (leads) {
        if (!kMap) store_keys<D>(head, place, args.dv, c, room.weights(0));
        store_keys<D>(head, place, args.dk, c, room.score_gradients(0));
        store_commit();
    }
    __syncwarp();
}

template <int D, bool kMap>
__device__ __forceinline__ void make_gradients(const KeysArgs& args, const FusedHead& head, int turn,
                                               const KeysRoom<D, true>& room, KeysBarriers& barriers) {
    const KeysWalk<true> walk(head, args.in.shape.blocks, turn);
    const KeysPlace place{head.h / (args.in.shape.heads / args.key_heads), turn > 0};
    float dwk[D / 2] = {};
    int c = walk.from;
    for (; c >= walk.to && !walk.is_far(c); --c)
        make_gradient<D, kMap, false>(args, head, room, barriers, walk, place, c, dwk);
    for (; c >= walk.to; --c) make_gradient<D, kMap, true>(args, head, room, barriers, walk, place, c, dwk);
    if (kMap) store_dwk<D>(dwk, args.dwk_parts + (head.item * args.in.shape.segments + head.segment) * D * kFusedMap);
    release(barriers.q_free[walk.row_stage(walk.to)]);
    release(barriers.dn_free[walk.row_stage(walk.to)]);
    release(barriers.maps_free);
    if (turn + 1 == args.heads_together && threadIdx.x % kWarpgroup == 0) store_wait();
}

}  // namespace lc::kernels::hybrid_keys

#endif
