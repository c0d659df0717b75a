// The walk over the rows on Hopper (hybrid_fused_backward_rows_sm90.cu): what its roles share. Arguments, registers, shared memory, the barriers between them, and which stage of each a step takes.
#pragma once
#include "kernels/hybrid_attention/hybrid_compact_features.cuh"
#include "kernels/hybrid_attention/hybrid_fused_backward.cuh"

namespace lc::kernels::hybrid_rows {

using hybrid_roles::FeatureTile;

struct RowsArgs {
    CUtensorMap q, k, v, dy, y;
    FusedRowsArgs rows;
};

enum Role { kWindow, kFeatures, kState, kRoles };
enum NamedBarrier { kFeaturesBarrier = 1, kStateBarrier, kWindowBarrier };

inline constexpr int kQueryStages = 2, kKeyStages = 3, kValueStages = 2;
inline constexpr int kRowsThreads = kRoles * kWarpgroup;
inline constexpr int kRowsBarrierBytes = 25 * 8;  // of RowsBarriers
static_assert(kKeyStages == hybrid_roles::kRing);

// Registers of a thread by role; the sum is what three warpgroups begin with.
template <int D, bool kMap>
struct RowsRegisters {
    static constexpr bool kTight = D == 128 && kMap;  // S and dWq take 192
    static constexpr int kWindow = kTight ? 128 : 144, kFeatures = kTight ? 144 : 152, kState = kTight ? 232 : 208;
    static_assert(kWindow + kFeatures + kState <= kRoles * 168);
};

template <int D>
struct RowsTraits {
    using Rows = WgmmaTile<kFusedRows, D>;
    using Map = WgmmaTile<D, kFusedMap>;
    using State = WgmmaTile<kFusedFeatures, D>;
    using Du = WgmmaTile<kFusedRows, kFusedMap>;
    static constexpr int kTiles = kQueryStages + kKeyStages + kValueStages + 1;  // q, k, v, dy
    // z; phi_q.z, -D Z; 1 / Z, dy.y: two each; sums of D, an f64 a warp
    static constexpr int kFloats = hybrid_roles::kTotalsFloats + (2 + 2 * 2) * kFusedRows + 2 * kWarpgroup / kWarp;
    static constexpr int kBytes = kTiles * Rows::kBytes + 2 * Map::kBytes + State::kBytes + FeatureTile::kBytes +
                                  2 * Du::kBytes + kFloats * static_cast<int>(sizeof(float)) + kRowsBarrierBytes;
    static_assert(kBytes <= kSharedLimit);
};

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

using hybrid_roles::ColumnSums;
using hybrid_roles::prefetch_panel;
using hybrid_roles::TotalsTile;

struct RowsBarriers {
    Barrier q_full[kQueryStages], q_free[kQueryStages], k_full[kKeyStages], k_free[kKeyStages], v_full[kValueStages],
        v_free[kValueStages], dy_full, dy_free;
    Barrier far_full, all_full, inverse_full, dot_full, du_full, du_free, phi_k_full, phi_k_free, state_full;

    __device__ void init() {
        constexpr int kWarpsOfGroup = kWarpgroup / kWarp;
        for (int i = 0; i < kQueryStages; ++i) q_full[i].init(1), q_free[i].init(3 * kWarpsOfGroup);
        for (int i = 0; i < kKeyStages; ++i) k_full[i].init(1), k_free[i].init(2 * kWarpsOfGroup);
        for (int i = 0; i < kValueStages; ++i) v_full[i].init(1), v_free[i].init(2 * kWarpsOfGroup);
        dy_full.init(1), dy_free.init(kWarpgroup + 2 * kWarpsOfGroup);
        far_full.init(kWarpgroup), all_full.init(kWarpgroup), inverse_full.init(kWarpgroup), dot_full.init(kWarpgroup);
        du_full.init(kWarpgroup);
        du_free.init(kWarpsOfGroup + kWarpgroup);  // the state; for dq the window
        phi_k_full.init(kWarpgroup), phi_k_free.init(kWarpgroup), state_full.init(kWarpgroup);
        fence_barriers();
    }
};
static_assert(sizeof(RowsBarriers) == kRowsBarrierBytes);

template <int D>
struct RowsRoom {
    using Tr = RowsTraits<D>;
    __nv_bfloat16* base;

    __device__ __forceinline__ typename Tr::Rows rows(int i) const { return {base + i * kFusedRows * D}; }
    __device__ __forceinline__ typename Tr::Rows q(int stage) const { return rows(stage); }
    __device__ __forceinline__ typename Tr::Rows k(int stage) const { return rows(kQueryStages + stage); }
    __device__ __forceinline__ typename Tr::Rows v(int stage) const { return rows(kQueryStages + kKeyStages + stage); }
    __device__ __forceinline__ typename Tr::Rows dy() const { return rows(Tr::kTiles - 1); }
    __device__ __forceinline__ typename Tr::Map map(int i) const { return {rows(Tr::kTiles).data + i * D * kFusedMap}; }
    __device__ __forceinline__ typename Tr::State state() const { return {map(2).data}; }  // a bf16 copy
    __device__ __forceinline__ FeatureTile phi_k() const { return {state().data + kFusedFeatures * D}; }
    __device__ __forceinline__ typename Tr::Du du() const { return {phi_k().data + kFusedRows * kFusedFeatures}; }
    // Sixteen rows of it for each warp of the window, on their way to memory.
    __device__ __forceinline__ WgmmaTile<kFusedRows, 64> staged() const { return {du().data + kFusedRows * kFusedMap}; }
    __device__ __forceinline__ float* floats() const {
        return reinterpret_cast<float*>(staged().data + kFusedRows * 64);
    }
    __device__ __forceinline__ TotalsTile z() const { return TotalsTile(floats()); }
    __device__ __forceinline__ float* numbers(int i) const {
        return floats() + hybrid_roles::kTotalsFloats + i * kFusedRows;
    }
    __device__ __forceinline__ float* far() const { return numbers(0); }                     // phi_q.z
    __device__ __forceinline__ float* all() const { return numbers(1); }                     // -D Z
    __device__ __forceinline__ float* inverse(int side) const { return numbers(2 + side); }  // 1 / Z
    __device__ __forceinline__ float* dot(int side) const { return numbers(4 + side); }      // dy.y
    __device__ __forceinline__ double* sums() const { return reinterpret_cast<double*>(numbers(6)); }
    __device__ __forceinline__ RowsBarriers& barriers() const {
        return *reinterpret_cast<RowsBarriers*>(sums() + kWarpgroup / kWarp);
    }
};

// q, 1 / Z, dy.y take a side by turns; k and v, whose first block is the one before the first, a stage of their rings.
struct RowsWalk : hybrid_roles::Walk {
    using Walk::Walk;
    __device__ __forceinline__ int step(int b) const { return b - first; }
    __device__ __forceinline__ int value_stage(int b) const { return copy(b) % kValueStages; }
    __device__ __forceinline__ int value_parity(int b) const { return copy(b) / kValueStages % 2; }
};

// The copies of a walk's tiles. One thread calls, once what it overwrites is nearly free.
template <int D>
struct RowsCopies {
    const RowsArgs& args;
    const FusedHead& head;
    const RowsRoom<D>& room;
    RowsBarriers& barriers;
    const RowsWalk& walk;

    // Block -1, before the sequence, comes as zeros.
    __device__ __forceinline__ void begin() const {
        queries(walk.first), keys(walk.first - 1), keys(walk.first), upstream(walk.first);
        values(walk.first - 1), values(walk.first), queries(walk.first + 1), keys(walk.first + 1);
    }
    __device__ __forceinline__ void queries(int b) const {
        const int side = walk.side(b);
        copy(b, args.q, head.h, room.q(side), barriers.q_full[side], barriers.q_free[side], walk.turn(b));
    }
    __device__ __forceinline__ void keys(int b) const {
        const int stage = walk.stage(b);
        copy(b, args.k, head.hk, room.k(stage), barriers.k_full[stage], barriers.k_free[stage], walk.parity(b));
    }
    __device__ __forceinline__ void values(int b) const {
        const int stage = walk.value_stage(b);
        copy(b, args.v, head.hk, room.v(stage), barriers.v_full[stage], barriers.v_free[stage], walk.value_parity(b));
    }
    __device__ __forceinline__ void upstream(int b) const {
        copy(b, args.dy, head.h, room.dy(), barriers.dy_full, barriers.dy_free, walk.step(b) % 2);
    }

    // y to the L2 cache: threads read it from there.
    __device__ __forceinline__ void prefetch(int b) const {
        if (b >= walk.last) return;
#pragma unroll
        for (int column = 0; column < D; column += kMapColumns)
            prefetch_panel(args.y, b * kFusedRows, column, head.h, static_cast<int>(head.b));
    }

  private:
    __device__ __forceinline__ void copy(int b, const CUtensorMap& map, int h, const typename RowsTraits<D>::Rows& tile,
                                         Barrier& full, Barrier& free, int parity) const {
        if (b >= walk.last) return;
        free.wait(parity ^ 1);
        full.expect(RowsTraits<D>::Rows::kBytes);
        copy_tile(tile, map, b * kFusedRows, h, static_cast<int>(head.b), full);
    }
};

#endif

}  // namespace lc::kernels::hybrid_rows
