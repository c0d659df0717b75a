// The scores' role in hybrid_fused_forward_sm90.cu: weights of the window and 1 / Z.
#pragma once
#include "kernels/hybrid_attention/hybrid_roles.cuh"

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

namespace lc::kernels::hybrid_roles {

// Scores of two rows against the block before and their own -> weights as rounded for products, and in lanes with
// quad_lane() == 0 their sums.
__device__ __forceinline__ float2 weigh(float (&before)[32], float (&own)[32], float factor, float log_gamma,
                                        bool first_block, FragmentA (&p)[8]) {
    const int last = accumulator_row() - 2 * quad_lane();
#pragma unroll
    for (int i = 0; i < 32; ++i)
        if (i / 4 * 8 + i % 2 - i / 2 % 2 * 8 > last) own[i] = -INFINITY;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const auto at = [&](const float(&x)[32], int j) { return x[j / 2 * 4 + 2 * half + j % 2]; };
        float top_before = -INFINITY, top = -INFINITY;
#pragma unroll
        for (int j = 0; j < 16; ++j) top_before = fmaxf(top_before, at(before, j)), top = fmaxf(top, at(own, j));
        top = quad_max(first_block ? top : fmaxf(top, top_before));
        const float shift = log_gamma - top * factor;
        const auto pairs = [&](const float(&x)[32], float by, int first) {
#pragma unroll
            for (int j = 0; j < 16; j += 2)
                p[first + j / 4].r[j / 2 % 2 * 2 + half] =
                    pack_bf16(exp2_approx(fmaf(at(x, j), factor, by)), exp2_approx(fmaf(at(x, j + 1), factor, by)));
        };
        pairs(before, first_block ? -INFINITY : shift, 0), pairs(own, shift, 4);
    }
    constexpr uint32_t kOnes = 0x3f803f80u;
    Accumulator sum = {};
#pragma unroll
    for (int i = 0; i < 8; ++i) mma(sum, p[i], FragmentB{{kOnes, kOnes}}, 0);
    return make_float2(sum.c[0], sum.c[2]);
}

template <int D>
__device__ __forceinline__ void make_weights(const ForwardArgs& args, const FusedHead& head, const ForwardRoom<D>& room,
                                             ForwardBarriers& barriers) {
    const Walk walk(head);
    const float factor = args.in.shape.scale * kLog2E;
    const float log_gamma = log2f(fmaxf(DeviceMix(args.in.mix_logit, args.in.spec, head.h).gamma, kLeastGamma));
    barriers.k_full[walk.stage(walk.first - 1)].wait(walk.parity(walk.first - 1));
    for (int b = walk.first; b < walk.last; ++b) {
        const int side = walk.side(b);
        float before[32], own[32];
        FragmentA p[8];
        barriers.q_full[side].wait(walk.turn(b));
        barriers.k_full[walk.stage(b)].wait(walk.parity(b));
        wgmma_fence();
        multiply_rows<kFusedRows>(before, room.q(side), 0, room.k(walk.stage(b - 1)));
        multiply_rows<kFusedRows>(own, room.q(side), 0, room.k(walk.stage(b)));
        wgmma_commit();
        wgmma_wait<0>();
        wgmma_settle(before);
        wgmma_settle(own);
        release(barriers.q_free[side]);
        release(barriers.k_free[walk.stage(b - 1)]);
        const float2 sum = weigh(before, own, factor, log_gamma, b == 0, p);
        float2 total = sum;
        if (walk.reads_state(b)) {
            const int stage = walk.far_step(b) & 1;
            barriers.phi_q_full[stage].wait(walk.far_step(b) / 2 % 2);
            total.x += room.far(stage)[accumulator_row()], total.y += room.far(stage)[accumulator_row() + 8];
        }
        barriers.p_free.wait(side ^ 1);
#pragma unroll
        for (int i = 0; i < 8; ++i) store_operand(room.p(), p[i], i);
        if (quad_lane() == 0) {
            room.inverse(side)[accumulator_row()] = reciprocal(total.x);
            room.inverse(side)[accumulator_row() + 8] = reciprocal(total.y);
        }
        fence_async_proxy();
        barriers.p_full.arrive();
    }
}

}  // namespace lc::kernels::hybrid_roles

#endif
