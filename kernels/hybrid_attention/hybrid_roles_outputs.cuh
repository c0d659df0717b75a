// The outputs' role in hybrid_fused_forward_sm90.cu: y, the state, and the copies of q, k and v.
#pragma once
#include "kernels/common/cuda/early.cuh"
#include "kernels/hybrid_attention/hybrid_roles.cuh"

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

namespace lc::kernels::hybrid_roles {

// One thread of the outputs queues copies, two blocks ahead of what it works on; by then their tiles are free, or nearly.
template <int D>
struct Copies {
    const ForwardArgs& args;
    const FusedHead& head;
    const ForwardRoom<D>& room;
    ForwardBarriers& barriers;
    const Walk& walk;

    __device__ __forceinline__ void begin() const {
        queries(walk.first), keys(walk.first - 1), keys(walk.first), values(walk.first - 1), values(walk.first);
        queries(walk.first + 1), keys(walk.first + 1);
    }
    // What the calling warpgroup stored from its panel of v(b) has left it.
    __device__ __forceinline__ void release_values(int b) const {
        store_wait_read();
        barriers.v_free[walk.stage(b)].arrive();
    }
    // In step b, once its weights and features are here.
    __device__ __forceinline__ void next(int b) const { queries(b + 2), keys(b + 2), values(b + 1); }

  private:
    __device__ __forceinline__ void queries(int b) const {
        const int side = walk.side(b);
        copy(b, args.in.shape.query_row, args.q, head.h, room.q(side), barriers.q_full[side], barriers.q_free[side],
             walk.turn(b));
    }
    __device__ __forceinline__ void keys(int b) const {
        const int stage = walk.stage(b);
        copy(b, args.in.shape.key_row, args.k, head.hk, room.k(stage), barriers.k_full[stage], barriers.k_free[stage],
             walk.parity(b));
    }
    __device__ __forceinline__ void values(int b) const {
        const int stage = walk.stage(b);
        copy(b, args.in.shape.key_row, args.v, head.hk, room.v(stage), barriers.v_full[stage], barriers.v_free[stage],
             walk.parity(b));
    }
    // Rows before the first come as zeros: block -1 of a sequence, queries of a kept block.
    __device__ __forceinline__ void copy(int b, int row0, const CUtensorMap& map, int h,
                                         const typename ForwardTraits<D>::Rows& tile, Barrier& full, Barrier& free,
                                         int parity) const {
        if (b >= walk.last) return;
        free.wait(parity ^ 1);
        full.expect(ForwardTraits<D>::Rows::kBytes);
        copy_tile(tile, map, b * kFusedRows + row0, h, static_cast<int>(head.b), full);
    }
};

// y^T / Z, rounded, into its panel of rows.
__device__ __forceinline__ void stage_y(const Panel& panel, const float (&y)[32], const float2 (&inverse)[8]) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        FragmentA pairs;
#pragma unroll
        for (int r = 0; r < 4; ++r) {
            const float2 by = inverse[2 * i + r / 2];
            pairs.r[r] = pack_bf16(y[8 * i + 2 * r] * by.x, y[8 * i + 2 * r + 1] * by.y);
        }
        store_operand_transposed(panel, pairs, i);
    }
}

// A step of the outputs: with a state to read (Far), and one to add to (Grows).
template <int D, bool Far, bool Grows>
__device__ __forceinline__ void make_output(const ForwardArgs& args, const FusedHead& head, const ForwardRoom<D>& room,
                                            ForwardBarriers& barriers, int panel, const Walk& walk,
                                            const Copies<D>& copies, int b, float (&state)[kFusedFeatures / 2]) {
    const auto panel_of = [&](const typename ForwardTraits<D>::Rows& tile) {
        return Panel{tile.data + panel * ForwardTraits<D>::Rows::kPanel};
    };
    const int stage = walk.far_step(b) & 1;
    const WgmmaDescriptor v_before = mn_major(panel_of(room.v(walk.stage(b - 1))));
    const WgmmaDescriptor v_own = mn_major(panel_of(room.v(walk.stage(b)))), p = k_major(room.p());
    const WgmmaDescriptor phi_q = k_major(room.phi_q(stage));
    float y[32];
    // Half of the features at a time: registers for half of S^T as an operand.
    const auto add_far = [&](int first, bool add) {
        FragmentA operand[kFusedFeatures / 32];
#pragma unroll
        for (int i = 0; i < kFusedFeatures / 32; ++i) operand[i] = wgmma_operand(state, first / 16 + i);
        wgmma_fence();
#pragma unroll
        for (int k = 0; k < kFusedFeatures / 2; k += 16)
            wgmma_rs<Major::K>(y, operand[k / 16], phi_q + k_offset<FeatureTile>(first + k), add || k > 0);
        wgmma_commit();
    };
    if constexpr (Far) {
        barriers.phi_q_full[stage].wait(walk.far_step(b) / 2 % 2);
        add_far(0, false);
    }
    barriers.v_full[walk.stage(b)].wait(walk.parity(b));
    barriers.p_full.wait(walk.side(b));
    wgmma_fence();
#pragma unroll
    for (int k = 0; k < kFusedRows; k += 16) wgmma_ss<Major::K, Major::MN>(y, v_before + 64 * k, p + k, Far || k > 0);
#pragma unroll
    for (int k = 0; k < kFusedRows; k += 16)
        wgmma_ss<Major::K, Major::MN>(y, v_own + 64 * k, p + FeatureTile::kPanel + k, true);
    wgmma_commit();
    if constexpr (Far) {
        wgmma_wait<1>();
        add_far(kFusedFeatures / 2, true);
    }
    if constexpr (Grows) {
        barriers.phi_k_full.wait(walk.growth(b) % 2);
        const WgmmaDescriptor phi_k = mn_major(room.phi_k());
        wgmma_fence();
#pragma unroll
        for (int k = 0; k < kFusedRows; k += 16)
            wgmma_ss<Major::MN, Major::MN>(state, v_before + 64 * k, phi_k + 64 * k, true);
    }
    wgmma_commit();
    if constexpr (Grows)
        if (panel == ForwardTraits<D>::kTotals) {
            room.z().add(room.phi_k());
            barriers.z_full.arrive();
        }
    const bool leads = threadIdx.x % kWarpgroup == 0;
    if (leads) {
        if (b > walk.first) copies.release_values(b - 2);
        if (panel == 0) copies.next(b);
    }
    __syncwarp();
    float2 inverse[8];
#pragma unroll
    for (int j = 0; j < 8; ++j)
        inverse[j] = *reinterpret_cast<const float2*>(room.inverse(walk.side(b)) + 8 * j + 2 * quad_lane());
    wgmma_wait<1>();
    wgmma_settle(y);
    barriers.p_free.arrive();
    if constexpr (Far) release(barriers.phi_q_free[stage]);
    wgmma_wait<0>();
    if constexpr (Grows) {
        wgmma_settle(state);
        barriers.phi_k_free.arrive();
    }
    // No product needs v(b-1) any more once all four warps are here: y goes out through its place.
    const Panel staged = panel_of(room.v(walk.stage(b - 1)));
    named_sync<kWarpgroup>(kOutputsBarrier + panel);
    stage_y(staged, y, inverse);
    fence_async_proxy();
    named_sync<kWarpgroup>(kOutputsBarrier + panel);
    // Nobody asks for the y of a kept block, and the copy engine faults on stores that begin before a tensor.
    const int row = b * kFusedRows + args.in.shape.query_row;
    if (leads && row >= 0) {
        store_panel(staged, args.y, row, 64 * panel, head.h, static_cast<int>(head.b));
        store_commit();
    }
}

template <int D>
__device__ __forceinline__ void make_outputs(const ForwardArgs& args, const FusedHead& head, const ForwardRoom<D>& room,
                                             ForwardBarriers& barriers, int panel) {
    const FusedShape& s = args.in.shape;
    const Walk walk(head);
    float state[kFusedFeatures / 2] = {};
    wait_for_predecessor();  // that makes the starts
    const StateRows start = start_of<D>(args.starts, s, head), past = past_of<D>(args.past, s, head);
    if (start.s) each_state<D>(state, panel, [&](float& x, int place) { x = start.s[place]; });
    if (past.s) each_state<D>(state, panel, [&](float& x, int place) { x += past.s[place]; });
    if (panel == ForwardTraits<D>::kTotals) {
        room.z().begin(kOutputsBarrier + panel, start.z, past.z);
        if (walk.begins_with_state()) barriers.z_full.arrive();
    }
    const Copies<D> copies{args, head, room, barriers, walk};
    barriers.v_full[walk.stage(walk.first - 1)].wait(walk.parity(walk.first - 1));
    each_step(walk, [&](int b, auto far, auto grows) {
        make_output<D, far(), grows()>(args, head, room, barriers, panel, walk, copies, b, state);
    });
    if (threadIdx.x % kWarpgroup == 0) store_wait();
    if (!args.s_out || head.h % (s.heads / s.maps) != 0 || head.last != s.blocks) return;
    const int64_t map = head.b * s.maps + head.hs;
    float* to = args.s_out + map * kFusedFeatures * D;
    each_state<D>(state, panel, [&](float& x, int place) { to[place] = x; });
    if (panel != ForwardTraits<D>::kTotals) return;
    named_sync<kWarpgroup>(kOutputsBarrier + panel);
    room.z().store(args.z_out + map * kFusedFeatures);
}

}  // namespace lc::kernels::hybrid_roles

#endif
