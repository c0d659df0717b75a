// The Hopper form of the walks over the keys, last block first: what their roles share. Of hybrid attention's backward, with the window
// (hybrid_fused_backward_keys_sm90.cu), and of stage 1, without it (transfer_loss_keys_sm90.cu).
#pragma once
#include "kernels/hybrid_attention/hybrid_compact_features.cuh"
#include "kernels/hybrid_attention/hybrid_fused_backward.cuh"

namespace lc::kernels::hybrid_keys {

using hybrid_roles::FeatureTile;
using hybrid_roles::Panel;

// The second makes weights and their gradients in a walk with the window, phi_q in one without.
enum Role { kMaps, kSecond, kGradients, kState, kRoles };
enum NamedBarrier { kMapsBarrier = 1, kSecondBarrier, kGradientsBarrier };

inline constexpr int kKeysThreads = kRoles * kWarpgroup;
inline constexpr int kWarpsOfRole = kWarpgroup / kWarp;
inline constexpr int kBarrierBytes = 27 * 8;  // of KeysBarriers

// Where dk or dv goes.
struct KeysOutput {
    CUtensorMap map;
    bool wanted = false;
};

struct KeysArgs {
    CUtensorMap q, k, v, dn;  // with the window dy for dN: P and phi_q are then over Z
    KeysOutput dk, dv;
    FusedInputs in;
    const float *dz, *high, *max_part, *inverse;  // FusedRowResults; all but the first for the window
    int key_heads;                                // of dk and dv
    int heads_together;   // query heads that a thread block walks one after the other, adding up dk and dv
    float* dwk_parts;     // [items,segments,D,F], or null
    const float* starts;  // T, t of the segments
};

template <int D, bool kWindow>
struct KeysTraits {
    static constexpr int kKeyTiles = kWindow ? 1 : 2, kFeatureTiles = kWindow ? 1 : 2;
    static constexpr int kPanels = D / 64;
    using Rows = WgmmaTile<kFusedRows, D>;
    using Map = WgmmaTile<D, kFusedMap>;
    using Copy = WgmmaTile<kFusedFeatures, D>;
    static constexpr int kNumbers = kWindow ? 4 : 1;  // of a row: dZ; 1 / Z, m, D / ties
    static constexpr int kFloats = kFusedFeatures + 2 * kNumbers * kFusedRows;
    static constexpr int kBytes = (4 + 2 * kKeyTiles) * Rows::kBytes + 2 * Map::kBytes + Copy::kBytes +
                                  kFeatureTiles * FeatureTile::kBytes + (kWindow ? 5 * Panel::kBytes : 0) +
                                  kFloats * static_cast<int>(sizeof(float)) + kBarrierBytes;
    static_assert(kBytes <= kSharedLimit);
};

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

struct KeysBarriers {
    Barrier q_full[2], q_free[2], dn_full[2], dn_free[2], k_full[2], k_free[2], v_full[2], v_free[2];
    Barrier phi_q_full, phi_q_free, phi_k_full, phi_k_free, copy_full, copy_free;
    Barrier weights_full[2], weights_free,
        gradients_free;  // [next], [own]; both again, once dv and dk have left their places
    Barrier maps_free;   // once for each head

    template <bool kWindow>
    __device__ void init() {
        // How many roles read a tile through wgmma.
        constexpr int kOfQueries = kWindow ? 3 : 1, kOfKeys = kWindow ? 3 : 2, kOfValues = kWindow ? 2 : 1;
        for (int i = 0; i < 2; ++i) {
            q_full[i].init(1), q_free[i].init(kOfQueries * kWarpsOfRole);
            dn_full[i].init(1), dn_free[i].init(kWindow ? kWarpsOfRole + 3 * kWarpgroup : kWarpgroup);
            k_full[i].init(1), k_free[i].init(kOfKeys * kWarpsOfRole);
            v_full[i].init(1), v_free[i].init(kOfValues * kWarpsOfRole);
            weights_full[i].init(kWarpgroup);
        }
        phi_q_full.init(kWarpgroup), phi_q_free.init(kWarpgroup), phi_k_full.init(kWarpgroup);
        phi_k_free.init(kWarpgroup), copy_full.init(kWarpgroup), copy_free.init(kWarpgroup), weights_free.init(1),
            gradients_free.init(1), maps_free.init(kWarpsOfRole);
        fence_barriers();
    }
};
static_assert(sizeof(KeysBarriers) == kBarrierBytes);

template <int D, bool kWindow>
struct KeysRoom {
    using Tr = KeysTraits<D, kWindow>;
    __nv_bfloat16* base;

    __device__ __forceinline__ typename Tr::Rows rows(int i) const { return {base + i * kFusedRows * D}; }
    __device__ __forceinline__ typename Tr::Rows q(int stage) const { return rows(stage); }
    __device__ __forceinline__ typename Tr::Rows dn(int stage) const { return rows(2 + stage); }
    __device__ __forceinline__ typename Tr::Rows k(int stage) const { return rows(4 + stage); }
    __device__ __forceinline__ typename Tr::Rows v(int stage) const { return rows(4 + Tr::kKeyTiles + stage); }
    __device__ __forceinline__ typename Tr::Map map(int i) const {  // of queries, of keys
        return {rows(4 + 2 * Tr::kKeyTiles).data + i * D * kFusedMap};
    }
    __device__ __forceinline__ typename Tr::Copy copy() const { return {map(2).data}; }  // of T
    __device__ __forceinline__ FeatureTile phi_k() const { return {copy().data + kFusedFeatures * D}; }
    __device__ __forceinline__ FeatureTile phi_q() const {
        return {phi_k().data + (Tr::kFeatureTiles - 1) * kFusedRows * kFusedFeatures};
    }
    // Of the window: weights and gradients of scores, rows of block c + 1 (0) and c (1) against the keys of block c. du lies over
    // features that nobody reads any more where there is no room of its own.
    __device__ __forceinline__ Panel panel(int i) const {
        return {phi_q().data + kFusedRows * kFusedFeatures + i * kFusedRows * 64};
    }
    __device__ __forceinline__ Panel weights(int own) const { return panel(own); }
    __device__ __forceinline__ Panel score_gradients(int own) const { return panel(2 + own); }
    __device__ __forceinline__ Panel du() const { return kWindow ? panel(4) : Panel{phi_k().data}; }
    __device__ __forceinline__ float* t() const { return reinterpret_cast<float*>(panel(kWindow ? 5 : 0).data); }
    __device__ __forceinline__ float* dz(int stage) const {
        return t() + kFusedFeatures + stage * Tr::kNumbers * kFusedRows;
    }
    __device__ __forceinline__ float* inverse(int stage) const { return dz(stage) + kFusedRows; }
    __device__ __forceinline__ float* high(int stage) const { return dz(stage) + 2 * kFusedRows; }
    __device__ __forceinline__ float* max_part(int stage) const { return dz(stage) + 3 * kFusedRows; }
    __device__ __forceinline__ KeysBarriers& barriers() const { return *reinterpret_cast<KeysBarriers*>(dz(2)); }
};

// The steps of a walk, c = from .. to: what each does, and which stages and parities of barriers it has. Before dphi_k of a far step T
// gets the rows of block c + 2, but in the first step with a window, where it begins with them. The turns of barriers go on over the
// heads that a thread block walks, as if it were one walk.
template <bool kWindow>
struct KeysWalk {
    int blocks, from, to;

    // `turn`: how many heads this thread block has walked before.
    __device__ __forceinline__ KeysWalk(const FusedHead& head, int blocks, int turn = 0)
        : blocks(blocks), from(blocks - (kWindow ? 1 : 3) - head.first), to(blocks - (kWindow ? 0 : 2) - head.last) {
        const auto turn_of_0 = [&](int first) { return first + turn * max(first - to + 1, 0); };
        rows_ = turn_of_0(from + (kWindow ? 1 : 2)), steps_ = turn_of_0(from);
        fars_ = kWindow ? turn_of_0(min(from, blocks - 3)) : steps_;
        growths_ = kWindow ? turn_of_0(min(from - 1, blocks - 3)) : steps_;
    }

    __device__ __forceinline__ bool is_far(int c) const { return !kWindow || c + 2 < blocks; }
    __device__ __forceinline__ bool takes_rows(int c) const { return !kWindow || c < from; }
    __device__ __forceinline__ int step(int c) const { return steps_ - c; }
    // Of q and dN of block b.
    __device__ __forceinline__ int row_turn(int b) const { return rows_ - b; }
    __device__ __forceinline__ int row_stage(int b) const { return row_turn(b) % 2; }
    __device__ __forceinline__ int row_parity(int b) const { return row_turn(b) / 2 % 2; }
    // Of k and v.
    __device__ __forceinline__ int key_stage(int c) const { return kWindow ? 0 : step(c) % 2; }
    __device__ __forceinline__ int key_parity(int c) const { return kWindow ? step(c) % 2 : step(c) / 2 % 2; }
    // Of features, and of T's copy. -1, whose parity is 1, before the first.
    __device__ __forceinline__ int far_turn(int c) const { return fars_ - c; }
    __device__ __forceinline__ int growth(int c) const { return growths_ - c; }

  private:
    int rows_, steps_, fars_, growths_;  // the turn of block 0
};

// The i-th head of this thread block.
template <bool kWindow>
__device__ __forceinline__ FusedHead head_of(const KeysArgs& args, int i) {
    const FusedShape& s = args.in.shape;
    FusedHead head(s, s.blocks - (kWindow ? 0 : 2));
    if (args.heads_together == 1) return head;
    const unsigned item = static_cast<unsigned>(head.item) * args.heads_together + i;
    head.item = item, head.b = item / s.heads, head.h = static_cast<int>(item % s.heads);
    head.hk = head.h / (s.heads / s.kv_heads), head.hs = head.h / (s.heads / s.maps);
    return head;
}

// Instead of reading dN of block b. By all threads of a role.
__device__ __forceinline__ void skip_upstream(KeysBarriers& barriers, const KeysWalk<true>& walk, int b) {
    barriers.dn_full[walk.row_stage(b)].wait(walk.row_parity(b));
    barriers.dn_free[walk.row_stage(b)].arrive();
}

// phi of the rows of x into a tile: is_free() returns once the readers of what is there are done.
template <int D, class Wait>
__device__ __forceinline__ void make_phi(const WgmmaTile<kFusedRows, D>& x, const WgmmaTile<D, kFusedMap>& w,
                                         Barrier& x_free, const FeatureTile& to, Barrier& full, Wait&& is_free,
                                         const float (&factor)[2] = {1, 1}) {
    float u[kFusedMap / 2];
    hybrid_roles::CompactFeatureRows phi;
    hybrid_roles::project<D>(u, x, w);
    wgmma_wait<0>();
    wgmma_settle(u);
    release(x_free);
    phi.make(u, factor);
    is_free();
    phi.store(to);
    fence_async_proxy();
    full.arrive();
}

// The maps' role in a walk with the window: phi_q(c + 2), then phi_k(c), in one tile.
template <int D>
__device__ __forceinline__ void make_features(const KeysArgs& args, const FusedHead& head, int turn,
                                              const KeysRoom<D, true>& room, KeysBarriers& barriers) {
    static_assert(KeysTraits<D, true>::kFeatureTiles == 1);
    const KeysWalk<true> walk(head, args.in.shape.blocks, turn);
    if (turn > 0) barriers.maps_free.wait((turn - 1) & 1);
    load_map<D, kWarpgroup>(room.map(0), args.in.wq, head.h, threadIdx.x % kWarpgroup);
    load_map<D, kWarpgroup>(room.map(1), args.in.wk, head.hs, threadIdx.x % kWarpgroup);
    fence_async_proxy();
    named_sync<kWarpgroup>(kMapsBarrier);
    for (int c = walk.from; c >= walk.to; --c)
#pragma unroll 1
        for (int i = 0; i < 2; ++i) {  // one piece of code: instructions that no cache holds cost all roles
            const bool of_queries = i == 0;
            if (of_queries && !walk.takes_rows(c)) continue;
            const int stage = walk.row_stage(c + 2);
            Barrier& x_free = of_queries ? barriers.q_free[stage] : barriers.k_free[0];
            float factor[2] = {1, 1};
            if (of_queries) {
                barriers.q_full[stage].wait(walk.row_parity(c + 2));
                barriers.dn_full[stage].wait(walk.row_parity(c + 2));
                factor[0] = room.inverse(stage)[accumulator_row()];
                factor[1] = room.inverse(stage)[accumulator_row() + 8];
                barriers.dn_free[stage].arrive();
            } else {
                barriers.k_full[0].wait(walk.key_parity(c));
            }
            if (walk.is_far(c)) {
                const auto is_free = [&] {
                    of_queries ? barriers.phi_k_free.wait((walk.far_turn(c) - 1) & 1)
                               : barriers.phi_q_free.wait(walk.growth(c) & 1);
                };
                make_phi(of_queries ? room.q(stage) : room.k(0), room.map(of_queries ? 0 : 1), x_free, room.phi_k(),
                         of_queries ? barriers.phi_q_full : barriers.phi_k_full, is_free, factor);
            } else {
                release(x_free);
            }
        }
    for (int b = walk.to + 1; b >= walk.to;
         --b) {  // rows of no block of keys: released all the same, for the next head's
        barriers.q_full[walk.row_stage(b)].wait(walk.row_parity(b));
        release(barriers.q_free[walk.row_stage(b)]);
        skip_upstream(barriers, walk, b);
    }
}

#endif

}  // namespace lc::kernels::hybrid_keys
