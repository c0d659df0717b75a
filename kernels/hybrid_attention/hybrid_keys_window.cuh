// The window's role in the walk over the keys (hybrid_keys.cuh): weights P and gradients of scores dS of the rows of blocks c + 1 and c.
#pragma once
#include "kernels/hybrid_attention/hybrid_keys.cuh"

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

namespace lc::kernels::hybrid_keys {

// What the walk over the rows left of this thread's rows accumulator_row() and eight below: zeros where there is no such block.
struct RowNumbers {
    float dz[2] = {}, high[2] = {}, part[2] = {}, inverse[2] = {};

    template <int D>
    __device__ __forceinline__ RowNumbers(const KeysRoom<D, true>& room, int stage, bool there) {
        if (!there) return;
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const int row = accumulator_row() + 8 * half;
            dz[half] = room.dz(stage)[row], high[half] = room.high(stage)[row];
            part[half] = room.max_part(stage)[row], inverse[half] = room.inverse(stage)[row];
        }
    }
};

// Scores [64,64] and dP -> P and dS as they enter products, in the registers of four columns each. kOwn: rows see keys up to their own.
struct WeightRows {
    FragmentA p[4], ds[4];

    template <bool kOwn>
    __device__ __forceinline__ void make(const float (&s)[32], const float (&dp)[32], const RowNumbers& rows,
                                         float scale, float log_gamma) {
        const int last = accumulator_row() - 2 * quad_lane();
        const float factor = scale * kLog2E;
        float shift[2], dz[2], part[2];
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            // P is over Z, and 0 where there are no rows
            shift[half] = log_gamma - rows.high[half] * factor + __log2f(rows.inverse[half]);
            dz[half] = rows.inverse[half] == 0 ? 0.0f : scale * __fdividef(rows.dz[half], rows.inverse[half]);
            part[half] = -scale * rows.part[half];
        }
#pragma unroll
        for (int i = 0; i < 4; ++i)
#pragma unroll
            for (int r = 0; r < 4; ++r) {
                const int at = 8 * i + 2 * r, half = r % 2, key = 16 * i + r / 2 * 8;
                float score[2] = {s[at], s[at + 1]}, gradient[2];
                if (kOwn) {
                    if (key - 8 * half > last) score[0] = -INFINITY;
                    if (key + 1 - 8 * half > last) score[1] = -INFINITY;
                }
                p[i].r[r] = pack_bf16(exp2_approx(fmaf(score[0], factor, shift[half])),
                                      exp2_approx(fmaf(score[1], factor, shift[half])));
                const float2 rounded = unpack_bf16(p[i].r[r]);
#pragma unroll
                for (int k = 0; k < 2; ++k)
                    gradient[k] = fmaf(k == 0 ? rounded.x : rounded.y, fmaf(dp[at + k], scale, dz[half]),
                                       score[k] == rows.high[half] ? part[half] : 0);
                ds[i].r[r] = pack_bf16(gradient[0], gradient[1]);
            }
    }
    static __device__ __forceinline__ void store(const Panel& to, const FragmentA (&x)[4]) {
#pragma unroll
        for (int i = 0; i < 4; ++i) store_operand(to, x[i], i);
    }
};

template <int D>
__device__ __forceinline__ void make_window(const KeysArgs& args, const FusedHead& head, int turn,
                                            const KeysRoom<D, true>& room, KeysBarriers& barriers) {
    const KeysWalk<true> walk(head, args.in.shape.blocks, turn);
    const float scale = args.in.shape.scale;
    const float log_gamma = log2f(fmaxf(DeviceMix(args.in.mix_logit, args.in.spec, head.h).gamma, kLeastGamma));
    for (int c = walk.from; c >= walk.to; --c) {
        const int stage = walk.row_stage(c), stage_next = stage ^ 1, parity = walk.step(c) % 2;
        float s[32], dp[32];
        const auto multiply = [&](int from) {
            wgmma_fence();
            multiply_rows<kFusedRows>(s, room.q(from), 0, room.k(0));
            multiply_rows<kFusedRows>(dp, room.dn(from), 0, room.v(0));
            wgmma_commit();
            wgmma_wait<0>();
            wgmma_settle(s);
            wgmma_settle(dp);
        };
        barriers.q_full[stage_next].wait(walk.row_parity(c + 1));
        barriers.dn_full[stage_next].wait(walk.row_parity(c + 1));
        barriers.k_full[0].wait(parity);
        barriers.v_full[0].wait(parity);
        multiply(stage_next);
        release(barriers.q_free[stage_next]);
        WeightRows made;
        made.make<false>(s, dp, RowNumbers(room, stage_next, c + 1 < walk.blocks), scale, log_gamma);
        barriers.dn_free[stage_next].arrive();
        barriers.weights_free.wait(parity ^ 1);
        made.store(room.weights(0), made.p);
        barriers.gradients_free.wait(parity ^ 1);
        made.store(room.score_gradients(0), made.ds);
        fence_async_proxy();
        barriers.weights_full[0].arrive();

        barriers.q_full[stage].wait(walk.row_parity(c));
        barriers.dn_full[stage].wait(walk.row_parity(c));
        multiply(stage);
        release(barriers.k_free[0]);
        release(barriers.v_free[0]);
        made.make<true>(s, dp, RowNumbers(room, stage, true), scale, log_gamma);
        made.store(room.weights(1), made.p), made.store(room.score_gradients(1), made.ds);
        fence_async_proxy();
        barriers.weights_full[1].arrive();
    }
    release(barriers.q_free[walk.row_stage(walk.to)]);
    barriers.dn_free[walk.row_stage(walk.to)].arrive();
}

}  // namespace lc::kernels::hybrid_keys

#endif
