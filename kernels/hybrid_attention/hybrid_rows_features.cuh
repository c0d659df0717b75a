// The features' role in hybrid_fused_backward_rows_sm90.cu: phi_q and its product with z, back through it to D and du; phi_k.
#pragma once
#include "kernels/hybrid_attention/hybrid_rows.cuh"

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

namespace lc::kernels::hybrid_rows {

using FeatureRows = hybrid_roles::CompactFeatureRows;

// dphi of the rows accumulator_row() (half 0) and eight below (half 1), over a factor 1 / Z.
struct FeatureGradientRows {
    float g[kFusedFeatures / 2];

    // To g = dy S^T comes shift z; clamped features have no gradient. Returns phi+ . g+ and phi- . g- of both rows.
    __device__ __forceinline__ void finish(const FeatureRows& phi, bool all_live, const float* z,
                                           const float (&shift)[2], float (&positive)[2], float (&negative)[2]) {
        positive[0] = positive[1] = negative[0] = negative[1] = 0;
#pragma unroll
        for (int j = 0; j < kFusedMap / 8; ++j) {
            const float2 up = *reinterpret_cast<const float2*>(z + 8 * j + 2 * quad_lane());
            const float2 down = *reinterpret_cast<const float2*>(z + kFusedMap + 8 * j + 2 * quad_lane());
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                const float2 p = unpack_bf16(pair_of(phi.p, half, j)), n = unpack_bf16(pair_of(phi.n, half, j));
                float *a = of_positive(half, j), *b = of_negative(half, j);
                a[0] = fmaf(shift[half], up.x, a[0]), a[1] = fmaf(shift[half], up.y, a[1]);
                b[0] = fmaf(shift[half], down.x, b[0]), b[1] = fmaf(shift[half], down.y, b[1]);
                if (!all_live) {
                    if (!is_live(p.x)) a[0] = 0;
                    if (!is_live(p.y)) a[1] = 0;
                    if (!is_live(n.x)) b[0] = 0;
                    if (!is_live(n.y)) b[1] = 0;
                }
                positive[half] = fmaf(p.x, a[0], fmaf(p.y, a[1], positive[half]));
                negative[half] = fmaf(n.x, b[0], fmaf(n.y, b[1], negative[half]));
            }
        }
#pragma unroll
        for (int half = 0; half < 2; ++half)
            positive[half] = quad_sum(positive[half]), negative[half] = quad_sum(negative[half]);
    }
    // du = p (g+ - <p,g+>) - n (g- - <n,g->), times 1 / Z: columns 16 i .. 16 i + 15 as an operand.
    __device__ __forceinline__ FragmentA through_softmax(const FeatureRows& phi, int i, const float (&positive)[2],
                                                         const float (&negative)[2], const float (&inverse)[2]) {
        FragmentA du;
#pragma unroll
        for (int r = 0; r < 4; ++r) {
            const int half = r % 2, j = 2 * i + r / 2;
            const float2 p = unpack_bf16(pair_of(phi.p, half, j)), n = unpack_bf16(pair_of(phi.n, half, j));
            const float *a = of_positive(half, j), *b = of_negative(half, j);
            const float left = p.x * (a[0] - positive[half]) - n.x * (b[0] - negative[half]);
            const float right = p.y * (a[1] - positive[half]) - n.y * (b[1] - negative[half]);
            du.r[r] = pack_bf16(left * inverse[half], right * inverse[half]);
        }
        return du;
    }

  private:
    __device__ __forceinline__ float* of_positive(int half, int j) {
        return g + 4 * j + 2 * half;
    }
    __device__ __forceinline__ float* of_negative(int half, int j) {
        return g + kFusedMap / 2 + 4 * j + 2 * half;
    }
    static __device__ __forceinline__ uint32_t pair_of(const FragmentA (&x)[kFusedMap / 16], int half, int j) {
        return x[j / 2].r[j % 2 * 2 + half];
    }
    static __device__ __forceinline__ bool is_live(float value) {
        return value > unpack_bf16(pack_bf16(static_cast<float>(kFeatureEpsilon), 0)).x;
    }
};

// Makes the compiler unpack features again rather than keep them in f32.
__device__ __forceinline__ void keep_packed(FeatureRows& phi) {
#pragma unroll
    for (int i = 0; i < kFusedMap / 16; ++i)
#pragma unroll
        for (int r = 0; r < 4; ++r) asm volatile("" : "+r"(phi.p[i].r[r]), "+r"(phi.n[i].r[r]));
}

// Back from g = dy S^T to D and du. Returns this thread's share of the sum of D.
template <int D>
__device__ __forceinline__ float make_du(FeatureGradientRows& dphi, FeatureRows& phi, bool all_live,
                                         const RowsRoom<D>& room, RowsBarriers& barriers, const RowsWalk& walk, int b) {
    const int side = walk.side(b), row = accumulator_row();
    const float shift[2] = {-room.dot(side)[row], -room.dot(side)[row + 8]};
    float positive[2], negative[2];
    dphi.finish(phi, all_live, room.z().z, shift, positive, negative);
    const float all[2] = {positive[0] + negative[0], positive[1] + negative[1]};
    barriers.du_free.wait(walk.far_step(b) % 2 ^ 1);
    if (quad_lane() == 0) room.all()[row] = all[0], room.all()[row + 8] = all[1];
    barriers.all_full.arrive();  // the window goes on with that while du is made
    barriers.inverse_full.wait(walk.step(b) % 2);
    const float inverse[2] = {room.inverse(side)[row], room.inverse(side)[row + 8]};
    keep_packed(phi);
    const float sum = quad_lane() == 0 ? -inverse[0] * all[0] - inverse[1] * all[1] : 0;
#pragma unroll
    for (int i = 0; i < kFusedMap / 16; ++i)
        store_operand(room.du(), dphi.through_softmax(phi, i, positive, negative, inverse), i);
    fence_async_proxy();
    barriers.du_full.arrive();
    return sum;
}

// A step of the features: with a state to read phi_q(b) and its gradients, with one to come phi_k(b-1). Both are made by one piece of
// code: instructions that no cache holds are what this role waits for. phi_k comes first, so that the state grows while phi_q is made.
// Returns this thread's share of the sum of D.
template <int D, bool Far, bool Grows>
__device__ __forceinline__ float make_features(const RowsRoom<D>& room, RowsBarriers& barriers, const RowsWalk& walk,
                                               int b) {
    const int side = walk.side(b), row = accumulator_row(), before = walk.stage(b - 1);
    FeatureRows phi;
    bool all_live = true;
    const auto wait = [&](bool of_queries) {
        if (of_queries)
            barriers.q_full[side].wait(walk.turn(b));
        else
            barriers.k_full[before].wait(walk.parity(b - 1));
    };
    const auto let_go = [&](bool of_queries) { release(of_queries ? barriers.q_free[side] : barriers.k_free[before]); };
    const auto make = [&](bool of_queries) {
        float u[kFusedMap / 2];
        wait(of_queries);
        hybrid_roles::project<D>(u, of_queries ? room.q(side) : room.k(before), room.map(of_queries ? 0 : 1));
        wgmma_wait<0>();
        wgmma_settle(u);
        let_go(of_queries);
        const bool live = phi.make(u);
        if (of_queries) {
            all_live = live;
            return;
        }
        barriers.phi_k_free.wait(walk.growth(b) % 2 ^ 1);
        phi.store(room.phi_k());
        fence_async_proxy();
        barriers.phi_k_full.arrive();
    };
    if constexpr (Far && Grows) {
#pragma unroll 1
        for (int i = 0; i < 2; ++i) make(i != 0);
    } else {  // what is not read is released: arrivals stay in step
        if constexpr (Far) make(true);
        if constexpr (Grows) make(false);
        if constexpr (!Far) wait(true), let_go(true);
        if constexpr (!Grows) wait(false), let_go(false);
    }
    barriers.dy_full.wait(walk.step(b) % 2);
    if constexpr (!Far) {
        release(barriers.dy_free);
        return 0;
    }
    barriers.state_full.wait(walk.totals(b) % 2);
    FeatureGradientRows dphi;
    wgmma_fence();
    multiply_rows<kFusedFeatures>(dphi.g, room.dy(), 0, room.state());
    wgmma_commit();
    const float2 sums = phi.dot(room.z());
    if (quad_lane() == 0) room.far()[row] = sums.x, room.far()[row + 8] = sums.y;
    barriers.dot_full.wait(walk.step(b) % 2);  // before 1 / Z can be there: the next block's dy.y comes after that
    barriers.far_full.arrive();
    wgmma_wait<0>();
    wgmma_settle(dphi.g);
    release(barriers.dy_free);
    return make_du<D>(dphi, phi, all_live, room, barriers, walk, b);
}

template <int D>
__device__ __forceinline__ void make_all_features(const FusedRowsArgs& args, const FusedHead& head,
                                                  const RowsRoom<D>& room, RowsBarriers& barriers) {
    const RowsWalk walk(head);
    const int thread = threadIdx.x % kWarpgroup;
    load_map<D, kWarpgroup>(room.map(0), args.in.wq, head.h, thread);
    load_map<D, kWarpgroup>(room.map(1), args.in.wk, head.hs, thread);
    fence_async_proxy();
    named_sync<kWarpgroup>(kFeaturesBarrier);
    double da = 0;
    hybrid_roles::each_step(
        walk, [&](int b, auto far, auto grows) { da += make_features<D, far(), grows()>(room, barriers, walk, b); });
    da = warp_sum(da);
    if (thread % kWarp == 0) room.sums()[thread / kWarp] = da;
    named_sync<kWarpgroup>(kFeaturesBarrier);
    if (thread != 0) return;
    double total = 0;
    for (int i = 0; i < kWarpgroup / kWarp; ++i) total += room.sums()[i];
    args.da_parts[head.part()] = total;
}

}  // namespace lc::kernels::hybrid_rows

#endif
