// The window's role in hybrid_fused_backward_rows_sm90.cu: weights, 1 / Z, the gradient of the scores, dq.
#pragma once
#include "kernels/hybrid_attention/hybrid_rows.cuh"

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

namespace lc::kernels::hybrid_rows {

// What this thread keeps of the scores of rows accumulator_row() (half 0) and eight below (half 1): weights as rounded for products, in
// columns 16 i .. of [k(b-1), k(b)] as operands. A weight whose key is its row's maximum has a minus sign.
struct WindowRows {
    FragmentA p[8];
    float top[2], ties[2], sum[2];

    __device__ __forceinline__ void weigh(float (&before)[32], float (&own)[32], float factor, float log_gamma) {
        const int last = accumulator_row() - 2 * quad_lane();
#pragma unroll
        for (int i = 0; i < 32; ++i)
            if (i / 4 * 8 + i % 2 - i / 2 % 2 * 8 > last) own[i] = -INFINITY;
        float highest[2];  // weight
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            float high = -INFINITY;
#pragma unroll
            for (int j = 0; j < 16; ++j) high = fmaxf(high, fmaxf(at(before, half, j), at(own, half, j)));
            top[half] = high = quad_max(high);
            const float shift = log_gamma - high * factor;
            const auto weight = [&](float score) {
                const float w = exp2_approx(fmaf(score, factor, shift));
                return score == high ? -w : w;
            };
            highest[half] = unpack_bf16(pack_bf16(exp2_approx(fmaf(high, factor, shift)), 0)).x;
#pragma unroll
            for (int j = 0; j < 16; j += 2) {
                pair_at(half, 0, j) = pack_bf16(weight(at(before, half, j)), weight(at(before, half, j + 1)));
                pair_at(half, 1, j) = pack_bf16(weight(at(own, half, j)), weight(at(own, half, j + 1)));
            }
        }
        constexpr uint32_t kOnes = 0x3f803f80u, kMagnitude = 0x7fff7fffu;
        Accumulator all[2] = {},
                    rest[2] = {};  // with ties negative: all - rest = 2 ties highest; either in two that need not wait
#pragma unroll
        for (int i = 0; i < 8; ++i) {
            FragmentA magnitude;
#pragma unroll
            for (int r = 0; r < 4; ++r) magnitude.r[r] = p[i].r[r] & kMagnitude;
            mma(all[i % 2], magnitude, FragmentB{{kOnes, kOnes}}, 0);
            mma(rest[i % 2], p[i], FragmentB{{kOnes, kOnes}}, 0);
        }
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            sum[half] = all[0].c[2 * half] + all[1].c[2 * half];
            ties[half] = rintf((sum[half] - (rest[0].c[2 * half] + rest[1].c[2 * half])) / (2 * highest[half]));
        }
    }
    // The weights become gradients of the scores, times scale: P dc - [s = m] part, where dc = slope dy.v + shift.
    __device__ __forceinline__ void differentiate(float (&before)[32], float (&own)[32], const float (&slope)[2],
                                                  const float (&shift)[2], const float (&part)[2]) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const auto gradient = [&](float weight, float product) {
                const float x = fabsf(weight) * fmaf(product, slope[half], shift[half]);
                return weight < 0 ? x - part[half] : x;
            };
            const auto pair = [&](float(&x)[32], int side, int j) {
                uint32_t& to = pair_at(half, side, j);
                const float2 weight = unpack_bf16(to);
                to = pack_bf16(gradient(weight.x, at(x, half, j)), gradient(weight.y, at(x, half, j + 1)));
            };
#pragma unroll
            for (int j = 0; j < 16; j += 2) pair(before, 0, j), pair(own, 1, j);
        }
    }

  private:
    static __device__ __forceinline__ float& at(float (&x)[32], int half, int j) {
        return x[j / 2 * 4 + 2 * half + j % 2];
    }
    __device__ __forceinline__ uint32_t& pair_at(int half, int side, int j) {
        return p[4 * side + j / 4].r[j / 2 % 2 * 2 + half];
    }
};

// dq of a block: each warp's rows by way of shared memory, so that eight lanes write 128 bytes of a row.
template <int D>
__device__ __forceinline__ void store_rows(const FusedRowsArgs& args, const FusedHead& head, const RowsRoom<D>& room,
                                           int b, const float (&dq)[D / 2]) {
    const int lane = threadIdx.x % kWarp, row = threadIdx.x % kWarpgroup / kWarp * 16 + lane / 8, column = lane % 8 * 8;
    const auto staged = room.staged();
    const int64_t first = int64_t{b} * kFusedRows + row;
    __nv_bfloat16* to = reinterpret_cast<__nv_bfloat16*>(args.dq.base) + head.b * args.dq.strides[0] +
                        head.h * args.dq.strides[1] + first * args.dq.strides[2] + column;
#pragma unroll
    for (int panel = 0; panel < D / 64; ++panel) {
        __syncwarp();
#pragma unroll
        for (int i = 0; i < 4; ++i) store_operand(staged, wgmma_operand(dq, 4 * panel + i), i);
        __syncwarp();
#pragma unroll
        for (int i = 0; i < 4; ++i)
            if (first + 4 * i < args.in.shape.length)
                *reinterpret_cast<uint4*>(to + 4 * i * args.dq.strides[2] + 64 * panel) =
                    *reinterpret_cast<const uint4*>(staged.chunk(row + 4 * i, column));
    }
}

// dq = dS [k(b-1), k(b)] + du W^T
template <int D, bool Far>
__device__ __forceinline__ void make_dq(const FusedRowsArgs& args, const FusedHead& head, const RowsRoom<D>& room,
                                        RowsBarriers& barriers, const RowsWalk& walk, int b, const FragmentA (&ds)[8]) {
    float dq[D / 2];
    const WgmmaDescriptor before = mn_major(room.k(walk.stage(b - 1))), own = mn_major(room.k(walk.stage(b)));
    wgmma_fence();
#pragma unroll
    for (int k = 0; k < kFusedRows; k += 16) wgmma_rs<Major::MN>(dq, ds[k / 16], before + 64 * k, k > 0);
#pragma unroll
    for (int k = 0; k < kFusedRows; k += 16) wgmma_rs<Major::MN>(dq, ds[4 + k / 16], own + 64 * k, true);
    if constexpr (Far) {
        barriers.du_full.wait(walk.far_step(b) % 2);
        const WgmmaDescriptor du = k_major(room.du()), w = k_major(room.map(0));
#pragma unroll
        for (int k = 0; k < kFusedMap; k += 16) wgmma_ss<Major::K>(dq, du + k, w + k, true);
    }
    wgmma_commit();
    wgmma_wait<0>();
    wgmma_settle(dq);
    store_rows<D>(args, head, room, b, dq);
}

// A step of the window: with a state (Far), the features' share of Z and of dq.
template <int D, bool Far>
__device__ __forceinline__ void make_window(const RowsArgs& args, const FusedHead& head, const RowsRoom<D>& room,
                                            RowsBarriers& barriers, const RowsWalk& walk, int b, float factor,
                                            float log_gamma) {
    const int side = walk.side(b), parity = walk.step(b) % 2, row = accumulator_row();
    const auto queries = room.q(side), keys_before = room.k(walk.stage(b - 1)), keys = room.k(walk.stage(b));
    float before[32], own[32];
    barriers.q_full[side].wait(walk.turn(b));
    barriers.k_full[walk.stage(b)].wait(walk.parity(b));
    wgmma_fence();
    multiply_rows<kFusedRows>(before, queries, 0, keys_before);
    multiply_rows<kFusedRows>(own, queries, 0, keys);
    wgmma_commit();
    if (b > walk.first && threadIdx.x % kWarpgroup == 0) RowsCopies<D>{args, head, room, barriers, walk}.keys(b + 1);
    __syncwarp();
    wgmma_wait<0>();
    wgmma_settle(before);
    wgmma_settle(own);
    release(barriers.q_free[side]);
    if (b == 0)
#pragma unroll
        for (float& x : before) x = -INFINITY;
    WindowRows window;
    window.weigh(before, own, factor, log_gamma);

    const int value_before = walk.value_stage(b - 1), value_own = walk.value_stage(b);
    barriers.dy_full.wait(parity);
    barriers.v_full[value_own].wait(walk.value_parity(b));
    wgmma_fence();
    multiply_rows<kFusedRows>(before, room.dy(), 0, room.v(value_before));
    multiply_rows<kFusedRows>(own, room.dy(), 0, room.v(value_own));
    wgmma_commit();
    barriers.dot_full.wait(parity);  // before 1 / Z is there: the next block's dy.y comes after that
    if constexpr (Far) {
        barriers.far_full.wait(walk.far_step(b) % 2);
        window.sum[0] += room.far()[row], window.sum[1] += room.far()[row + 8];
    }
    const float inverse[2] = {hybrid_roles::reciprocal(window.sum[0]), hybrid_roles::reciprocal(window.sum[1])};
    if (quad_lane() == 0) room.inverse(side)[row] = inverse[0], room.inverse(side)[row + 8] = inverse[1];
    barriers.inverse_full.arrive();
    const float scale = args.rows.in.shape.scale;
    const float slope[2] = {inverse[0] * scale, inverse[1] * scale};
    const float shift[2] = {-room.dot(side)[row] * slope[0], -room.dot(side)[row + 8] * slope[1]};
    wgmma_wait<0>();
    wgmma_settle(before);
    wgmma_settle(own);
    release(barriers.dy_free);
    release(barriers.v_free[value_before]);
    float part[2] = {};
    if constexpr (Far) {
        barriers.all_full.wait(walk.far_step(b) % 2);
        part[0] = -inverse[0] * room.all()[row] / window.ties[0];
        part[1] = -inverse[1] * room.all()[row + 8] / window.ties[1];
    }
    if (quad_lane() == 0) {
        const int64_t first = (head.item * args.rows.in.shape.blocks + b) * kFusedRows + row;
        const FusedRowResults& to = args.rows.results;
        to.high[first] = window.top[0], to.high[first + 8] = window.top[1];
        to.max_part[first] = part[0], to.max_part[first + 8] = part[1];
        to.inverse[first] = inverse[0], to.inverse[first + 8] = inverse[1];
        to.dz[first] = -room.dot(side)[row] * inverse[0], to.dz[first + 8] = -room.dot(side)[row + 8] * inverse[1];
    }
    part[0] *= scale, part[1] *= scale;
    if (args.rows.dq) {
        window.differentiate(before, own, slope, shift, part);
        make_dq<D, Far>(args.rows, head, room, barriers, walk, b, window.p);
    } else if constexpr (Far) {
        barriers.du_full.wait(walk.far_step(b) % 2);
    }
    release(barriers.k_free[walk.stage(b - 1)]);
    if constexpr (Far) barriers.du_free.arrive();
}

template <int D>
__device__ __forceinline__ void make_windows(const RowsArgs& args, const FusedHead& head, const RowsRoom<D>& room,
                                             RowsBarriers& barriers) {
    const RowsWalk walk(head);
    const FusedInputs& in = args.rows.in;
    const float factor = in.shape.scale * kLog2E;
    const float log_gamma = log2f(fmaxf(DeviceMix(in.mix_logit, in.spec, head.h).gamma, kLeastGamma));
    barriers.k_full[walk.stage(walk.first - 1)].wait(walk.parity(walk.first - 1));
    barriers.v_full[walk.value_stage(walk.first - 1)].wait(walk.value_parity(walk.first - 1));
    int b = walk.first;
    for (; b < walk.last && !walk.reads_state(b); ++b)
        make_window<D, false>(args, head, room, barriers, walk, b, factor, log_gamma);
    for (; b < walk.last; ++b) make_window<D, true>(args, head, room, barriers, walk, b, factor, log_gamma);
}

}  // namespace lc::kernels::hybrid_rows

#endif
