// What the segments of a walk begin with (hybrid_fused_segments.cu), on Hopper (sm_90a): wgmma, TMA, warpgroups with roles.
//
// MATHS    hybrid_fused_segments.cu, transposed: S^T [D,F'] = sum of values^T phi over the blocks of a segment.
// TILING   [1] sums    the blocks of all segments but each item's last, one item after the other, cut evenly: a thread block on each
//                      SM. Where a segment or an item ends, it stores what it has (a part) and begins anew. Warpgroups:
//
//                        maps, two of them   phi of every other block         [64,64] products
//                        sums                S^T += values^T phi, z           [64,128] products, D of 64 rows each
//                        copies              one thread queues rows and values
//
//          [2] starts  one thread four elements of a state: the running sum of an item's parts, in order, at each segment's end
//
//          Shared memory: 5 rows, 4 values [64,D], maps [D,F] of two items, 3 phi [64,128].
// COST     a position, D = 128: 3 D^2 FLOPs, 4 D bytes. On chip a block of 64 takes: tensor cores 768 clocks, exponentials 512.
//          Parts: 66 KB each, at most one an SM and one a segment; starts as in hybrid_fused_segments.cu.
// NUMERICS hybrid_fused_segments.cu, and features as in hybrid_fused_forward_sm90.cu. The cut is a function of shape and device.
// LADDER   H200, sums with their prefix, us, at 1x1024, 2x4096, 1x32768 (32 heads of 128, 8 KV heads; keys, then queries):
//          1  17  68  266 |  17  72  279   hybrid_fused_segments.cu: mma.sync. A thread block a segment but the last, so that a cut in two
//                                          leaves half of the SMs idle.
//          2  19  45  209 |  18  43  184   three groups of maps, one of sums that also queues copies; even shares. Meant for 800 clocks a
//                                          block, seen 3700: divisions of int64 by the copies' thread.
//          3  19  35  148 |  18  40  154   those made once. z by mma.sync takes 1100 clocks a block: it queues behind wgmma in flight.
//          4  17  32  128 |  16  36  140   z by the cores, parts as threads hold them; left: 870 clocks a block for queueing copies.
//          5  15  27  122 |  15  34  131   copies by a group of their own, two groups of maps that project a block ahead.
//          6  14  26  112 |  14  32  124   features without a branch (hybrid_roles_maps.cuh), no int64 in the cuts. By clock stamps of 5 the
//                                          sums wait for phi half of the time. From queries 1x32768 reads 403 MB, 96 us at full bandwidth.
//          7 starts launched early, once a thread block makes its last part, and walks under the starts (hybrid_fused_forward_sm90.cu, which
//            has the times). Told at the beginning, starts' thread blocks crowd on the SMs that end first: 14.7 -> 19.9 at 1x2048, 8 heads.
//          Lost, H200: one launch, a cluster for an item's segments, four blocks at once, a quarter of S^T a warpgroup, prefix by way of
//          distributed shared memory. Meant for 7 at 1x1024: 12.4 | 13.0, where 6 took 13.9 | 14.5 in that run; 1x960 15.6 for 13.0,
//          2x4096 40.7 for 25.8: 96 thread blocks, and nothing is copied while they wait for each other.
// SOURCE   hybrid_fused_segments.cu; the roles are derived here.
#include "kernels/common/cuda/early.cuh"
#include "kernels/common/cuda/hopper.h"
#include "kernels/hybrid_attention/hybrid_fused_segments.cuh"
#include "kernels/hybrid_attention/hybrid_roles_maps.cuh"

namespace lc::kernels {
namespace {

using namespace hybrid_roles;

// The blocks that are summed, `count` of each item, in the order of the walk; and the thread blocks among which all are shared. In int,
// which the engine's bound on positions allows: divisions of int64 by every thread took longer than a block's products.
struct SumsCut {
    int first, count;           // of an item's walk
    int segments;               // with a sum
    int steps, start;           // of the walk
    int shares, least, larger;  // blocks of a share; so many shares have one more

    SumsCut(const FusedShape& s, int steps, int lag, int multiprocessors)
        : first(std::max(s.first - lag, 0)),
          segments(s.segments - 1),
          steps(steps - s.first),
          start(s.first - lag - first) {
        count = end(segments - 1);
        const int all = static_cast<int>(s.items) * count;
        shares = std::min(multiprocessors, all), least = all / shares, larger = all % shares;
    }
    // Of segment g, along the item.
    __host__ __device__ int end(int g) const { return start + FusedHead::steps_before(steps, g + 1, segments + 1); }
    __device__ int segment_of(int along) const {
        int g = 0;
        while (end(g) <= along) ++g;
        return g;
    }
    __device__ int share_begin(int share) const { return least * share + min(share, larger); }
    __device__ int share_of(int block) const {
        const int rest = block - larger * (least + 1);
        return rest < 0 ? block / (least + 1) : larger + rest / least;
    }
    // Every part of a segment has another share, and every segment of a share another number.
    __device__ int64_t part(int share, int item, int g) const { return share + item * segments + g; }
    int64_t parts(const FusedShape& s) const { return shares + s.items * segments; }
};

struct SumsArgs {
    CUtensorMap rows, values;  // k, v; or q, dN
    FusedShape shape;
    MapWeights map;
    const float* weights;  // dZ [items, blocks * 64]; for keys null
    SumsCut cut;
    float4* parts;
};

// A part: as the accumulators of threads hold S^T, four neighbours at a time; then z.
struct PartPlace {
    static __host__ __device__ constexpr int index(int panel, int j, int thread) {
        return (panel * kFusedFeatures / 8 + j) * kWarpgroup + thread;
    }
};

enum SumsRole { kMapGroups = 2, kSums = kMapGroups, kCopies };
inline constexpr int kRowStages = 5, kValueStages = 4, kFeatureStages = 3, kSumsThreads = (kCopies + 1) * kWarpgroup;

template <int D>
struct SumsTraits {
    using Rows = WgmmaTile<kFusedRows, D>;
    using Map = WgmmaTile<D, kFusedMap>;
    static constexpr int kBarriers = 2 * (kRowStages + kValueStages + kFeatureStages);
    static constexpr int kBytes = (kRowStages + kValueStages) * Rows::kBytes + 2 * Map::kBytes +
                                  kFeatureStages * FeatureTile::kBytes +
                                  kValueStages * kFusedRows * static_cast<int>(sizeof(float)) + kBarriers * 8;
    static_assert(kBytes <= kSharedLimit);
};

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

struct SumsBarriers {
    Barrier rows_full[kRowStages], rows_free[kRowStages], values_full[kValueStages], values_free[kValueStages],
        phi_full[kFeatureStages], phi_free[kFeatureStages];

    __device__ void init() {
        for (int i = 0; i < kRowStages; ++i) rows_full[i].init(1), rows_free[i].init(kWarpgroup / kWarp);
        for (int i = 0; i < kValueStages; ++i) values_full[i].init(1), values_free[i].init(kWarpgroup);
        for (int i = 0; i < kFeatureStages; ++i) phi_full[i].init(kWarpgroup), phi_free[i].init(kWarpgroup);
        fence_barriers();
    }
};

template <int D>
struct SumsRoom {
    using Tr = SumsTraits<D>;
    __nv_bfloat16* base;

    __device__ __forceinline__ typename Tr::Rows rows(int i) const { return {base + i * kFusedRows * D}; }
    __device__ __forceinline__ typename Tr::Rows values(int i) const { return rows(kRowStages + i); }
    __device__ __forceinline__ typename Tr::Map map(int i) const {
        return {rows(kRowStages + kValueStages).data + i * D * kFusedMap};
    }
    __device__ __forceinline__ FeatureTile phi(int i) const { return {map(2).data + i * kFusedRows * kFusedFeatures}; }
    __device__ __forceinline__ float* weights(int i) const {
        return reinterpret_cast<float*>(phi(kFeatureStages).data) + i * kFusedRows;
    }
    __device__ __forceinline__ SumsBarriers& barriers() const {
        static_assert(sizeof(SumsBarriers) == Tr::kBarriers * 8);
        return *reinterpret_cast<SumsBarriers*>(weights(kValueStages));
    }
};

// A thread block's share: `count` blocks, and those from `turn` on are of the next item. There are at least two thread blocks an item: a
// share holds no item whole and a part of two others.
struct SumsShare {
    int first;  // item
    int along, count, turn;
    explicit __device__ SumsShare(const SumsCut& cut) {
        const int share = static_cast<int>(blockIdx.x), begin = cut.share_begin(share);
        count = cut.share_begin(share + 1) - begin;
        first = begin / cut.count, along = begin % cut.count;
        turn = cut.count - along;
    }
    __device__ __forceinline__ int item(int i) const { return first + (i < turn ? 0 : 1); }
    __device__ __forceinline__ int place(int i) const { return i < turn ? along + i : i - turn; }  // along its item
};

// What one thread of the copies queues; it works out once where the two items are.
template <int D, bool kQueries>
struct SumsCopies {
    const SumsArgs& args;
    const SumsRoom<D>& room;
    SumsBarriers& barriers;
    const SumsShare& share;
    int heads[2], entries[2];  // of the rows' tensor

    __device__ SumsCopies(const SumsArgs& args, const SumsRoom<D>& room, SumsBarriers& barriers, const SumsShare& share)
        : args(args), room(room), barriers(barriers), share(share) {
        const FusedShape& s = args.shape;
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            const int h = (share.first + i) % s.heads;
            heads[i] = kQueries ? h : h / (s.heads / s.kv_heads);
            entries[i] = (share.first + i) / s.heads;
        }
    }
    __device__ __forceinline__ void rows(int i) const {
        Barrier& full = barriers.rows_full[i % kRowStages];
        barriers.rows_free[i % kRowStages].wait(i / kRowStages % 2 ^ 1);
        full.expect(SumsTraits<D>::Rows::kBytes);
        copy(room.rows(i % kRowStages), args.rows, i, full);
    }
    __device__ __forceinline__ void values(int i) const {
        const int stage = i % kValueStages;
        Barrier& full = barriers.values_full[stage];
        barriers.values_free[stage].wait(i / kValueStages % 2 ^ 1);
        constexpr int kWeightBytes = kQueries ? kFusedRows * static_cast<int>(sizeof(float)) : 0;
        full.expect(SumsTraits<D>::Rows::kBytes + kWeightBytes);
        copy(room.values(stage), args.values, i, full);
        if constexpr (kQueries)
            copy_bulk(room.weights(stage),
                      args.weights + (int64_t{share.item(i)} * args.shape.blocks + block(i)) * kFusedRows, kWeightBytes,
                      full);
    }

  private:
    __device__ __forceinline__ int block(int i) const {
        const int along = args.cut.first + share.place(i);
        return kQueries ? args.shape.blocks - 1 - along : along;
    }
    __device__ __forceinline__ void copy(const typename SumsTraits<D>::Rows& tile, const CUtensorMap& map, int i,
                                         Barrier& full) const {
        const bool first = i < share.turn;
        copy_tile(tile, map, block(i) * kFusedRows + args.shape.key_row, first ? heads[0] : heads[1],
                  first ? entries[0] : entries[1], full);
    }
};

template <int D, bool kQueries>
__device__ __forceinline__ void make_sum_features(const SumsArgs& args, const SumsRoom<D>& room, SumsBarriers& barriers,
                                                  const SumsShare& share, int group) {
    const FusedShape& s = args.shape;
    if (group == 0 || (group == 1 && share.turn < share.count)) {
        const int h = (share.first + group) % s.heads;
        load_map<D, kWarpgroup>(room.map(group), args.map, kQueries ? h : h / (s.heads / s.maps),
                                threadIdx.x % kWarpgroup);
        fence_async_proxy();
    }
    named_sync<kMapGroups * kWarpgroup>(kMapsBarrier);
    if (group >= share.count) return;
    float u[kFusedMap / 2];
    const auto queue = [&](int i) {
        barriers.rows_full[i % kRowStages].wait(i / kRowStages % 2);
        project<D>(u, room.rows(i % kRowStages), room.map(i < share.turn ? 0 : 1));
    };
    const auto step = [&](int i, auto goes_on) {
        const int stage = i % kFeatureStages;
        FeatureRows phi;
        wgmma_wait<0>();
        wgmma_settle(u);
        release(barriers.rows_free[i % kRowStages]);
        phi.make(u);
        if constexpr (goes_on()) queue(i + kMapGroups);
        barriers.phi_free[stage].wait(i / kFeatureStages % 2 ^ 1);
        phi.store(room.phi(stage));
        fence_async_proxy();
        barriers.phi_full[stage].arrive();
    };
    queue(group);
    int i = group;
    for (; i + kMapGroups < share.count; i += kMapGroups) step(i, std::true_type{});
    step(i, std::false_type{});
}

template <int D, bool kQueries>
__device__ __forceinline__ void make_sums(const SumsArgs& args, const SumsRoom<D>& room, SumsBarriers& barriers,
                                          const SumsShare& share) {
    constexpr int kPanels = D / 64;
    const SumsCut& cut = args.cut;
    float sums[kPanels][kFusedFeatures / 2];
    ColumnSums totals;
    int item = share.first, along = share.along, g = cut.segment_of(along);
    for (int i = 0; i < share.count;) {
        const int first = i, last = min(share.count, i + cut.end(g) - along);  // of this part
        for (; i < last; ++i) {
            const int stage = i % kFeatureStages, place = i % kValueStages;
            const FeatureTile phi = room.phi(stage);
            barriers.values_full[place].wait(i / kValueStages % 2);
            barriers.phi_full[stage].wait(i / kFeatureStages % 2);
            wgmma_fence();
#pragma unroll
            for (int k = 0; k < kFusedRows; k += 16)
#pragma unroll
                for (int panel = 0; panel < kPanels; ++panel)
                    wgmma_ss<Major::MN, Major::MN>(
                        sums[panel], mn_major(Panel{room.values(place).data + panel * Panel::kPanel}) + 64 * k,
                        mn_major(phi) + 64 * k, i > first || k > 0);
            wgmma_commit();
            totals.add(phi, [&](int row) { return kQueries ? room.weights(place)[row] : 1.0f; });
            wgmma_wait<1>();
            if (i == 0) continue;
            barriers.phi_free[(i - 1) % kFeatureStages].arrive();
            barriers.values_free[(i - 1) % kValueStages].arrive();
        }
        wgmma_wait<0>();
        if (i == share.count)
            start_successor();  // later than the first: its thread blocks would crowd on the SMs that end first
        float4* to = args.parts + cut.part(static_cast<int>(blockIdx.x), item, g) * (kSumsSize<D> / 4);
#pragma unroll
        for (int panel = 0; panel < kPanels; ++panel) {
            wgmma_settle(sums[panel]);
#pragma unroll
            for (int j = 0; j < kFusedFeatures / 8; ++j)
                to[PartPlace::index(panel, j, threadIdx.x % kWarpgroup)] = make_float4(
                    sums[panel][4 * j], sums[panel][4 * j + 1], sums[panel][4 * j + 2], sums[panel][4 * j + 3]);
        }
        reinterpret_cast<float*>(to + PartPlace::index(kPanels, 0, 0))[threadIdx.x % kWarpgroup] = totals.total();
        totals = {};
        along = cut.end(g);
        if (++g == cut.segments) g = 0, along = 0, ++item;
    }
}

#endif

template <int D, bool kQueries>
__global__ void __launch_bounds__(kSumsThreads, 1) sums_kernel(const __grid_constant__ SumsArgs args) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
    extern __shared__ __align__(kTileAlignment) unsigned char shared[];
    const SumsRoom<D> room{reinterpret_cast<__nv_bfloat16*>(shared)};
    SumsBarriers& barriers = room.barriers();
    const SumsShare share(args.cut);
    const int group = warpgroup_index();
    if (threadIdx.x == 0) barriers.init();
    __syncthreads();
    if (group == kCopies) {
        if constexpr (D == 128) shrink_registers<32>();
        if (threadIdx.x == kCopies * kWarpgroup) {
            const SumsCopies<D, kQueries> copies(args, room, barriers, share);
            for (int i = 0; i < share.count; ++i) copies.rows(i), copies.values(i);
        }
    } else if (group < kMapGroups) {
        if constexpr (D == 128) grow_registers<152>();
        make_sum_features<D, kQueries>(args, room, barriers, share, group);
    } else {
        if constexpr (D == 128) grow_registers<176>();
        make_sums<D, kQueries>(args, room, barriers, share);
    }
#endif
}

// Four elements of a part into starts, S [F',D] and z.
template <int D>
__device__ __forceinline__ void store_start(float* start, int place, float4 x) {
    constexpr int kStates = kFusedFeatures * D / 4;
    if (place >= kStates) {
        reinterpret_cast<float4*>(start)[place] = x;
        return;
    }
    const int thread = place % kWarpgroup, j = place / kWarpgroup % (kFusedFeatures / 8),
              row = place / (kFusedFeatures / 8 * kWarpgroup) * 64 + thread / kWarp * 16 + thread % kWarp / 4;
    float* to = start + (8 * j + 2 * (thread % 4)) * D + row;
    to[0] = x.x, to[D] = x.y, to[8] = x.z, to[D + 8] = x.w;
}

template <int D>
inline constexpr int kStartTiles = ceil_div(kSumsSize<D> / 4, kFusedThreads);  // thread blocks of an item

template <int D>
__global__ void starts_kernel(const float4* parts, float* starts, SumsCut cut) {
    constexpr int kSize = kSumsSize<D> / 4, kAhead = 4;  // loads under way at a time
    extern __shared__ int2 shares[];                     // of each segment, first and last
    const int item = static_cast<int>(blockIdx.x) / kStartTiles<D>, first = item * cut.count;
    for (int g = threadIdx.x; g < cut.segments; g += kFusedThreads)
        shares[g] =
            make_int2(cut.share_of(first + (g == 0 ? 0 : cut.end(g - 1))), cut.share_of(first + cut.end(g) - 1));
    __syncthreads();
    start_successor();  // a walk
    wait_for_predecessor();
    const int place = static_cast<int>(blockIdx.x) % kStartTiles<D> * kFusedThreads + static_cast<int>(threadIdx.x);
    if (place >= kSize) return;
    float4 sum = make_float4(0, 0, 0, 0);
    for (int g = 0; g < cut.segments; ++g) {
        const int last = shares[g].y;
        for (int share = shares[g].x; share <= last; share += kAhead) {
            float4 next[kAhead];
#pragma unroll
            for (int j = 0; j < kAhead; ++j)
                if (share + j <= last) next[j] = parts[cut.part(share + j, item, g) * kSize + place];
#pragma unroll
            for (int j = 0; j < kAhead; ++j)
                if (share + j <= last) sum.x += next[j].x, sum.y += next[j].y, sum.z += next[j].z, sum.w += next[j].w;
        }
        store_start<D>(starts + (int64_t{item} * cut.segments + g) * kSumsSize<D>, place, sum);
    }
}

}  // namespace

void segment_starts_sm90(const SegmentSums& sums, int64_t d, float* starts, Stream stream) {
    const FusedShape& s = sums.shape;
    const cudaStream_t queue = cuda::handle_of(stream);
    const SumsCut cut(s, sums.steps, sums.lag, multiprocessors());
    const DeviceScratch<float> parts(cut.parts(s) * kFusedFeatures * (d + 1), stream);
    const SumsArgs args{head_map(sums.rows),
                        head_map(sums.values),
                        s,
                        sums.map,
                        sums.weights,
                        cut,
                        reinterpret_cast<float4*>(parts.data())};
    dispatch_head_dim(static_cast<int>(d), [&](auto dim) {
        dispatch_bool(sums.weights != nullptr, [&](auto queries) {
            constexpr int kBytes = SumsTraits<dim()>::kBytes;
            const auto kernel = sums_kernel<dim(), queries()>;
            allow_shared_memory(kernel, kBytes);
            kernel<<<static_cast<unsigned>(cut.shares), kSumsThreads, kBytes, queue>>>(args);
            LC_LAUNCHED("hybrid_attention", queue);
        });
        launch_early(starts_kernel<dim()>,
                     {.blocks = s.items * kStartTiles<dim()>,
                      .threads = kFusedThreads,
                      .shared_bytes = cut.segments * int64_t{sizeof(int2)}},
                     queue, args.parts, starts, cut);
        LC_LAUNCHED("hybrid_attention", queue);
    });
}

}  // namespace lc::kernels
