// Stage 1's walks on Hopper: what a warpgroup makes that has the features of one sign, softmax(u) or softmax(-u).
#pragma once
#include "kernels/hybrid_attention/hybrid_roles_maps.cuh"

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

namespace lc::kernels::transfer_signs {

using hybrid_roles::FeatureTile;
using hybrid_roles::Panel;
using WeightTile = WgmmaTile<8, 64>;  // weights of 64 rows in each of its rows, and they add up

__device__ __forceinline__ Panel of_sign(const FeatureTile& tile, int sign) {
    return {tile.data + sign * FeatureTile::kPanel};
}
__device__ __forceinline__ float sign_factor(int sign) {
    return sign == 0 ? kLog2E : -kLog2E;
}

// Features of one sign of the rows accumulator_row() and eight below: columns 16 i .. of [64,F] as operands.
struct SignFeatures {
    FragmentA x[kFusedMap / 16];

    // softmax(u) or softmax(-u): `by` is sign_factor. Without a shift, and with nothing below the least feature, where no |u| of the warp's
    // rows passes kTame. Exponentials take the place of u.
    __device__ __forceinline__ void make(float (&u)[kFusedMap / 2], float by) {
        float most[4] = {}, shift[2] = {}, sum[2] = {};
#pragma unroll
        for (int j = 0; j < kFusedMap / 2; ++j) most[j % 4] = fmaxf(most[j % 4], fabsf(u[j]));
        const bool tame = __all_sync(0xffffffffu, fmaxf(fmaxf(most[0], most[1]), fmaxf(most[2], most[3])) <= kTame);
        if (!tame) {
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                shift[half] = -INFINITY;
#pragma unroll
                for (int j = 2 * half; j < kFusedMap / 2; j += 4)
                    shift[half] = fmaxf(shift[half], fmaxf(u[j] * by, u[j + 1] * by));
                shift[half] = quad_max(shift[half]);
            }
        }
#pragma unroll
        for (int j = 0; j < kFusedMap / 2; ++j) {
            u[j] = exp2_approx(fmaf(u[j], by, -shift[j / 2 % 2]));
            sum[j / 2 % 2] += u[j];
        }
#pragma unroll
        for (int half = 0; half < 2; ++half) sum[half] = hybrid_roles::reciprocal(quad_sum(sum[half]));
#pragma unroll
        for (int i = 0; i < kFusedMap / 16; ++i)
#pragma unroll
            for (int r = 0; r < 4; ++r) {
                const float* from = u + 8 * i + 2 * r;
                x[i].r[r] = pack_bf16(sum[r % 2] * from[0], sum[r % 2] * from[1]);
            }
        if (tame) return;
#pragma unroll
        for (FragmentA& part : x)
#pragma unroll
            for (uint32_t& pair : part.r) at_least(pair);
    }
    __device__ __forceinline__ void store(const Panel& panel) const {
#pragma unroll
        for (int i = 0; i < kFusedMap / 16; ++i) store_operand(panel, x[i], i);
    }
    // What this warp stored.
    __device__ __forceinline__ void load(const Panel& panel) {
#pragma unroll
        for (int i = 0; i < kFusedMap / 16; ++i) x[i] = load_wgmma_a(panel, 0, 16 * i);
    }
    // f(pair of features, row half, place in accumulators, column)
    template <class F>
    __device__ __forceinline__ void each(F&& f) const {
#pragma unroll
        for (int i = 0; i < kFusedMap / 16; ++i)
#pragma unroll
            for (int r = 0; r < 4; ++r)
                f(unpack_bf16(x[i].r[r]), r % 2, 8 * i + 2 * r, 16 * i + r / 2 * 8 + 2 * quad_lane());
    }

  private:
    static constexpr float kTame = 10;  // exp(-2 kTame) / F > 1e-12

    static __device__ __forceinline__ void at_least(uint32_t& pair) {
        __nv_bfloat162& x = reinterpret_cast<__nv_bfloat162&>(pair);
        x = __hmax2(x, __float2bfloat162_rn(static_cast<float>(kFeatureEpsilon)));
    }
};

// Back from g [64,F], the gradient of features, through their softmax: this sign's share of du, columns of rows as operands. Takes the
// products of features and gradients of both rows.
__device__ __forceinline__ void put_du(const float (&g)[kFusedMap / 2], const SignFeatures& phi, float2 dots, int sign,
                                       const Panel& to) {
    const uint32_t flip = sign == 0 ? 0 : 0x80008000u;
#pragma unroll
    for (int i = 0; i < kFusedMap / 16; ++i) {
        FragmentA pairs;
#pragma unroll
        for (int r = 0; r < 4; ++r) {
            const float2 x = unpack_bf16(phi.x[i].r[r]);
            const float *from = g + 8 * i + 2 * r, dot = r % 2 == 0 ? dots.x : dots.y;
            pairs.r[r] = pack_bf16(x.x * (from[0] - dot), x.y * (from[1] - dot)) ^ flip;
        }
        store_operand(to, pairs, i);
    }
}

// This sign's half of a sum of phi^T values [F',D], and of phi's own sum over weighted rows [F'].
template <int D>
struct SignSums {
    float s[D / 2], z[4];

    // From [F',D] and [F'] in memory, or zeros.
    __device__ __forceinline__ void begin(const float* from, int sign) {
        const int first = sign * kFusedMap + accumulator_row();
#pragma unroll
        for (int j = 0; j < D / 2; ++j)
            s[j] = from ? from[(first + j / 2 % 2 * 8) * D + j / 4 * 8 + 2 * quad_lane() + j % 2] : 0;
#pragma unroll
        for (int j = 0; j < 4; ++j) z[j] = from ? from[kFusedFeatures * D + first + j / 2 * 8] : 0;
    }
    // Queues what the rows of a block add.
    __device__ __forceinline__ void add(const Panel& phi, const WgmmaTile<kFusedRows, D>& values,
                                        const WeightTile& weights) {
        const WgmmaDescriptor left = mn_major(phi), right = mn_major(values), more = k_major(weights);
        wgmma_fence();
#pragma unroll
        for (int k = 0; k < kFusedRows; k += 16) {
            wgmma_ss<Major::MN, Major::MN>(s, left + 64 * k, right + 64 * k, true);
            wgmma_ss<Major::K, Major::MN>(z, left + 64 * k, more + k, true);
        }
        wgmma_commit();
    }
    __device__ __forceinline__ void settle() {
        wgmma_settle(s), wgmma_settle(z);
    }

    // A bf16 copy for products.
    __device__ __forceinline__ void publish(const WgmmaTile<kFusedFeatures, D>& copy, int sign) const {
        const WgmmaTile<kFusedFeatures, D> rows{copy.data + sign * kFusedMap * 64};
#pragma unroll
        for (int j = 0; j < D / 16; ++j) store_operand(rows, wgmma_operand(s, j), j);
    }
    // Of phi, [F] of this sign, where all rows of weights are the same.
    __device__ __forceinline__ void publish_totals(float* to) const {
        if (quad_lane() == 0) to[accumulator_row()] = z[0], to[accumulator_row() + 8] = z[2];
    }
};

// A map's gradient [D,F]: of D = 128 64 rows for either sign, by du of both; of D = 64 all rows, by du of this sign.
template <int D>
struct SignMap {
    static constexpr int kParts = D / 64;
    float w[kFusedMap / 2] = {};

    // Queues W += x^T du.
    __device__ __forceinline__ void add(const WgmmaTile<kFusedRows, D>& x, const FeatureTile& du, int sign) {
        const WgmmaDescriptor left = mn_major(Panel{x.data + (kParts == 1 ? 0 : sign * x.kPanel)});
        wgmma_fence();
#pragma unroll
        for (int part = 0; part < kParts; ++part) {
            const WgmmaDescriptor right = mn_major(of_sign(du, kParts == 1 ? sign : part));
#pragma unroll
            for (int k = 0; k < kFusedRows; k += 16)
                wgmma_ss<Major::MN, Major::MN>(w, left + 64 * k, right + 64 * k, true);
        }
        wgmma_commit();
    }
    // To [D,F], by all threads of both signs, who meet at `barrier`; `room` [F / 2, kWarpgroup] is nobody's any more.
    __device__ __forceinline__ void store(float* to, int sign, float* room, int barrier) {
        if constexpr (kParts == 1) {
            float* mine = room + threadIdx.x % kWarpgroup;
#pragma unroll
            for (int j = 0; j < kFusedMap / 2; ++j)
                if (sign == 1) mine[j * kWarpgroup] = w[j];
            named_sync<2 * kWarpgroup>(barrier);
            if (sign == 1) return;
#pragma unroll
            for (int j = 0; j < kFusedMap / 2; ++j) w[j] += mine[j * kWarpgroup];
        }
        const int row = 64 * sign + accumulator_row();
#pragma unroll
        for (int j = 0; j < kFusedMap / 2; j += 2)
            *reinterpret_cast<float2*>(to + (row + j / 2 % 2 * 8) * kFusedMap + j / 4 * 8 + 2 * quad_lane()) =
                make_float2(w[j], w[j + 1]);
    }
};

}  // namespace lc::kernels::transfer_signs

#endif
