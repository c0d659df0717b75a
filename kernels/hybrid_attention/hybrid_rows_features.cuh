// The features' role in hybrid_fused_backward_rows_sm90.cu and kernels/transfer_loss/transfer_loss_rows_sm90.cu: phi_q and its product with
// z, back through it to D and du; phi_k.
#pragma once
#include "kernels/hybrid_attention/hybrid_rows.cuh"

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

namespace lc::kernels::hybrid_rows {

using hybrid_roles::FeatureRows;

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

// A step of the features: with a state to read phi_q(b) and its gradients (Far), with one to come phi_k(b-1) (Grows). Returns this thread's
// share of the sum of D.
template <int D, Upstream U, bool Far, bool Grows>
__device__ __forceinline__ float make_features(const RowsRoom<D>& room, RowsBarriers& barriers, const RowsWalk& walk,
                                               int b) {
    const int side = walk.side(b), parity = walk.step(b) % 2, row = accumulator_row(), before = walk.stage(b - 1);
    float u[kFusedMap / 2], sum = 0;
    FeatureRows phi;
    barriers.q_full[side].wait(walk.turn(b));  // also where q is not read: arrivals at q_free stay in step
    if constexpr (Far) {
        hybrid_roles::project<D>(u, room.q(side), room.map(0));
        wgmma_wait<0>();
        wgmma_settle(u);
    }
    release(barriers.q_free[side]);
    barriers.dy_full.wait(parity);
    if constexpr (Far) {
        const bool all_live = phi.make(u);
        if constexpr (U != Upstream::given) {  // the window needs phi_q: it takes the place of phi_k for a while
            barriers.phi_k_free.wait(walk.growth(b) % 2 ^ 1);
            phi.store(room.phi_k());
            fence_async_proxy();
        }
        barriers.state_full.wait(walk.totals(b) % 2);
        FeatureGradientRows dphi;
        const auto multiply_state = [&] {
            wgmma_fence();
            multiply_rows<kFusedFeatures>(dphi.g, room.dy(), 0, room.state());
            wgmma_commit();
        };
        if constexpr (U == Upstream::given) multiply_state();
        const float2 far = phi.dot(room.z());
        if (quad_lane() == 0) room.far()[row] = far.x, room.far()[row + 8] = far.y;
        if constexpr (U == Upstream::given)
            barriers.dot_full.wait(parity);  // before 1 / Z can be there: the next block's dy.y comes after that
        barriers.far_full.arrive();
        if constexpr (U != Upstream::given) barriers.made_full.wait(walk.far_step(b) % 2);
        if constexpr (U == Upstream::made) multiply_state();
        if constexpr (U != Upstream::none) {
            const float shift[2] = {-room.dot(side)[row], -room.dot(side)[row + 8]};
            wgmma_wait<0>();
            wgmma_settle(dphi.g);
            release(barriers.dy_free);
            float positive[2], negative[2], inverse[2] = {1, 1};
            dphi.finish(phi, all_live, room.z().z, shift, positive, negative);
            if constexpr (U == Upstream::given) {
                barriers.inverse_full.wait(parity);
                inverse[0] = room.inverse(side)[row], inverse[1] = room.inverse(side)[row + 8];
            }
            keep_packed(phi);
            const float all[2] = {-inverse[0] * (positive[0] + negative[0]), -inverse[1] * (positive[1] + negative[1])};
            barriers.du_free.wait(walk.far_step(b) % 2 ^ 1);
            if (quad_lane() == 0) {
                room.all()[row] = all[0], room.all()[row + 8] = all[1];
                sum = all[0] + all[1];
            }
#pragma unroll
            for (int i = 0; i < kFusedMap / 16; ++i)
                store_operand(room.du(), dphi.through_softmax(phi, i, positive, negative, inverse), i);
            fence_async_proxy();
            barriers.du_full.arrive();
        } else {
            release(barriers.dy_free);
        }
    } else {
        release(barriers.dy_free);
    }
    barriers.k_full[before].wait(walk.parity(b - 1));
    if constexpr (Grows) {
        hybrid_roles::project<D>(u, room.k(before), room.map(1));
        wgmma_wait<0>();
        wgmma_settle(u);
    }
    release(barriers.k_free[before]);
    if constexpr (Grows) {
        phi.make(u);
        if constexpr (!Far || U == Upstream::given) barriers.phi_k_free.wait(walk.growth(b) % 2 ^ 1);
        phi.store(room.phi_k());
        fence_async_proxy();
        barriers.phi_k_full.arrive();
    }
    return sum;
}

template <int D, Upstream U>
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
        walk, [&](int b, auto far, auto grows) { da += make_features<D, U, far(), grows()>(room, barriers, walk, b); });
    if constexpr (U == Upstream::none) return;
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
