// The maps' role in hybrid_fused_forward_sm90.cu: phi_q and its product with z, phi_k.
#pragma once
#include "kernels/hybrid_attention/hybrid_roles.cuh"

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

namespace lc::kernels::hybrid_roles {

// This thread's shares of phi of two rows: columns 16 i .. of p(ositive) and n(egative) features as operands.
struct FeatureRows {
    FragmentA p[kFusedMap / 16], n[kFusedMap / 16];

    // u [64,F] -> features. Without a shift while no |u| of the warp's rows passes kTame: no exponential can overflow, no feature be below the
    // least one. All exponentials are then under way at once.
    // Returns whether that was so for all of this warp's rows: no feature is the least one.
    __device__ __forceinline__ bool make(const float (&u)[kFusedMap / 2]) {
        float most[4] = {};
#pragma unroll
        for (int j = 0; j < kFusedMap / 2; ++j) most[j % 4] = fmaxf(most[j % 4], fabsf(u[j]));
        const bool tame = __all_sync(0xffffffffu, fmaxf(fmaxf(most[0], most[1]), fmaxf(most[2], most[3])) <= kTame);
        if (tame)
            make_tame(u);
        else
            make_shifted(u);
        return tame;
    }
    __device__ __forceinline__ void store(const FeatureTile& tile) const {
#pragma unroll
        for (int i = 0; i < kFusedMap / 16; ++i)
            store_operand(tile, p[i], i), store_operand(tile, n[i], kFusedMap / 16 + i);
    }
    // phi . z of the rows accumulator_row() and eight below, in lanes with quad_lane() == 0.
    __device__ __forceinline__ float2 dot(const TotalsTile& z) const {
        Accumulator c = {};
#pragma unroll
        for (int i = 0; i < kFusedMap / 16; i += 2) {
            const FragmentB b = z.load(i), below = z.load(kFusedMap / 16 + i);
            mma(c, p[i], b, 0), mma(c, p[i + 1], b, 1);
            mma(c, n[i], below, 0), mma(c, n[i + 1], below, 1);
        }
        return make_float2(c.c[0] + c.c[1], c.c[2] + c.c[3]);
    }

  private:
    static constexpr int kShare = kFusedMap / 4;  // columns of a row in one thread
    static constexpr float kTame = 10;            // exp(-2 kTame) / F > 1e-12

    __device__ __forceinline__ void make_tame(const float (&u)[kFusedMap / 2]) {
        float up[2][kShare], down[2][kShare];
        float2 sum[2];
#pragma unroll
        for (int half = 0; half < 2; ++half) sum[half] = exponentials(u, half, 0, 0, up[half], down[half]);
#pragma unroll
        for (int half = 0; half < 2; ++half) sum[half] = make_float2(quad_sum(sum[half].x), quad_sum(sum[half].y));
#pragma unroll
        for (int half = 0; half < 2; ++half)
            scale(half, make_float2(reciprocal(sum[half].x), reciprocal(sum[half].y)), up[half], down[half]);
    }
    __device__ __forceinline__ void make_shifted(const float (&u)[kFusedMap / 2]) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            float up[kShare], down[kShare], high = at(u, half, 0), low = high;
#pragma unroll
            for (int j = 1; j < kShare; ++j) high = fmaxf(high, at(u, half, j)), low = fminf(low, at(u, half, j));
            const float2 sum = exponentials(u, half, quad_max(high) * kLog2E, -quad_max(-low) * kLog2E, up, down);
            scale(half, make_float2(reciprocal(quad_sum(sum.x)), reciprocal(quad_sum(sum.y))), up, down);
#pragma unroll
            for (int j = 0; j < kShare; j += 2) {
                const int r = j / 2 % 2 * 2 + half;
                clamp(p[j / 4].r[r]), clamp(n[j / 4].r[r]);
            }
        }
    }
    __device__ __forceinline__ void scale(int half, float2 by, const float (&up)[kShare], const float (&down)[kShare]) {
#pragma unroll
        for (int j = 0; j < kShare; j += 2) {
            const int r = j / 2 % 2 * 2 + half;
            p[j / 4].r[r] = pack_bf16(by.x * up[j], by.x * up[j + 1]);
            n[j / 4].r[r] = pack_bf16(by.y * down[j], by.y * down[j + 1]);
        }
    }
    static __device__ __forceinline__ float at(const float (&u)[kFusedMap / 2], int half, int j) {
        return u[j / 2 * 4 + 2 * half + j % 2];
    }
    // up = exp2(log2e u - high), down = exp2(low - log2e u); this thread's sums of them
    static __device__ __forceinline__ float2 exponentials(const float (&u)[kFusedMap / 2], int half, float high,
                                                          float low, float (&up)[kShare], float (&down)[kShare]) {
        float2 sum = make_float2(0, 0);
#pragma unroll
        for (int j = 0; j < kShare; ++j) {
            const float x = at(u, half, j) * kLog2E;
            up[j] = exp2_approx(x - high), down[j] = exp2_approx(low - x);
            sum.x += up[j], sum.y += down[j];
        }
        return sum;
    }
    static __device__ __forceinline__ void clamp(uint32_t& pair) {
        __nv_bfloat162& x = reinterpret_cast<__nv_bfloat162&>(pair);
        x = __hmax2(x, __float2bfloat162_rn(static_cast<float>(kFeatureEpsilon)));
    }
};

// Queues u = x W.
template <int D>
__device__ __forceinline__ void project(float (&u)[kFusedMap / 2], const WgmmaTile<kFusedRows, D>& x,
                                        const WgmmaTile<D, kFusedMap>& w) {
    const WgmmaDescriptor left = k_major(x), right = mn_major(w);
    wgmma_fence();
#pragma unroll
    for (int k = 0; k < D; k += 16)
        wgmma_ss<Major::MN>(u, left + k_offset<WgmmaTile<kFusedRows, D>>(k), right + 64 * k, k > 0);
    wgmma_commit();
}

// Queues u = q(b) W for step b.
template <int D>
__device__ __forceinline__ void project_query(float (&u)[kFusedMap / 2], const ForwardRoom<D>& room,
                                              ForwardBarriers& barriers, const Walk& walk, int b) {
    const int side = walk.side(b);
    barriers.q_full[side].wait(walk.turn(b));
    project<D>(u, room.q(side), room.map(0));
}

// A step of the maps: with a state to read phi_q(b) and its product with z (Far), with a state to come phi_k(b-1) (Grows). A projection is
// queued before what can be done without it; that of q(b) by the step before.
template <int D, bool Far, bool Grows>
__device__ __forceinline__ void make_features(const ForwardRoom<D>& room, ForwardBarriers& barriers, const Walk& walk,
                                              int b, float (&u)[kFusedMap / 2]) {
    const int side = walk.side(b), stage = walk.far_step(b) & 1, before = walk.stage(b - 1);
    FeatureRows phi;
    if constexpr (Far) {
        wgmma_wait<0>();
        wgmma_settle(u);
    } else {
        barriers.q_full[side].wait(walk.turn(b));  // q is not read, but arrivals at q_free stay in step
    }
    release(barriers.q_free[side]);
    if constexpr (Far) phi.make(u);
    barriers.k_full[before].wait(walk.parity(b - 1));
    if constexpr (Grows) project<D>(u, room.k(before), room.map(1));
    if constexpr (Far) {
        barriers.z_full.wait(walk.totals(b) % 2);
        const float2 dot = phi.dot(room.z());
        barriers.phi_q_free[stage].wait(walk.far_step(b) / 2 % 2 ^ 1);
        phi.store(room.phi_q(stage));
        if (quad_lane() == 0) {
            room.far(stage)[accumulator_row()] = dot.x;
            room.far(stage)[accumulator_row() + 8] = dot.y;
        }
        fence_async_proxy();
        barriers.phi_q_full[stage].arrive();
    }
    if constexpr (Grows) {
        wgmma_wait<0>();
        wgmma_settle(u);
    }
    release(barriers.k_free[before]);
    if constexpr (Grows) {
        phi.make(u);
        project_query(u, room, barriers, walk, b + 1);
        barriers.phi_k_free.wait(walk.growth(b) % 2 ^ 1);
        phi.store(room.phi_k());
        fence_async_proxy();
        barriers.phi_k_full.arrive();
    }
}

}  // namespace lc::kernels::hybrid_roles

#endif
