// Features as the walks of the gradients make them on Hopper: by little code.
#pragma once
#include "kernels/hybrid_attention/hybrid_roles_maps.cuh"

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

namespace lc::kernels::hybrid_roles {

// Their roles wait for instructions that no cache holds. One piece of code tries a softmax without a shift and then with one, and needs few
// registers: a row's exponentials at a time.
struct CompactFeatureRows : FeatureRows {
    // u [64,F] -> features, times `factor` of the rows accumulator_row() and eight below. While no sum of the warp's rows passes kTame,
    // no |u| is so large that an exponential could overflow, or a feature be below the least one. Returns whether that was so for all
    // of this warp's rows: no feature is the least one.
    __device__ __forceinline__ bool make(const float (&u)[kFusedMap / 2], const float (&factor)[2] = {1, 1}) {
        bool all_tame = true;
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            float up[kShare], down[kShare], high = 0, low = 0;
            float2 sum;
            bool tame = true;
            asm volatile(""
                         : "+f"(high), "+f"(low));  // unknown, or the compiler makes the first try a piece of its own
#pragma unroll 1
            while (true) {
                sum = make_exponentials(u, half, high, low, up, down);
                if (!tame || __all_sync(0xffffffffu, sum.x <= kTame && sum.y <= kTame)) break;
                all_tame = tame = false;
                high = low = value(u, half, 0);
#pragma unroll
                for (int j = 1; j < kShare; ++j)
                    high = fmaxf(high, value(u, half, j)), low = fminf(low, value(u, half, j));
                high = quad_max(high) * kLog2E, low = -quad_max(-low) * kLog2E;
            }
            const float by_p = reciprocal(quad_sum(sum.x)) * factor[half];
            const float by_n = reciprocal(quad_sum(sum.y)) * factor[half];
#pragma unroll
            for (int j = 0; j < kShare; j += 2) {
                const int r = j / 2 % 2 * 2 + half;
                p[j / 4].r[r] = pack_bf16(by_p * up[j], by_p * up[j + 1]);
                n[j / 4].r[r] = pack_bf16(by_n * down[j], by_n * down[j + 1]);
                if (!tame) at_least(p[j / 4].r[r]), at_least(n[j / 4].r[r]);
            }
        }
        return all_tame;
    }

  private:
    static constexpr int kShare = kFusedMap / 4;  // columns of a row in one thread
    static constexpr float kTame = 5e4f;          // 1 / (4 kTame^2) > 1e-12

    static __device__ __forceinline__ float value(const float (&u)[kFusedMap / 2], int half, int j) {
        return u[j / 2 * 4 + 2 * half + j % 2];
    }
    // up = exp2(log2e u - high), down = exp2(low - log2e u); this thread's sums of them
    static __device__ __forceinline__ float2 make_exponentials(const float (&u)[kFusedMap / 2], int half, float high,
                                                               float low, float (&up)[kShare], float (&down)[kShare]) {
        float2 sum = make_float2(0, 0);
#pragma unroll
        for (int j = 0; j < kShare; ++j) {
            const float x = value(u, half, j);
            up[j] = exp2_approx(fmaf(x, kLog2E, -high)), down[j] = exp2_approx(fmaf(x, -kLog2E, low));
            sum.x += up[j], sum.y += down[j];
        }
        return sum;
    }
    static __device__ __forceinline__ void at_least(uint32_t& pair) {
        __nv_bfloat162& x = reinterpret_cast<__nv_bfloat162&>(pair);
        x = __hmax2(x, __float2bfloat162_rn(static_cast<float>(kFeatureEpsilon)));
    }
};

}  // namespace lc::kernels::hybrid_roles

#endif
