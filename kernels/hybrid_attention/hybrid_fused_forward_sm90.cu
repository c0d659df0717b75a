// Fused hybrid attention on Hopper (sm_90a): forward. wgmma, TMA, warpgroups with roles. When it applies: hybrid_fused.h.
//
// MATHS    hybrid_attention.h, transposed: y^T = (S^T phi_q^T + v^T P^T) / Z. The state S^T [D,F'] stays in registers, and as it
//          stands, rounded, it is the left operand of the next product: no copy of it in shared memory.
// TILING   thread block = (batch entry, query head, segment), one on each SM, blocks of 64 positions in order. Warpgroups:
//
//            maps       phi_q(b), phi_q.z; phi_k(b-1)                            [64,64] products
//            scores     q(b) [k(b-1), k(b)]^T -> P, 1 / Z
//            outputs    y^T = v(b-1)^T P^T + v(b)^T P^T + S^T phi_q^T; S^T += v(b-1)^T phi_k(b-1): 64 of D each. One sums up z,
//                       one thread queues copies, y leaves through the place of v(b-1).
//
//          A tile goes from role to role through its `full` and `free` barriers, so that the roles work on different blocks.
//          Shared memory: 2 q, 3 k, 3 v [64,D], maps [D,F], 2 phi_q, phi_k, P [64,128].
// COST     as hybrid_fused_forward.cu. On chip a block of 64 rows takes, D = 128: tensor cores 2560 clocks, exponentials 1536,
//          shared memory 3100; seen at 8x1024x32: 5000, of which a tenth is the start of a walk.
// NUMERICS as hybrid_fused_forward.cu, but: 1 / Z and the scales of features by rcp.approx (1 ulp); gamma enters through the
//          exponent; the exponent of a weight is one fma, so that a weight may pass gamma by rounding; z enters phi_q.z as two
//          bf16 numbers. Features are made without the shift of their softmax where nothing can overflow or fall below the
//          least feature (FeatureRows::make).
// LADDER   H200, 8x1024 tokens, 32 heads of 128, 8 KV heads, us:
//          1 230  hybrid_fused_forward.cu: mma.sync, three barriers a block for all warps.
//          2 198  (H100) its products with wgmma, a warpgroup a product, the same barriers: waiting, not multiplying, took the time.
//          3 148  roles. Each runs four warps, one on each scheduler: what counts is the longest chain of a role, here the maps.
//          4 152  phi_q.z and sums of weights by mma.sync, no divisions: fewer instructions, but an array indexed at run time had
//                 gone to local memory, and the copies' thread waited for q in the middle of the scores.
//          5 121  that mended; q twice, copies queued by the outputs, two blocks ahead.
//          6 102  maps: the projection of k under the store of phi_q, no shift; 1 / Z made once a row; y by the copy engine.
//          7 100  z summed by the outputs, the maps' loads at once and by the maps alone. What is left: the maps' chain (4200
//                 clocks a block) and the start of two walks an SM; next would be blocks that stay and load the next head ahead.
// SOURCE   arXiv 2410.10254; the roles are derived here.
#include "kernels/common/cuda/hopper.h"
#include "kernels/common/cuda/roles.cuh"
#include "kernels/hybrid_attention/hybrid_fused.h"
#include "kernels/hybrid_attention/hybrid_fused_segments.cuh"

namespace lc::kernels {
namespace {

struct ForwardArgs {
    CUtensorMap q, k, v, y;
    FusedInputs in;
    float *s_out, *z_out;  // [B,Hs,F',D], [B,Hs,F'], or null
    const float* starts;   // S, z of the segments
};

enum Role { kMaps, kScores, kOutputs };

constexpr int kRing = 3;                                // tiles of k and of v
constexpr int kBarrierBytes = 25 * 8;                   // of ForwardBarriers
constexpr int kTotalsFloats = 2 * kFusedFeatures + 12;  // of a TotalsTile
using FeatureTile = WgmmaTile<kFusedRows, kFusedFeatures>;
using Panel = WgmmaTile<kFusedRows, 64>;

enum NamedBarrier { kMapsBarrier = 1, kOutputsBarrier };  // the latter: and the next

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

// z [F'] in shared memory: f32, and beside it as the right operand of phi z, rounded to bf16 in row 0 and what that took away in
// row 1 of [8,F'].
struct TotalsTile {
    float* z;
    __nv_bfloat16* rows;                                // then eight zeros for the other rows
    static constexpr int kStride = kFusedFeatures + 8;  // in different banks
    static_assert(kTotalsFloats == kFusedFeatures + kStride + 4);

    explicit __device__ TotalsTile(float* room)
        : z(room), rows(reinterpret_cast<__nv_bfloat16*>(room + kFusedFeatures)) {}

    // By all threads of a warpgroup: z, or zeros where there is none.
    __device__ __forceinline__ void begin(int barrier, const float* from) const {
        for (int i = threadIdx.x % kWarpgroup; i < kTotalsFloats; i += kWarpgroup) z[i] = 0;
        named_sync<kWarpgroup>(barrier);
        static_assert(kFusedFeatures == kWarpgroup);
        if (from) put(threadIdx.x % kWarpgroup, from[threadIdx.x % kWarpgroup]);
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
    // z += 1^T phi, each warp for 32 features.
    __device__ __forceinline__ void add(const FeatureTile& phi) const {
        constexpr uint32_t kOnes = 0x3f803f80u;
        const FragmentB ones{{kOnes, kOnes}};
        const int lane = threadIdx.x % kWarp, first = warp_index() % 4 * 32;
        Accumulator sum[2] = {};  // every column holds the same
#pragma unroll
        for (int k = 0; k < kFusedRows; k += 16)
#pragma unroll
            for (int m = 0; m < 2; ++m) {
                FragmentA a;
                ldmatrix_transposed(a.r, phi.chunk(k + lane % 8 + lane / 16 * 8, first + 16 * m + lane / 8 % 2 * 8));
                mma(sum[m], a, ones, 0);
            }
        // Rows g and g + 8 of two results: one feature for each lane of a quad.
        const int t = quad_lane();
        const float more = t < 2 ? (t == 0 ? sum[0].c[0] : sum[0].c[2]) : (t == 2 ? sum[1].c[0] : sum[1].c[2]);
        const int feature = first + 8 * t + quad_row();
        put(feature, z[feature] + more);
    }
};

#endif

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
    // Of q, P's sums: pairs of stages.
    __device__ __forceinline__ int side(int b) const { return (b - first) % 2; }
    __device__ __forceinline__ int turn(int b) const { return (b - first) / 2 % 2; }
    __device__ __forceinline__ int copy(int b) const {
        return b - first + 1;
    }  // the block before the first is copied too
    __device__ __forceinline__ int stage(int b) const { return copy(b) % kRing; }
    __device__ __forceinline__ int parity(int b) const { return copy(b) / kRing % 2; }
    __device__ __forceinline__ int far_step(int b) const { return b - max(first, 2); }
    __device__ __forceinline__ int growth(int b) const { return b - max(first, 1); }
};

__device__ __forceinline__ float reciprocal(float x) {
    float result;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
    return result;
}

// --- maps ---

// This thread's shares of phi of two rows: columns 16 i .. of p(ositive) and n(egative) features as operands.
struct FeatureRows {
    FragmentA p[kFusedMap / 16], n[kFusedMap / 16];

    // u [64,F] -> features. First without a shift: while no sum of the warp's rows passes kTame, no |u| is so large that an
    // exponential could overflow, or a feature be below the least one.
    __device__ __forceinline__ void make(const float (&u)[kFusedMap / 2]) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            float up[kShare], down[kShare];
            float2 sum = exponentials(u, half, 0, 0, up, down);
            const bool tame = __all_sync(0xffffffffu, sum.x <= kTame && sum.y <= kTame);
            if (!tame) {
                float high = at(u, half, 0), low = high;
#pragma unroll
                for (int j = 1; j < kShare; ++j) high = fmaxf(high, at(u, half, j)), low = fminf(low, at(u, half, j));
                sum = exponentials(u, half, quad_max(high) * kLog2E, -quad_max(-low) * kLog2E, up, down);
            }
            const float scale_p = reciprocal(quad_sum(sum.x)), scale_n = reciprocal(quad_sum(sum.y));
#pragma unroll
            for (int j = 0; j < kShare; j += 2) {
                const int r = j / 2 % 2 * 2 + half;
                p[j / 4].r[r] = pack_bf16(scale_p * up[j], scale_p * up[j + 1]);
                n[j / 4].r[r] = pack_bf16(scale_n * down[j], scale_n * down[j + 1]);
                if (!tame) clamp(p[j / 4].r[r]), clamp(n[j / 4].r[r]);
            }
        }
    }
    __device__ __forceinline__ void store(const FeatureTile& tile) const {
#pragma unroll
        for (int i = 0; i < kFusedMap / 16; ++i)
            store_operand(tile, p[i], i), store_operand(tile, n[i], kFusedMap / 16 + i);
    }
    // phi . z of the rows accumulator_row() and eight below, in lanes with quad_lane() == 0.
    __device__ __forceinline__ float2 dot(const TotalsTile& z) const {
        Accumulator c = {};
#pragma unroll
        for (int i = 0; i < kFusedMap / 16; i += 2) {
            const FragmentB b = z.load(i), below = z.load(kFusedMap / 16 + i);
            mma(c, p[i], b, 0), mma(c, p[i + 1], b, 1);
            mma(c, n[i], below, 0), mma(c, n[i + 1], below, 1);
        }
        return make_float2(c.c[0] + c.c[1], c.c[2] + c.c[3]);
    }

  private:
    static constexpr int kShare = kFusedMap / 4;  // columns of a row in one thread
    static constexpr float kTame = 5e4f;          // 1 / (4 kTame^2) > 1e-12

    static __device__ __forceinline__ float at(const float (&u)[kFusedMap / 2], int half, int j) {
        return u[j / 2 * 4 + 2 * half + j % 2];
    }
    // up = exp2(log2e u - high), down = exp2(low - log2e u); this thread's sums of them
    static __device__ __forceinline__ float2 exponentials(const float (&u)[kFusedMap / 2], int half, float high,
                                                          float low, float (&up)[kShare], float (&down)[kShare]) {
        float2 sum = make_float2(0, 0);
#pragma unroll
        for (int j = 0; j < kShare; ++j) {
            const float x = at(u, half, j) * kLog2E;
            up[j] = exp2_approx(x - high), down[j] = exp2_approx(low - x);
            sum.x += up[j], sum.y += down[j];
        }
        return sum;
    }
    static __device__ __forceinline__ void clamp(uint32_t& pair) {
        __nv_bfloat162& x = reinterpret_cast<__nv_bfloat162&>(pair);
        x = __hmax2(x, __float2bfloat162_rn(static_cast<float>(kFeatureEpsilon)));
    }
};

// Queues u = x W.
template <int D>
__device__ __forceinline__ void project(float (&u)[kFusedMap / 2], const WgmmaTile<kFusedRows, D>& x,
                                        const WgmmaTile<D, kFusedMap>& w) {
    const WgmmaDescriptor left = k_major(x), right = mn_major(w);
    wgmma_fence();
#pragma unroll
    for (int k = 0; k < D; k += 16)
        wgmma_ss<Major::MN>(u, left + k_offset<WgmmaTile<kFusedRows, D>>(k), right + 64 * k, k > 0);
    wgmma_commit();
}

// A step of the maps: with a state to read phi_q(b) and its product with z (Far), with a state to come phi_k(b-1) (Grows). A projection is
// queued before what can be done without it.
template <int D, bool Far, bool Grows>
__device__ __forceinline__ void make_features(const ForwardRoom<D>& room, ForwardBarriers& barriers, const Walk& walk,
                                              int b) {
    const int side = walk.side(b), stage = walk.far_step(b) & 1, before = walk.stage(b - 1);
    float u[kFusedMap / 2];
    FeatureRows phi;
    barriers.q_full[side].wait(walk.turn(b));  // also where q is not read: arrivals at q_free stay in step
    if constexpr (Far) {
        project<D>(u, room.q(side), room.map(0));
        wgmma_wait<0>();
        wgmma_settle(u);
    }
    release(barriers.q_free[side]);
    if constexpr (Far) phi.make(u);
    barriers.k_full[before].wait(walk.parity(b - 1));
    if constexpr (Grows) project<D>(u, room.k(before), room.map(1));
    if constexpr (Far) {
        barriers.z_full.wait(walk.growth(b) % 2);
        const float2 dot = phi.dot(room.z());
        barriers.phi_q_free[stage].wait(walk.far_step(b) / 2 % 2 ^ 1);
        phi.store(room.phi_q(stage));
        if (quad_lane() == 0) {
            room.far(stage)[accumulator_row()] = dot.x;
            room.far(stage)[accumulator_row() + 8] = dot.y;
        }
        fence_async_proxy();
        barriers.phi_q_full[stage].arrive();
    }
    if constexpr (Grows) {
        wgmma_wait<0>();
        wgmma_settle(u);
    }
    release(barriers.k_free[before]);
    if constexpr (Grows) {
        phi.make(u);
        barriers.phi_k_free.wait(walk.growth(b) % 2 ^ 1);
        phi.store(room.phi_k());
        fence_async_proxy();
        barriers.phi_k_full.arrive();
    }
}

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

// --- scores ---

// Scores of two rows against the block before and their own -> weights as rounded for products, and in lanes with
// quad_lane() == 0 their sums.
__device__ __forceinline__ float2 weigh(float (&before)[32], float (&own)[32], float factor, float log_gamma,
                                        bool first_block, FragmentA (&p)[8]) {
    const int last = accumulator_row() - 2 * quad_lane();
#pragma unroll
    for (int i = 0; i < 32; ++i)
        if (i / 4 * 8 + i % 2 - i / 2 % 2 * 8 > last) own[i] = -INFINITY;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const auto at = [&](const float(&x)[32], int j) { return x[j / 2 * 4 + 2 * half + j % 2]; };
        float top_before = -INFINITY, top = -INFINITY;
#pragma unroll
        for (int j = 0; j < 16; ++j) top_before = fmaxf(top_before, at(before, j)), top = fmaxf(top, at(own, j));
        top = quad_max(first_block ? top : fmaxf(top, top_before));
        const float shift = log_gamma - top * factor;
        const auto pairs = [&](const float(&x)[32], float by, int first) {
#pragma unroll
            for (int j = 0; j < 16; j += 2)
                p[first + j / 4].r[j / 2 % 2 * 2 + half] =
                    pack_bf16(exp2_approx(fmaf(at(x, j), factor, by)), exp2_approx(fmaf(at(x, j + 1), factor, by)));
        };
        pairs(before, first_block ? -INFINITY : shift, 0), pairs(own, shift, 4);
    }
    constexpr uint32_t kOnes = 0x3f803f80u;
    Accumulator sum = {};
#pragma unroll
    for (int i = 0; i < 8; ++i) mma(sum, p[i], FragmentB{{kOnes, kOnes}}, 0);
    return make_float2(sum.c[0], sum.c[2]);
}

template <int D>
__device__ __forceinline__ void make_weights(const ForwardArgs& args, const FusedHead& head, const ForwardRoom<D>& room,
                                             ForwardBarriers& barriers) {
    const Walk walk(head);
    const float factor = args.in.shape.scale * kLog2E;
    const float log_gamma = log2f(fmaxf(DeviceMix(args.in.mix_logit, args.in.spec, head.h).gamma, kLeastGamma));
    barriers.k_full[walk.stage(walk.first - 1)].wait(walk.parity(walk.first - 1));
    for (int b = walk.first; b < walk.last; ++b) {
        const int side = walk.side(b);
        float before[32], own[32];
        FragmentA p[8];
        barriers.q_full[side].wait(walk.turn(b));
        barriers.k_full[walk.stage(b)].wait(walk.parity(b));
        wgmma_fence();
        multiply_rows<kFusedRows>(before, room.q(side), 0, room.k(walk.stage(b - 1)));
        multiply_rows<kFusedRows>(own, room.q(side), 0, room.k(walk.stage(b)));
        wgmma_commit();
        wgmma_wait<0>();
        wgmma_settle(before);
        wgmma_settle(own);
        release(barriers.q_free[side]);
        release(barriers.k_free[walk.stage(b - 1)]);
        const float2 sum = weigh(before, own, factor, log_gamma, b == 0, p);
        float2 total = sum;
        if (walk.reads_state(b)) {
            const int stage = walk.far_step(b) & 1;
            barriers.phi_q_full[stage].wait(walk.far_step(b) / 2 % 2);
            total.x += room.far(stage)[accumulator_row()], total.y += room.far(stage)[accumulator_row() + 8];
        }
        barriers.p_free.wait(side ^ 1);
#pragma unroll
        for (int i = 0; i < 8; ++i) store_operand(room.p(), p[i], i);
        if (quad_lane() == 0) {
            room.inverse(side)[accumulator_row()] = reciprocal(total.x);
            room.inverse(side)[accumulator_row() + 8] = reciprocal(total.y);
        }
        fence_async_proxy();
        barriers.p_full.arrive();
    }
}

// --- outputs ---

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
        copy(b, args.q, head.h, room.q(side), barriers.q_full[side], barriers.q_free[side], walk.turn(b));
    }
    __device__ __forceinline__ void keys(int b) const {
        const int stage = walk.stage(b);
        copy(b, args.k, head.hk, room.k(stage), barriers.k_full[stage], barriers.k_free[stage], walk.parity(b));
    }
    __device__ __forceinline__ void values(int b) const {
        const int stage = walk.stage(b);
        copy(b, args.v, head.hk, room.v(stage), barriers.v_full[stage], barriers.v_free[stage], walk.parity(b));
    }
    // Block -1, before the sequence, comes as zeros.
    __device__ __forceinline__ void copy(int b, const CUtensorMap& map, int h,
                                         const typename ForwardTraits<D>::Rows& tile, Barrier& full, Barrier& free,
                                         int parity) const {
        if (b >= walk.last) return;
        free.wait(parity ^ 1);
        full.expect(ForwardTraits<D>::Rows::kBytes);
        copy_tile(tile, map, b * kFusedRows, h, static_cast<int>(head.b), full);
    }
};

// The elements of S [F',D] that this thread has of S^T: f(element of c, place).
template <int D, class F>
__device__ __forceinline__ void each_state(float (&state)[kFusedFeatures / 2], int panel, F&& f) {
    const int row = 64 * panel + accumulator_row();
#pragma unroll
    for (int i = 0; i < kFusedFeatures / 2; ++i)
        f(state[i], (i / 4 * 8 + 2 * quad_lane() + i % 2) * D + row + i / 2 % 2 * 8);
}

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
    if (leads) {
        store_panel(staged, args.y, b * kFusedRows, 64 * panel, head.h, static_cast<int>(head.b));
        store_commit();
    }
}

template <int D>
__device__ __forceinline__ void make_outputs(const ForwardArgs& args, const FusedHead& head, const ForwardRoom<D>& room,
                                             ForwardBarriers& barriers, int panel) {
    const FusedShape& s = args.in.shape;
    const Walk walk(head);
    float state[kFusedFeatures / 2] = {};
    const float* starts = args.starts + (head.item * (s.segments - 1) + head.segment - 1) * kSumsSize<D>;
    if (head.segment > 0) each_state<D>(state, panel, [&](float& x, int place) { x = starts[place]; });
    if (panel == ForwardTraits<D>::kTotals) {
        room.z().begin(kOutputsBarrier + panel, head.segment == 0 ? nullptr : starts + kFusedFeatures * D);
        barriers.z_full.arrive();
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

#endif

template <int D>
__global__ void __launch_bounds__(ForwardTraits<D>::kThreads, 1)
    forward_kernel(const __grid_constant__ ForwardArgs args) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
    using Tr = ForwardTraits<D>;
    extern __shared__ __align__(kTileAlignment) unsigned char shared[];
    const ForwardRoom<D> room{reinterpret_cast<__nv_bfloat16*>(shared)};
    ForwardBarriers& barriers = room.barriers();
    const FusedHead head(args.in.shape);
    const int group = warpgroup_index();
    if (threadIdx.x == kOutputs * kWarpgroup) {
        barriers.init(Tr::kOutputThreads);
        const Walk walk(head);
        Copies<D>{args, head, room, barriers, walk}.begin();  // the first tiles come while the maps are loaded
    }
    __syncwarp();
    __syncthreads();
    if (group == kMaps) {
        if constexpr (D == 128) shrink_registers<104>();
        load_map<D, kWarpgroup>(room.map(0), args.in.wq, head.h, threadIdx.x % kWarpgroup);
        load_map<D, kWarpgroup>(room.map(1), args.in.wk, head.hs, threadIdx.x % kWarpgroup);
        fence_async_proxy();
        named_sync<kWarpgroup>(kMapsBarrier);
        const Walk walk(head);
        each_step(walk,
                  [&](int b, auto far, auto grows) { make_features<D, far(), grows()>(room, barriers, walk, b); });
    } else if (group == kScores) {
        if constexpr (D == 128) shrink_registers<104>();
        make_weights<D>(args, head, room, barriers);
    } else {
        if constexpr (D == 128) grow_registers<152>();
        make_outputs<D>(args, head, room, barriers, group - kOutputs);
    }
#endif
}

}  // namespace

void hybrid_fused_forward_sm90(const HybridAttentionForward& a, Stream stream) {
    clear_result(a.y, stream);
    FusedInputs in(a);
    in.shape.segments = segments_of(in.shape, a.q.device);
    const int64_t head_dim = a.q.size(3);
    const SegmentStarts starts(in, head_dim, stream);
    const ForwardArgs args{head_map(a.q),
                           head_map(a.k),
                           head_map(a.v),
                           head_map(a.y),
                           in,
                           device_data<float>(a.s_out),
                           device_data<float>(a.z_out),
                           starts.of_keys()};
    dispatch_head_dim(static_cast<int>(head_dim), [&](auto d) {
        using Tr = ForwardTraits<d()>;
        allow_shared_memory(forward_kernel<d()>, Tr::kBytes);
        forward_kernel<d()><<<grid_x(in.shape.parts()), Tr::kThreads, Tr::kBytes, cuda::handle_of(stream)>>>(args);
        LC_LAUNCHED("hybrid_attention", cuda::handle_of(stream));
    });
}

}  // namespace lc::kernels
