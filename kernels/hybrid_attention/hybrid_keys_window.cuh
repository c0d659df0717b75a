// The window's role in the walk over the keys (hybrid_keys.cuh): weights P and gradients of scores dS of the rows of blocks c + 1 and c.
#pragma once
#include "kernels/hybrid_attention/hybrid_keys.cuh"

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

namespace lc::kernels::hybrid_keys {

// What the walk over the rows left of this thread's rows accumulator_row() and eight below.
struct RowNumbers {
    float dz[2] = {}, high[2] = {}, part[2] = {};

    // Zeros where there is no block b.
    __device__ __forceinline__ void load(const KeysArgs& args, const FusedHead& head, int b) {
        if (b >= args.in.shape.blocks) return *this = RowNumbers{}, void();
        const int64_t first = (head.item * args.in.shape.blocks + b) * kFusedRows + accumulator_row();
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            dz[half] = args.dz[first + 8 * half], high[half] = args.high[first + 8 * half];
            part[half] = args.max_part[first + 8 * half];
        }
    }
};

// Scores [64,64] and dP -> P and dS as they enter products. kOwn: rows see keys up to their own.
template <bool kOwn>
__device__ __forceinline__ void put_weights(float (&s)[32], const float (&dp)[32], const RowNumbers& rows, float scale,
                                            float log_gamma, const Panel& weights, const Panel& gradients) {
    const int last = accumulator_row() - 2 * quad_lane();
    const float factor = scale * kLog2E;
    float shift[2], dz[2], part[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        shift[half] = log_gamma - rows.high[half] * factor;
        dz[half] = scale * rows.dz[half], part[half] = -scale * rows.part[half];
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        FragmentA p, ds;
#pragma unroll
        for (int r = 0; r < 4; ++r) {
            const int at = 8 * i + 2 * r, half = r % 2, key = 16 * i + r / 2 * 8;
            float score[2] = {s[at], s[at + 1]}, gradient[2];
            if (kOwn) {
                if (key - 8 * half > last) score[0] = -INFINITY;
                if (key + 1 - 8 * half > last) score[1] = -INFINITY;
            }
            p.r[r] = pack_bf16(exp2_approx(fmaf(score[0], factor, shift[half])),
                               exp2_approx(fmaf(score[1], factor, shift[half])));
            const float2 rounded = unpack_bf16(p.r[r]);
            gradient[0] = fmaf(rounded.x, fmaf(dp[at], scale, dz[half]), score[0] == rows.high[half] ? part[half] : 0);
            gradient[1] =
                fmaf(rounded.y, fmaf(dp[at + 1], scale, dz[half]), score[1] == rows.high[half] ? part[half] : 0);
            ds.r[r] = pack_bf16(gradient[0], gradient[1]);
        }
        store_operand(weights, p, i), store_operand(gradients, ds, i);
    }
}

template <int D>
__device__ __forceinline__ void make_window(const KeysArgs& args, const KeysRoom<D, true>& room,
                                            KeysBarriers& barriers) {
    const FusedHead head = head_of<true>(args);
    const KeysWalk<true> walk(head, args.in.shape.blocks);
    const float scale = args.in.shape.scale;
    const float log_gamma = log2f(fmaxf(DeviceMix(args.in.mix_logit, args.in.spec, head.h).gamma, kLeastGamma));
    for (int c = walk.from; c >= walk.to; --c) {
        const int stage = walk.row_stage(c), stage_next = stage ^ 1, parity = walk.step(c) % 2;
        float s[32], dp[32];
        RowNumbers rows;
        const auto multiply = [&](int b, int from) {
            rows.load(args, head, b);
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
        multiply(c + 1, stage_next);
        release(barriers.q_free[stage_next]);
        release(barriers.dn_free[stage_next]);
        barriers.weights_free.wait(parity ^ 1);
        put_weights<false>(s, dp, rows, scale, log_gamma, room.weights(0), room.score_gradients(0));
        fence_async_proxy();
        barriers.weights_full[0].arrive();

        barriers.q_full[stage].wait(walk.row_parity(c));
        barriers.dn_full[stage].wait(walk.row_parity(c));
        multiply(c, stage);
        release(barriers.k_free[0]);
        release(barriers.v_free[0]);
        put_weights<true>(s, dp, rows, scale, log_gamma, room.weights(1), room.score_gradients(1));
        fence_async_proxy();
        barriers.weights_full[1].arrive();
    }
}

}  // namespace lc::kernels::hybrid_keys

#endif
