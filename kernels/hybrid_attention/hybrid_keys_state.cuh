// The state's role in the walks over the keys (hybrid_keys.cuh): T^T and t, the copy of T that products read, and the copies of q, dN,
// k and v.
#pragma once
#include "kernels/hybrid_attention/hybrid_keys.cuh"

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

namespace lc::kernels::hybrid_keys {

// One thread queues copies. Each waits until the tile's last reader is done.
template <int D, bool kWindow>
struct KeysCopies {
    using Rows = typename KeysTraits<D, kWindow>::Rows;
    const KeysArgs& args;
    const FusedHead& head;
    const KeysRoom<D, kWindow>& room;
    KeysBarriers& barriers;
    const KeysWalk<kWindow>& walk;

    __device__ __forceinline__ void begin() const {
        keys(walk.from), values(walk.from), rows(walk.from + (kWindow ? 1 : 2));
        if (kWindow) rows(walk.from);
    }
    // q, dN and dZ of block b; zeros behind the last.
    __device__ __forceinline__ void rows(int b) const {
        const int stage = walk.row_stage(b), parity = walk.row_parity(b);
        copy(args.q, head.h, b, room.q(stage), barriers.q_full[stage], barriers.q_free[stage], parity);
        constexpr int kBytes = kFusedRows * static_cast<int>(sizeof(float));
        const bool there = b < walk.blocks;
        copy(args.dn, head.h, b, room.dn(stage), barriers.dn_full[stage], barriers.dn_free[stage], parity,
             there ? KeysTraits<D, kWindow>::kNumbers * kBytes : 0);
        if (!there) return;
        const int64_t first = (head.item * walk.blocks + b) * kFusedRows;
        copy_bulk(room.dz(stage), args.dz + first, kBytes, barriers.dn_full[stage]);
        if (!kWindow) return;
        copy_bulk(room.inverse(stage), args.inverse + first, kBytes, barriers.dn_full[stage]);
        copy_bulk(room.high(stage), args.high + first, kBytes, barriers.dn_full[stage]);
        copy_bulk(room.max_part(stage), args.max_part + first, kBytes, barriers.dn_full[stage]);
    }
    __device__ __forceinline__ void keys(int c) const {
        const int stage = walk.key_stage(c);
        copy(args.k, head.hk, c, room.k(stage), barriers.k_full[stage], barriers.k_free[stage], walk.key_parity(c));
    }
    __device__ __forceinline__ void values(int c) const {
        const int stage = walk.key_stage(c);
        copy(args.v, head.hk, c, room.v(stage), barriers.v_full[stage], barriers.v_free[stage], walk.key_parity(c));
    }

  private:
    __device__ __forceinline__ void copy(const CUtensorMap& map, int h, int b, const Rows& tile, Barrier& full,
                                         Barrier& free, int parity, int more_bytes = 0) const {
        free.wait(parity ^ 1);
        full.expect(Rows::kBytes + more_bytes);
        copy_tile(tile, map, b * kFusedRows, h, static_cast<int>(head.b), full);
    }
};

// T^T [D,F'] in registers, 64 of D in each panel, and this thread's element of t [F'].
template <int D>
struct KeysState {
    static constexpr int kPanels = D / 64;
    float sums[kPanels][kFusedFeatures / 2] = {}, total = 0;

    // From [F',D] and [F'] in memory, or zeros.
    __device__ __forceinline__ void begin(const float* starts) {
        if (!starts) return;
        total = starts[kFusedFeatures * D + threadIdx.x % kWarpgroup];
#pragma unroll
        for (int p = 0; p < kPanels; ++p)
            hybrid_roles::each_state<D>(sums[p], p, [&](float& x, int place) { x = starts[place]; });
    }
    // += dN^T phi_q; t += weight^T phi_q.
    template <class Weight>
    __device__ __forceinline__ void add(const WgmmaTile<kFusedRows, D>& dn, const FeatureTile& phi, Weight&& weight) {
        const WgmmaDescriptor features = mn_major(phi);
        wgmma_fence();
#pragma unroll
        for (int p = 0; p < kPanels; ++p) {
            const WgmmaDescriptor rows = mn_major(Panel{dn.data + p * dn.kPanel});
#pragma unroll
            for (int k = 0; k < kFusedRows; k += 16)
                wgmma_ss<Major::MN, Major::MN>(sums[p], rows + 64 * k, features + 64 * k, true);
        }
        wgmma_commit();
        hybrid_roles::ColumnSums more;
        more.add(phi, weight);
        total += more.total();
        wgmma_wait<0>();
#pragma unroll
        for (int p = 0; p < kPanels; ++p) wgmma_settle(sums[p]);
    }
    // The copy of T, rounded, and t.
    __device__ __forceinline__ void publish(const WgmmaTile<kFusedFeatures, D>& copy, float* t) const {
        t[threadIdx.x % kWarpgroup] = total;
#pragma unroll
        for (int p = 0; p < kPanels; ++p) {
            const WgmmaTile<kFusedFeatures, 64> panel{copy.data + p * copy.kPanel};
#pragma unroll
            for (int i = 0; i < kFusedFeatures / 16; ++i) store_operand_transposed(panel, wgmma_operand(sums[p], i), i);
        }
    }
};

// By one thread, before all meet: barriers, and the first tiles, which come while the maps are loaded.
template <int D, bool kWindow>
__device__ __forceinline__ void begin_walk(const KeysArgs& args, const FusedHead& head,
                                           const KeysRoom<D, kWindow>& room, KeysBarriers& barriers) {
    const KeysWalk<kWindow> walk(head, args.in.shape.blocks);
    barriers.init<kWindow>();
    KeysCopies<D, kWindow>{args, head, room, barriers, walk}.begin();
}

template <int D, bool kWindow>
__device__ __forceinline__ void keep_state(const KeysArgs& args, const FusedHead& head,
                                           const KeysRoom<D, kWindow>& room, KeysBarriers& barriers, int turn = 0) {
    const FusedShape& s = args.in.shape;
    const KeysWalk<kWindow> walk(head, s.blocks, turn);
    const KeysCopies<D, kWindow> copies{args, head, room, barriers, walk};
    const bool leads = threadIdx.x % kWarpgroup == 0;
    if (leads && turn > 0) copies.begin();
    __syncwarp();
    const auto begin_step = [&](int c) {
        if (leads) {
            if (kWindow && c < walk.from) copies.values(c), copies.keys(c);
            if (!kWindow && c > walk.to) copies.rows(c + 1);
        }
        __syncwarp();
    };
    const auto end_step = [&](int c) {
        if (leads) {
            if (kWindow && c < walk.from) copies.rows(c);
            if (!kWindow && c > walk.to) copies.values(c - 1), copies.keys(c - 1);
        }
        __syncwarp();
    };
    int c = walk.from;
    for (; c >= walk.to && !walk.is_far(c); --c) {
        begin_step(c);
        if constexpr (kWindow)
            if (walk.takes_rows(c)) skip_upstream(barriers, walk, c + 2);
        end_step(c);
    }
    KeysState<D> state;
    state.begin(head.segment == 0 ? nullptr
                                  : args.starts + (head.item * (s.segments - 1) + head.segment - 1) * kSumsSize<D>);
    const auto publish = [&](int c) {
        barriers.copy_free.wait((walk.far_turn(c) - 1) & 1);
        state.publish(room.copy(), room.t());
        fence_async_proxy();
        barriers.copy_full.arrive();
    };
    if (c >= walk.to && !walk.takes_rows(c)) {
        publish(c);
        --c;
    }
    for (; c >= walk.to; --c) {
        begin_step(c);
        const int stage = walk.row_stage(c + 2);
        barriers.dn_full[stage].wait(walk.row_parity(c + 2));
        barriers.phi_q_full.wait(walk.growth(c) & 1);
        const auto weight = [&](int row) {  // dZ, or where phi_q is over Z, dZ Z
            return kWindow ? __fdividef(room.dz(stage)[row], room.inverse(stage)[row]) : room.dz(stage)[row];
        };
        state.add(room.dn(stage), room.phi_q(), weight);
        barriers.phi_q_free.arrive();
        barriers.dn_free[stage].arrive();
        publish(c);
        end_step(c);
    }
    if constexpr (kWindow) skip_upstream(barriers, walk, walk.to + 1), skip_upstream(barriers, walk, walk.to);
}

}  // namespace lc::kernels::hybrid_keys

#endif
