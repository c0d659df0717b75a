// Stage 1's walk over the rows on Hopper (transfer_loss_rows_sm90.cu): what its roles share. Arguments, registers, shared memory, the
// barriers between them, and which stage of each a step takes.
#pragma once
#include "kernels/common/cuda/early.cuh"
#include "kernels/hybrid_attention/hybrid_roles_scores.cuh"
#include "kernels/transfer_loss/transfer_loss_rows_sm90.cuh"
#include "kernels/transfer_loss/transfer_signs.cuh"

namespace lc::kernels::transfer_rows {

using hybrid_roles::FeatureTile;

struct LossArgs {
    CUtensorMap q, k, v, target;
    TransferRowsArgs to;
};

// Features of either sign have a warpgroup; a warp of the copies each of q, k, v and the target.
enum Role { kWindow, kPositive, kNegative, kCopies, kRoles };
enum NamedBarrier { kWindowBarrier = 1, kMapsBarrier, kSignBarrier };  // the last: and the next

inline constexpr int kQueryStages = 2, kKeyStages = 3, kValueStages = 2;
inline constexpr int kThreads = kRoles * kWarpgroup;
inline constexpr int kWindowRegisters = 136, kSignRegisters = 176, kCopyRegisters = 24;
static_assert(kWindowRegisters + 2 * kSignRegisters + kCopyRegisters <= kRoles * 128);
inline constexpr int kBarrierBytes = 20 * 8;  // of LossBarriers
static_assert(kKeyStages == hybrid_roles::kRing);

template <int D>
struct LossTraits {
    using Rows = WgmmaTile<kFusedRows, D>;
    using Map = WgmmaTile<D, kFusedMap>;
    using State = WgmmaTile<kFusedFeatures, D>;
    using Ones = WgmmaTile<8, 64>;                                               // weights of z's sum
    static constexpr int kTiles = kQueryStages + kKeyStages + kValueStages + 1;  // q, k, v, target
    static constexpr int kFloats = 2 * kFusedFeatures + 3 * kFusedRows;          // two z; phi_q.z of either sign, dZ
    static constexpr int kBytes = kTiles * Rows::kBytes + 2 * Map::kBytes + State::kBytes + 2 * FeatureTile::kBytes +
                                  Ones::kBytes + kFloats * static_cast<int>(sizeof(float)) + kBarrierBytes;
    static_assert(kBytes <= kSharedLimit);
};

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

using namespace transfer_signs;

struct LossBarriers {
    Barrier q_full[kQueryStages], q_free[kQueryStages], k_full[kKeyStages], k_free[kKeyStages], v_full[kValueStages],
        v_free[kValueStages], target_full, target_free;
    Barrier state_full, made_full, du_full, du_free;

    __device__ void init(bool gradients) {
        constexpr int kWarps = kWarpgroup / kWarp;
        for (int i = 0; i < kQueryStages; ++i) q_full[i].init(1), q_free[i].init(3 * kWarps);
        for (int i = 0; i < kKeyStages; ++i) k_full[i].init(1), k_free[i].init(3 * kWarps);
        for (int i = 0; i < kValueStages; ++i) v_full[i].init(1), v_free[i].init(3 * kWarps);
        target_full.init(1), target_free.init(kWarpgroup + (gradients ? 2 * kWarps : 0));
        state_full.init(2 * kWarpgroup), made_full.init(kWarpgroup);
        du_full.init(2 * kWarpgroup), du_free.init(2 * kWarps);
        fence_barriers();
    }
};
static_assert(sizeof(LossBarriers) == kBarrierBytes);

template <int D>
struct LossRoom {
    using Tr = LossTraits<D>;
    __nv_bfloat16* base;

    __device__ __forceinline__ typename Tr::Rows rows(int i) const { return {base + i * kFusedRows * D}; }
    __device__ __forceinline__ typename Tr::Rows q(int stage) const { return rows(stage); }
    __device__ __forceinline__ typename Tr::Rows k(int stage) const { return rows(kQueryStages + stage); }
    __device__ __forceinline__ typename Tr::Rows v(int stage) const { return rows(kQueryStages + kKeyStages + stage); }
    __device__ __forceinline__ typename Tr::Rows target() const { return rows(Tr::kTiles - 1); }  // then dN
    __device__ __forceinline__ typename Tr::Map map(int i) const { return {rows(Tr::kTiles).data + i * D * kFusedMap}; }
    __device__ __forceinline__ typename Tr::State state() const { return {map(2).data}; }  // a bf16 copy
    // phi_q(b), then the signs' shares of du; before it phi_k(b-2) and du(b-2).
    __device__ __forceinline__ FeatureTile features(int b) const {
        return {state().data + kFusedFeatures * D + b % 2 * kFusedRows * kFusedFeatures};
    }
    __device__ __forceinline__ typename Tr::Ones ones() const {
        return {features(1).data + kFusedRows * kFusedFeatures};
    }
    __device__ __forceinline__ float* z(int turn, int sign) const {
        return reinterpret_cast<float*>(ones().data + 8 * 64) + turn * kFusedFeatures + sign * kFusedMap;
    }
    __device__ __forceinline__ float* far(int sign) const { return z(2, 0) + sign * kFusedRows; }  // phi_q.z
    __device__ __forceinline__ float* dz() const { return far(2); }
    // A role's sums at its end, an f64 a warp, over what is read no more.
    __device__ __forceinline__ double* sums(int role) const {
        return reinterpret_cast<double*>(features(0).data) + role * kWarpgroup / kWarp;
    }
    __device__ __forceinline__ LossBarriers& barriers() const {
        return *reinterpret_cast<LossBarriers*>(dz() + kFusedRows);
    }
};

// q takes a side by turns; k and v, whose first block is the one before the first, a stage of their rings.
struct LossWalk : hybrid_roles::Walk {
    using Walk::Walk;
    __device__ __forceinline__ int step(int b) const { return b - first; }
    __device__ __forceinline__ int value_stage(int b) const { return copy(b) % kValueStages; }
    __device__ __forceinline__ int value_parity(int b) const { return copy(b) / kValueStages % 2; }
};

// Asks for rows [t, t + 64) of head (b, h) in the L2 cache. One thread calls.
template <int D>
__device__ __forceinline__ void prefetch_tile(const CUtensorMap& map, int t, int h, int b) {
#pragma unroll
    for (int column = 0; column < D; column += kMapColumns)
        asm volatile("cp.async.bulk.prefetch.tensor.4d.L2.global.tile [%0, {%1, %2, %3, %4}];" ::"l"(&map), "r"(column),
                     "r"(t), "r"(h), "r"(b)
                     : "memory");
}

// The copies of a walk's tiles: a thread of each warp has a stream of them, and asks for the next tile in the L2 cache while it waits for
// the place of one.
template <int D>
struct LossCopies {
    const LossArgs& args;
    const FusedHead& head;
    const LossRoom<D>& room;
    LossBarriers& barriers;
    const LossWalk& walk;

    // Block -1, before the sequence, comes as zeros.
    __device__ __forceinline__ void run(int stream) const {
        const CUtensorMap& map = stream == 0 ? args.q : stream == 1 ? args.k : stream == 2 ? args.v : args.target;
        const int h = stream == 1 || stream == 2 ? head.hk : head.h, batch = static_cast<int>(head.b);
        for (int b = stream == 1 || stream == 2 ? walk.first - 1 : walk.first; b < walk.last; ++b) {
            if (b + 1 < walk.last) prefetch_tile<D>(map, (b + 1) * kFusedRows, h, batch);
            const Place to = stream == 0 ? queries(b) : stream == 1 ? keys(b) : stream == 2 ? values(b) : target(b);
            to.free.wait(to.parity ^ 1);
            to.full.expect(LossTraits<D>::Rows::kBytes);
            copy_tile(to.tile, map, b * kFusedRows, h, batch, to.full);
        }
    }

  private:
    struct Place {
        typename LossTraits<D>::Rows tile;
        Barrier &full, &free;
        int parity;
    };
    __device__ __forceinline__ Place queries(int b) const {
        const int side = walk.side(b);
        return {room.q(side), barriers.q_full[side], barriers.q_free[side], walk.turn(b)};
    }
    __device__ __forceinline__ Place keys(int b) const {
        const int stage = walk.stage(b);
        return {room.k(stage), barriers.k_full[stage], barriers.k_free[stage], walk.parity(b)};
    }
    __device__ __forceinline__ Place values(int b) const {
        const int stage = walk.value_stage(b);
        return {room.v(stage), barriers.v_full[stage], barriers.v_free[stage], walk.value_parity(b)};
    }
    __device__ __forceinline__ Place target(int b) const {
        return {room.target(), barriers.target_full, barriers.target_free, walk.step(b) % 2};
    }
};

#endif

}  // namespace lc::kernels::transfer_rows
