// The Hopper form of hybrid attention forward (hybrid_fused_forward_sm90.cu): what its roles share. Arguments, shared memory, the barriers
// between them, and which stage of each a step takes.
#pragma once
#include "kernels/common/cuda/roles.cuh"
#include "kernels/hybrid_attention/hybrid_fused_segments.cuh"

namespace lc::kernels::hybrid_roles {

struct ForwardArgs {
    CUtensorMap q, k, v, y;
    FusedInputs in;
    StateRows past;
    float *s_out, *z_out;  // [B,Hs,F',D], [B,Hs,F'], or null
    const float* starts;   // S, z of the segments
};

enum Role { kMaps, kScores, kOutputs };

inline constexpr int kRing = 3;                                // tiles of k and of v
inline constexpr int kBarrierBytes = 25 * 8;                   // of ForwardBarriers
inline constexpr int kTotalsFloats = 2 * kFusedFeatures + 12;  // of a TotalsTile
using FeatureTile = WgmmaTile<kFusedRows, kFusedFeatures>;
using Panel = WgmmaTile<kFusedRows, 64>;

enum NamedBarrier { kMapsBarrier = 1, kOutputsBarrier };  // the latter: and the next

template <int D>
struct ForwardTraits {
    static constexpr int kOutputGroups = D / 64, kGroups = kOutputs + kOutputGroups;
    static constexpr int kTotals = kOutputGroups - 1;  // the panel whose warpgroup sums up z beside S
    static constexpr int kThreads = kGroups * kWarpgroup, kOutputThreads = kOutputGroups * kWarpgroup;
    using Rows = WgmmaTile<kFusedRows, D>;
    using Map = WgmmaTile<D, kFusedMap>;
    static constexpr int kFloats = kTotalsFloats + 4 * kFusedRows;  // z, far, 1 / Z
    static constexpr int kBytes = (2 + 2 * kRing) * Rows::kBytes + 2 * Map::kBytes + 4 * FeatureTile::kBytes +
                                  kFloats * static_cast<int>(sizeof(float)) + kBarrierBytes;
    static_assert(kBytes <= kSharedLimit);
};

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

// weights^T phi, on the warpgroup's cores: mma would queue behind all products that are under way. Lane 8 c + r of a warp adds up eight
// columns, chunk c of the warp's four, over the rows r, r + 8, ...
struct ColumnSums {
    float sum[8] = {};

    template <class Weight>
    __device__ __forceinline__ void add(const FeatureTile& phi, Weight&& weight) {
        const int row = threadIdx.x % 8;
        const __nv_bfloat16* from = phi.chunk(row, threadIdx.x % kWarpgroup / 8 * 8);
#pragma unroll
        for (int i = 0; i < kFusedRows / 8; ++i) {
            const uint4 x = *reinterpret_cast<const uint4*>(from + i * 8 * 64);
            const float w = weight(row + 8 * i);
            const uint32_t pairs[4] = {x.x, x.y, x.z, x.w};
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                const float2 pair = unpack_bf16(pairs[j]);
                sum[2 * j] = fmaf(w, pair.x, sum[2 * j]), sum[2 * j + 1] = fmaf(w, pair.y, sum[2 * j + 1]);
            }
        }
    }
    // Of column threadIdx.x % kWarpgroup: eight lanes swap halves of their columns.
    __device__ __forceinline__ float total() const {
        float x[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) x[i] = swap(sum[i], sum[i + 4], 4);
        x[0] = swap(x[0], x[2], 2), x[1] = swap(x[1], x[3], 2);
        return swap(x[0], x[1], 1);
    }

  private:
    // This lane's and its partner's share of `low`, or of `high` in the lane with that bit.
    static __device__ __forceinline__ float swap(float low, float high, int bit) {
        const bool upper = threadIdx.x & bit;
        return (upper ? high : low) + __shfl_xor_sync(0xffffffffu, upper ? low : high, bit);
    }
};

// z [F'] in shared memory: f32, and beside it as the right operand of phi z, rounded to bf16 in row 0 and what that took away in
// row 1 of [8,F'].
struct TotalsTile {
    float* z;
    __nv_bfloat16* rows;                                // then eight zeros for the other rows
    static constexpr int kStride = kFusedFeatures + 8;  // in different banks
    static_assert(kTotalsFloats == kFusedFeatures + kStride + 4);

    explicit __device__ TotalsTile(float* room)
        : z(room), rows(reinterpret_cast<__nv_bfloat16*>(room + kFusedFeatures)) {}

    // By all threads of a warpgroup: the sum of two z, of which either may be missing.
    __device__ __forceinline__ void begin(int barrier, const float* start, const float* past = nullptr) const {
        for (int i = threadIdx.x % kWarpgroup; i < kTotalsFloats; i += kWarpgroup) z[i] = 0;
        named_sync<kWarpgroup>(barrier);
        static_assert(kFusedFeatures == kWarpgroup);
        const int i = threadIdx.x % kWarpgroup;
        if (start || past) put(i, (start ? start[i] : 0.0f) + (past ? past[i] : 0.0f));
        named_sync<kWarpgroup>(barrier);
    }
    __device__ __forceinline__ void put(int feature, float value) const {
        z[feature] = value;
        rows[feature] = __float2bfloat16(value);
        rows[kStride + feature] = __float2bfloat16(value - __bfloat162float(rows[feature]));
    }
    __device__ __forceinline__ void store(float* to) const {
        to[threadIdx.x % kWarpgroup] = z[threadIdx.x % kWarpgroup];
    }
    // Features 16 i .. 16 i + 31 as operands [16, 8].
    __device__ __forceinline__ FragmentB load(int i) const {
        const int lane = threadIdx.x % kWarp;
        FragmentB b;
        ldmatrix(b.r, rows + (lane % 8 < 2 ? lane % 8 * kStride + 16 * i + lane / 8 * 8 : 2 * kStride));
        return b;
    }
    // z += 1^T phi, by all threads of a warpgroup.
    __device__ __forceinline__ void add(const FeatureTile& phi) const {
        ColumnSums sums;
        sums.add(phi, [](int) { return 1.0f; });
        const int feature = threadIdx.x % kWarpgroup;
        put(feature, z[feature] + sums.total());
    }
};

struct ForwardBarriers {
    Barrier q_full[2], q_free[2], k_full[kRing], k_free[kRing], v_full[kRing], v_free[kRing];
    Barrier phi_q_full[2], phi_q_free[2], phi_k_full, phi_k_free, p_full, p_free, z_full;

    __device__ void init(int output_threads) {
        constexpr int kWarpsOfGroup = kWarpgroup / kWarp;
        for (int i = 0; i < 2; ++i) q_full[i].init(1), q_free[i].init(2 * kWarpsOfGroup);
        for (int i = 0; i < kRing; ++i) {
            k_full[i].init(1), k_free[i].init(2 * kWarpsOfGroup);
            v_full[i].init(1), v_free[i].init(output_threads / kWarpgroup);
        }
        for (int i = 0; i < 2; ++i) phi_q_full[i].init(kWarpgroup), phi_q_free[i].init(output_threads / kWarp);
        phi_k_full.init(kWarpgroup), phi_k_free.init(output_threads);
        p_full.init(kWarpgroup), p_free.init(output_threads), z_full.init(kWarpgroup);
        fence_barriers();
    }
};

static_assert(sizeof(ForwardBarriers) == kBarrierBytes);

template <int D>
struct ForwardRoom {
    using Tr = ForwardTraits<D>;
    __nv_bfloat16* base;

    __device__ __forceinline__ typename Tr::Rows rows(int i) const { return {base + i * kFusedRows * D}; }
    __device__ __forceinline__ typename Tr::Rows q(int stage) const { return rows(stage); }
    __device__ __forceinline__ typename Tr::Rows k(int stage) const { return rows(2 + stage); }
    __device__ __forceinline__ typename Tr::Rows v(int stage) const { return rows(2 + kRing + stage); }
    __device__ __forceinline__ typename Tr::Map map(int i) const {
        return {base + (2 + 2 * kRing) * kFusedRows * D + i * D * kFusedMap};
    }
    __device__ __forceinline__ FeatureTile features(int i) const {
        return {map(2).data + i * kFusedRows * kFusedFeatures};
    }
    __device__ __forceinline__ FeatureTile phi_q(int stage) const { return features(stage); }
    __device__ __forceinline__ FeatureTile phi_k() const { return features(2); }
    __device__ __forceinline__ FeatureTile p() const { return features(3); }
    __device__ __forceinline__ float* floats() const { return reinterpret_cast<float*>(features(4).data); }
    __device__ __forceinline__ TotalsTile z() const { return TotalsTile(floats()); }
    __device__ __forceinline__ float* far(int stage) const { return floats() + kTotalsFloats + stage * kFusedRows; }
    __device__ __forceinline__ float* inverse(int stage) const { return far(2 + stage); }
    __device__ __forceinline__ ForwardBarriers& barriers() const { return *reinterpret_cast<ForwardBarriers*>(far(4)); }
};

// The steps of a walk: which stages and parities of barriers block b has.
struct Walk {
    int first, last;
    explicit __device__ Walk(const FusedHead& head) : first(head.first), last(head.last) {}

    __device__ __forceinline__ bool reads_state(int b) const { return b >= 2; }
    __device__ __forceinline__ bool grows_state(int b) const { return b >= 1 && b + 1 < last; }  // by block b - 1
    // Of q and 1 / Z: two stages.
    __device__ __forceinline__ int side(int b) const { return (b - first) % 2; }
    __device__ __forceinline__ int turn(int b) const { return (b - first) / 2 % 2; }
    // Of k and v: the block before the first is copied too.
    __device__ __forceinline__ int copy(int b) const { return b - first + 1; }
    __device__ __forceinline__ int stage(int b) const { return copy(b) % kRing; }
    __device__ __forceinline__ int parity(int b) const { return copy(b) / kRing % 2; }
    __device__ __forceinline__ int far_step(int b) const { return b - max(first, 2); }
    __device__ __forceinline__ int growth(int b) const { return b - max(first, 1); }
    // Of z: a walk that begins with a state tells of it.
    __device__ __forceinline__ bool begins_with_state() const { return reads_state(first); }
    __device__ __forceinline__ int totals(int b) const { return growth(b) - (begins_with_state() ? 0 : 1); }
};

// f(b, Far, Grows) for the steps of a walk: a branch between the products of one accumulator would make the compiler finish each
// before the next.
template <class F>
__device__ __forceinline__ void each_step(const Walk& walk, F&& f) {
    int b = walk.first;
    for (; b < walk.last && !walk.reads_state(b); ++b) {
        if (walk.grows_state(b))
            f(b, std::false_type{}, std::true_type{});
        else
            f(b, std::false_type{}, std::false_type{});
    }
    for (; b + 1 < walk.last; ++b) f(b, std::true_type{}, std::true_type{});
    if (b < walk.last) f(b, std::true_type{}, std::false_type{});
}

// The elements of S [F',D] that this thread has of S^T: f(element of c, place).
template <int D, class F>
__device__ __forceinline__ void each_state(float (&state)[kFusedFeatures / 2], int panel, F&& f) {
    const int row = 64 * panel + accumulator_row();
#pragma unroll
    for (int i = 0; i < kFusedFeatures / 2; ++i)
        f(state[i], (i / 4 * 8 + 2 * quad_lane() + i % 2) * D + row + i / 2 % 2 * 8);
}

// Asks for rows [t, t + 64), columns [column, column + 64) of head (b, h) in the L2 cache. One thread calls.
__device__ __forceinline__ void prefetch_panel(const CUtensorMap& map, int t, int column, int h, int b) {
    asm volatile("cp.async.bulk.prefetch.tensor.4d.L2.global.tile [%0, {%1, %2, %3, %4}];" ::"l"(&map), "r"(column),
                 "r"(t), "r"(h), "r"(b)
                 : "memory");
}

__device__ __forceinline__ float reciprocal(float x) {
    float result;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
    return result;
}

#endif

}  // namespace lc::kernels::hybrid_roles
