// Fused hybrid attention on Hopper (sm_90a): forward over short sequences, without a walk. When it applies: hybrid_short_covers.
//
// MATHS    hybrid_attention.h. For the rows of block b, far keys of the same thread block enter as phi_q phi_k^T v, those of thread
//          blocks before it as phi_q S, z by way of both. No block waits for the one before it, but for S.
// TILING   thread block = (batch entry, query head, four blocks of 64 positions), all of them at once, a warpgroup a block:
//
//            phi_k            of the keys one block before the queries: what is far of the next thread block's first row
//            window           q [k before, k own]^T -> P
//            phi_q
//            S^T, z           of the thread block's four blocks of keys, 64 x 64 of it a warpgroup, to memory
//            y = P v          and phi_q phi_k^T v for far keys among these
//            y += phi_q S     once the thread blocks before this one have stored theirs: their sum, by all that need it
//
//          Shared memory: 5 k, later v; 4 q, later phi_q, later y [64,D]; 4 phi_k [64,128], the first over k's map; q's map [D,F].
//          S over the last phi_k and q's map. 128 registers a thread: P and y, no more.
// COST     a row and query head, D = 128: 13 D^2 FLOPs, 5 D bytes; S and z 33 KB a thread block but the last, written once and read
//          by those behind it. On chip a thread block takes: tensor cores 13300 clocks, exponentials 6100.
// NUMERICS as hybrid_fused_forward_sm90.cu, but: S of a thread block's keys is rounded to bf16 before the sum over thread blocks,
//          in f32, is rounded as an operand; phi_q phi_k^T is rounded like P, while Z has phi_q.z in f32. Order of all sums is
//          fixed.
//          A launch clears the counters that tell of S; the kernel begins under it and waits for it where it uses them.
// LADDER   1x1024, 32 heads of 128, 8 KV heads, us with a cold cache, beside the walk (hybrid_fused_forward_sm90.cu) in the same run.
//          Meant: 15, by the clocks above and 4 us to begin and end.
//          1 27.6 (H200; walk 34.4) S of each thread block by the copy engine, as an operand; a product for each of those before.
//            By clock stamps 11000 clocks until k is there, 6800 from S to its readers, 2700 for each such product.
//          2 24.7 (H200) a quarter of S to memory by each warpgroup, from registers; readers add up, one product. Clearing
//            counters: 0.5.
//          3 27.7 (H100; walk 38.6, launched early 33.6) q and v asked for in L2 at once, keys before queries: all of 176 KB a
//            thread block then comes last, after 16000 clocks. The maps by the copy engine too, and one run through the features'
//            code for nothing while they come: 27.6. ncu: waiting for instructions is 2 % of a warp's time.
//          4 25.4 (H100) q not before k is there: 8100 clocks. q at the map's arrival instead: 27.
//          5 24.9 (H100; 22.6 in the bench, H200, where the walk had 37.0) phi_q.z before the product with S, not under it: the last
//            warpgroup's quarter is on its way then.
//          What is left, in clocks of 42000: 8100 until k is there, 6000 for q, then 28000 in which all warpgroups multiply or all
//          take exponentials: 128 registers leave none for two blocks in turn. Launch and end 3 us.
//          Not built: a cluster for the four thread blocks of a head. 30 fit on 132 SMs, 32 heads would take two waves. Whole
//          sequences of at most seven blocks, and 4x1024: the walk is faster (14.1 and 16.4 at 1x256, 50 and 83).
// SOURCE   arXiv 2410.10254; two-level form of linear attention as in arXiv 2312.06635; derived here.
#include "kernels/common/cuda/hopper.h"
#include "kernels/hybrid_attention/hybrid_fused.h"
#include "kernels/hybrid_attention/hybrid_roles_scores.cuh"
#include "kernels/hybrid_attention/hybrid_short.cuh"

namespace lc::kernels {
namespace {

using namespace hybrid_short;

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

using namespace hybrid_roles;

// Weights of the window, and their sums for two rows. The keys make room for values.
__device__ __forceinline__ float2 make_window(const ShortGroup& x, FragmentA (&p)[8]) {
    const int group = x.group;
    float before[32], own[32];
    x.barriers.q_full[group].wait(0);
    x.barriers.k_full[group + 1].wait(0);
    wgmma_fence();
    multiply_rows<kFusedRows>(before, x.room.q(group), 0, x.room.k(group));
    multiply_rows<kFusedRows>(own, x.room.q(group), 0, x.room.k(group + 1));
    wgmma_commit();
    load_map<kShortDim, kShortThreads>(x.room.map_q(), x.args.in.wq, x.at.h);
    fence_async_proxy();
    x.barriers.map_q_full.arrive();
    wgmma_wait<0>();
    wgmma_settle(before);
    wgmma_settle(own);
    release(x.barriers.k_done[group]);
    const float2 sums =
        weigh(before, own, x.args.in.shape.scale * kLog2E, x.room.log_gamma(), x.at.block(group) == 0, p);
    if (x.leads()) {
        x.barriers.k_done[group].wait(0);
        if (group > 0) x.barriers.k_done[group - 1].wait(0);
        copy_short(x.room.v(group), x.args.v, x.at.key_block(group), x.at.hk, x.at.entry, x.barriers.v_full[group]);
        if (group == kShortBlocks - 1)
            copy_short(x.room.v(group + 1), x.args.v, x.at.key_block(group + 1), x.at.hk, x.at.entry,
                       x.barriers.v_full[group + 1]);
    }
    __syncwarp();
    x.barriers.map_q_full.wait(0);
    return sums;
}

// phi_k; weights; phi_q. Both features by one piece of code: instructions are not in the caches yet.
__device__ __forceinline__ float2 make_operands(const ShortGroup& x, FragmentA (&p)[8]) {
    const int group = x.group;
    float2 sums;
#pragma unroll 1
    for (int i = 0; i < 2; ++i) {
        const bool of_keys = i == 0;
        if (of_keys) {
            x.barriers.k_full[group].wait(0);
            if (x.leads()) go_on_short(x.args, x.room, x.at, group);
            __syncwarp();
        } else {
            sums = make_window(x, p);
        }
        float u[kFusedMap / 2];
        project<kShortDim>(u, of_keys ? x.room.k(group) : x.room.q(group), of_keys ? x.room.map_k() : x.room.map_q());
        wgmma_wait<0>();
        wgmma_settle(u);
        if (of_keys && group > 0) named_arrive<kShortThreads>(kMapIsFree);
        FeatureRows phi;
        phi.make(u);
        if (!of_keys)
            x.meet();  // nobody reads q any more
        else if (group == 0)
            named_sync<kShortThreads>(kMapIsFree);
        phi.store(of_keys ? x.room.phi_k(group) : x.room.phi_q(group));
        fence_async_proxy();
    }
    return sums;
}

__device__ __forceinline__ float count_features(const ShortGroup& x) {
    ColumnSums sums;
    sums.add(x.room.phi_k(x.group), [](int) { return 1.0f; });
    const float total = x.at.key_block(x.group) < 0 ? 0 : sums.total();  // block -1 has values of zero, but features
    x.room.z(x.group)[x.thread] = total;
    return total;
}

// y += phi_q phi_k^T v over the far blocks of this thread block's keys.
__device__ __forceinline__ void add_near_blocks(const ShortGroup& x, float (&y)[kShortDim / 2]) {
#pragma unroll 1
    for (int j = 0; j < x.group; ++j) {
        float a[32];
        wgmma_fence();
        multiply_rows<kFusedRows>(a, x.room.phi_q(x.group), 0, x.room.phi_k(j));
        wgmma_commit();
        wgmma_wait<0>();
        wgmma_settle(a);
        FragmentA operand[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) operand[i] = wgmma_operand(a, i);
        wgmma_fence();
        accumulate_rows<kFusedRows, kShortDim>(y, operand, x.room.v(j));
        wgmma_commit();
        wgmma_wait<0>();
    }
}

// z of all that is far of each block of queries.
__device__ __forceinline__ void make_totals(const ShortGroup& x) {
    float total = x.parts.total_before();
    x.barriers.sums_made.wait(0);
#pragma unroll
    for (int j = 0; j < kShortBlocks; ++j) {
        float& z = x.room.z(j)[x.thread];
        const float own = z;
        z = total, total += own;
    }
    x.barriers.z_full.arrive();
}

// S^T of the parts before, rounded, as an operand.
__device__ __forceinline__ void take_sums(const ShortGroup& x) {
    const Panel tile{x.room.state().data + x.half() * StateTile::kPanel + x.panel() * 64 * 64};
    x.barriers.sums_made.wait(0);  // nobody reads phi_k(3) any more
#pragma unroll
    for (int first = 0; first < 4; first += 2) {
        uint4 from[2][kShortSegments - 1];  // under way together
#pragma unroll
        for (int i = 0; i < 2; ++i)
#pragma unroll
            for (int g = 0; g < kShortSegments - 1; ++g)
                from[i][g] = g < x.at.segment ? __ldcg(&x.parts.sum(x.at.part - x.at.segment + g, first + i))
                                              : make_uint4(0, 0, 0, 0);
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            float sum[8] = {};
#pragma unroll
            for (int g = 0; g < kShortSegments - 1; ++g) {
                const uint32_t pairs[4] = {from[i][g].x, from[i][g].y, from[i][g].z, from[i][g].w};
#pragma unroll
                for (int e = 0; e < 4; ++e) {
                    const float2 pair = unpack_bf16(pairs[e]);
                    sum[2 * e] += pair.x, sum[2 * e + 1] += pair.y;
                }
            }
            store_operand(tile, wgmma_operand(sum, 0), first + i);
        }
    }
    fence_async_proxy();
    x.barriers.s_full.arrive();
}

// phi . z of the rows accumulator_row() and eight below.
__device__ __forceinline__ float2 far_weights(const FeatureTile& phi, const float* z) {
    const int row = accumulator_row();
    float2 sum = make_float2(0, 0);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        const int column = i / 2 * 64 + ((i + row) % 2 * 4 + quad_lane()) * 8;  // neighbours in different banks
        const float4 z0 = *reinterpret_cast<const float4*>(z + column),
                     z1 = *reinterpret_cast<const float4*>(z + column + 4);
        const auto dot = [&](int r) {
            const uint4 x = *reinterpret_cast<const uint4*>(phi.chunk(r, column));
            const float2 a = unpack_bf16(x.x), b = unpack_bf16(x.y), c = unpack_bf16(x.z), d = unpack_bf16(x.w);
            return a.x * z0.x + a.y * z0.y + b.x * z0.z + b.y * z0.w +
                   (c.x * z1.x + c.y * z1.y + d.x * z1.z + d.y * z1.w);
        };
        sum.x += dot(row), sum.y += dot(row + 8);
    }
    return make_float2(quad_sum(sum.x), quad_sum(sum.y));
}

__device__ __forceinline__ void store_rows(const ShortGroup& x, const float (&y)[kShortDim / 2], float2 inverse) {
    const ShortRows staged = x.room.q(x.group);
    x.meet();  // nobody reads phi_q any more
#pragma unroll
    for (int i = 0; i < kShortDim / 16; ++i) {
        FragmentA rows;
#pragma unroll
        for (int r = 0; r < 4; ++r) {
            const float by = r % 2 == 0 ? inverse.x : inverse.y;
            rows.r[r] = pack_bf16(y[8 * i + 2 * r] * by, y[8 * i + 2 * r + 1] * by);
        }
        store_operand(staged, rows, i);
    }
    fence_async_proxy();
    x.meet();
    if (!x.leads()) return;
    for (int panel = 0; panel < kShortDim / 64; ++panel)
        store_panel({staged.data + panel * Panel::kPanel}, x.args.y, x.at.block(x.group) * kFusedRows, 64 * panel,
                    x.at.h, x.at.entry);
    store_commit();
    store_wait();
}

__global__ void __launch_bounds__(kShortThreads, 1) short_kernel(const __grid_constant__ ShortArgs args) {
    extern __shared__ __align__(kTileAlignment) unsigned char shared[];
    const ShortRoom room{reinterpret_cast<__nv_bfloat16*>(shared)};
    ShortBarriers& barriers = room.barriers();
    const ShortPlace at(args.in.shape);
    const int group = warpgroup_index(), thread = threadIdx.x % kWarpgroup;
    const ShortParts parts{args, at, group, thread};
    const ShortGroup x{args, room, barriers, at, parts, group, thread};
    if (threadIdx.x == 0) barriers.init();
    __syncthreads();
    begin_short(args, room, at);
    __syncwarp();
    load_map<kShortDim, kShortThreads>(room.map_k(), args.in.wk, at.hs);
    fence_async_proxy();
    __syncthreads();

    FragmentA p[8];  // weights of the window
    const float2 weights = make_operands(x, p);
    __syncthreads();  // all features are here
    const bool hands_on = at.segment + 1 < args.in.shape.segments;
    if (hands_on) {  // what the thread blocks behind this one need: S^T and z of four blocks of keys
        float sum[32];
        for (int j = 0; j < kShortBlocks; ++j) barriers.v_full[j].wait(0);
        wgmma_fence();
#pragma unroll
        for (int j = 0; j < kShortBlocks; ++j)
#pragma unroll
            for (int k = 0; k < kFusedRows; k += 16)
                wgmma_ss<Major::MN, Major::MN>(
                    sum, mn_major(Panel{room.v(j).data + x.panel() * Panel::kPanel}) + 64 * k,
                    mn_major(Panel{room.phi_k(j).data + x.half() * Panel::kPanel}) + 64 * k, j + k > 0);
        wgmma_commit();
        parts.total(at.part, group) = count_features(x);
        wgmma_wait<0>();
        wgmma_settle(sum);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const FragmentA a = wgmma_operand(sum, i);
            parts.sum(at.part, i) = make_uint4(a.r[0], a.r[1], a.r[2], a.r[3]);
        }
        barriers.sums_made.arrive();
    } else {
        count_features(x);
        barriers.sums_made.arrive();
    }

    float y[kShortDim / 2];
    barriers.v_full[group].wait(0);
    barriers.v_full[group + 1].wait(0);
    wgmma_fence();
#pragma unroll
    for (int side = 0; side < 2; ++side)
#pragma unroll
        for (int k = 0; k < kFusedRows; k += 16)
            wgmma_rs<Major::MN>(y, p[4 * side + k / 16], mn_major(room.v(group + side)) + 64 * k, side + k > 0);
    wgmma_commit();
    if (hands_on) {
        x.meet();
        if (x.leads()) parts.tell();
        __syncwarp();
    }
    wgmma_wait<0>();
    add_near_blocks(x, y);
    if (at.segment > 0) {
        if (x.leads()) parts.await();
        x.meet();
    }
    if (group == 0) make_totals(x);
    if (at.segment > 0) {
        take_sums(x);
    }
    barriers.z_full.wait(0);
    const float2 far = far_weights(room.phi_q(group), room.z(group));
    if (at.segment > 0) {
        barriers.s_full.wait(0);
        const WgmmaDescriptor left = k_major(room.phi_q(group)), right = k_major(room.state());
        wgmma_fence();
#pragma unroll
        for (int k = 0; k < kFusedFeatures; k += 16)
            wgmma_ss<Major::K>(y, left + k_offset<FeatureTile>(k), right + k_offset<StateTile>(k), true);
        wgmma_commit();
    }
    wgmma_wait<0>();
    wgmma_settle(y);
    store_rows(x, y, make_float2(reciprocal(weights.x + far.x), reciprocal(weights.y + far.y)));
}

#else

__global__ void short_kernel(const __grid_constant__ ShortArgs) {}

#endif

__global__ void clear_kernel(int* ready, int count) {
    start_successor();
    for (int i = threadIdx.x; i < count; i += blockDim.x) ready[i] = 0;
}

}  // namespace

bool hybrid_short_covers(const HybridAttentionForward& a) {
    const FusedInputs in(a);
    const int64_t items = in.shape.items, blocks = in.shape.blocks, segments = ceil_div(blocks, int64_t{kShortBlocks});
    const bool whole = !a.s_in && !a.s_out && in.shape.length == in.shape.keys;
    // All thread blocks run at once: some wait for others.
    return a.q.size(3) == kShortDim && whole && segments <= kShortSegments && items * segments <= multiprocessors() &&
           hybrid_fused_segments(items, blocks, multiprocessors()) > 1;
}

void hybrid_short_forward_sm90(const HybridAttentionForward& a, Stream stream) {
    clear_result(a.y, stream);
    FusedInputs in(a);
    in.shape.segments = ceil_div(in.shape.blocks, kShortBlocks);
    const int64_t parts = in.shape.parts();
    const cudaStream_t queue = cuda::handle_of(stream);
    const DeviceScratch<uint4> sums(parts * (kShortDim * kFusedFeatures / 8), stream);
    const DeviceScratch<float> totals(parts * kShortBlocks * kFusedFeatures, stream);
    const DeviceScratch<int> ready(parts, stream);
    const bool cut = in.shape.segments > 1;
    if (cut) {
        clear_kernel<<<1, 256, 0, queue>>>(ready.data(), static_cast<int>(parts));
        LC_LAUNCHED("hybrid_attention", queue);
    }
    launch_early(short_kernel, {.blocks = parts, .threads = kShortThreads, .shared_bytes = kShortBytes, .early = cut},
                 queue,
                 ShortArgs{head_map(a.q), head_map(a.k), head_map(a.v), head_map(a.y), in, sums.data(), totals.data(),
                           ready.data()});
    LC_LAUNCHED("hybrid_attention", queue);
}

}  // namespace lc::kernels
