// Softmax attention backward of long sequences on Hopper (sm_90a): one walk over the keys, D = 128.
//
// MATHS    softmax_attention.h: p recomputed from lse.
// TILING   blocks stay and draw work by ticket: 128 keys of a (batch, KV head), the first keys first (they have the most
//          queries). A step is a tile of 64 queries of one head of the group; the last tile of queries comes first.
//            warpgroup 0, 1   64 keys each: S^T = k q^T, dP^T = v dy^T [64,64] and dk, dv [64,D] in registers;
//                             then 64 columns each of the step's part of dq = ds k  [64 queries, D]
//            warp 8           one thread queues copies
//            warps 9 to 11    one thread each: parts of dq into memory, steps in turn
//            shared           k, v [128,D]  4 x q, 2 x dy [64,D]  2 x ds^T [128,64]  dq [64,D] f32  2 x lse, delta [64]
//          Of a step's products the next one's S runs under the exchange of ds, dk's under the export of dq and the next
//          exponentials.
//
//          ORDER OF SUMS  The copy engine adds a part to dq's f32 sums in memory. The key tiles of one tile of queries
//          take turns, the first keys first, through a counter in memory: every sum has one order. All blocks walk the
//          queries in the same direction, each a little behind the one before it, so that a turn has mostly come when the
//          part is there. Who waits has a later ticket than whom he waits for: no deadlock, however few blocks run.
// COST     10 D FLOPs a visible (query, key) pair instead of the 14 of two walks. Scratch: dq once in f32; 512 bytes of
//          additions (in L2) for each query and tile of 128 keys; dq's sums are read and rounded at the end.
// NUMERICS as softmax_attention_mma.cu; parts of dq are added in f32.
// LADDER   H200, causal, 32/8 heads, 16,384 tokens; cuDNN 10.8 ms (its order of sums varies), two walks 11.5 ms.
//          1 one thread adds to dq and lets the next block go when the sum is complete: predicted 8, measured 12.1 ms
//            (unordered 10.3): completing takes longer than a step. Three threads in turn are 4 below.
//          2 dq's product a step late, so that the warpgroups need not meet: 12.2 ms. 16 registers more spilled;
//            without the spills 10.6 to 11.6.
//          3 red.global.add.v4.f32 from registers, unordered: 14.1 ms.
//          4 this: 10.1 ms, unordered the same. dq left out of memory: 9.1 ms, the most that a cheaper export
//            could bring. dk's product takes ds from shared memory: from registers, ptxas runs out of them.
//            Clock stamps, H100: 3,400 cycles a step, its products alone 2,560; all stalls on barriers and copies together 200. The
//            clock falls to 1.4 GHz: what is left is power, the same for two walks (10.2 and 10.2 ms) and cuDNN (10.1).
// SOURCE   FlashAttention-3, arXiv 2407.08608; the order of turns is our own.
#include "kernels/softmax_attention/softmax_attention_backward_sm90.cuh"

namespace lc::kernels {
namespace {

constexpr int kD = kOneWalkD, kQueries = kOther, kQueryStages = 4, kWriters = 3;
constexpr int kSums = kQueries * kD;  // of dq, in a step

struct WalkArgs {
    AttentionBackwardArgs in;
    float* sums;   // [B,H,query_tiles,kSums]: dq / scale, in the order of accumulators
    int* turns;    // [B,H,query_tiles]: key tiles whose part is in `sums`
    int* tickets;  // items begun
    int query_tiles, key_tiles;
};

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

using KeyRows = WgmmaTile<kOwned, kD>;       // k, v
using QueryRows = WgmmaTile<kQueries, kD>;   // q, dy
using Scores = WgmmaTile<kOwned, kQueries>;  // ds, a row a key

#endif

constexpr int kTileBytes = 2 * kOwned * kD * 2 + (kQueryStages + 2) * kQueries * kD * 2 + 2 * kOwned * kQueries * 2;
constexpr int kWalkBytes = kTileAlignment + kTileBytes + kSums * 4 + 2 * kRowFloats * 4;
static_assert(kWalkBytes + 1024 <= kSharedLimit, "tiles, sums and rows, and barriers in static memory");

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

struct WalkBarriers {
    Barrier keys_full, keys_free, q_full[kQueryStages], q_free[kQueryStages], dy_full[2], dy_free[2];
    Barrier dq_full[kWriters], dq_free;
    int item;  // of the keys

    __device__ void init() {
        keys_full.init(1), keys_free.init(kConsumerWarps + kWriters);
        for (int i = 0; i < kQueryStages; ++i) q_full[i].init(1), q_free[i].init(kConsumerWarps);
        for (int i = 0; i < 2; ++i) dy_full[i].init(1), dy_free[i].init(kConsumerThreads);
        for (int i = 0; i < kWriters; ++i) dq_full[i].init(kConsumerWarps);
        dq_free.init(1);
        fence_barriers();
    }
};

struct WalkShared {
    __nv_bfloat16* base;
    __device__ __forceinline__ KeyRows k() const { return {base}; }
    __device__ __forceinline__ KeyRows v() const { return {base + kOwned * kD}; }
    __device__ __forceinline__ QueryRows q(int stage) const { return {base + 2 * kOwned * kD + stage * kSums}; }
    __device__ __forceinline__ QueryRows dy(int stage) const { return q(kQueryStages + stage); }
    __device__ __forceinline__ Scores ds(int which) const { return {dy(2).data + which * kOwned * kQueries}; }
    __device__ __forceinline__ float* dq() const { return reinterpret_cast<float*>(ds(2).data); }
    __device__ __forceinline__ float* rows(int stage) const { return dq() + kSums + stage * kRowFloats; }
};

// 128 keys of one KV head, and the tiles of queries that see them.
struct KeyTile {
    int b, kv, index, first, last, group;
    __device__ __forceinline__ int steps() const { return (last - first + 1) * group; }
    // f(tile of queries, head of the group)
    template <class F>
    __device__ __forceinline__ void for_each_step(F&& f) const {
        for (int i = last; i >= first; --i)
            for (int h = kv * group; h < (kv + 1) * group; ++h) f(i, h);
    }
};

__device__ __forceinline__ int items(const WalkArgs& args) {
    return static_cast<int>(args.in.shape.batch * args.in.shape.kv_heads) * args.key_tiles;
}

__device__ __forceinline__ KeyTile key_tile(const WalkArgs& args, int item) {
    const AttentionShape& s = args.in.shape;
    const int heads = static_cast<int>(s.batch * s.kv_heads), kv_heads = static_cast<int>(s.kv_heads);
    const int head = item % heads, index = item / heads;
    return {head / kv_heads,
            head % kv_heads,
            index,
            static_cast<int>(s.first_seeing(index * kOwned)) / kQueries,
            args.query_tiles - 1,
            static_cast<int>(s.group)};
}

__device__ __forceinline__ void produce(const WalkArgs& args, const WalkShared& shared, WalkBarriers& barriers) {
    constexpr int kRowBytes = kRowFloats * static_cast<int>(sizeof(float));
    const AttentionBackwardArgs& in = args.in;
    Turn<kQueryStages> q_ring;
    Turn<2> dy_ring;
    for (int phase = 0;; phase ^= 1) {
        const int item = atomicAdd(args.tickets, 1);
        barriers.keys_free.wait(phase ^ 1);
        barriers.item = item;
        if (item >= items(args)) return barriers.keys_full.arrive();
        const KeyTile tile = key_tile(args, item);
        barriers.keys_full.expect(2 * KeyRows::kBytes);
        copy_tile(shared.k(), in.k, tile.index * kOwned, tile.kv, tile.b, barriers.keys_full);
        copy_tile(shared.v(), in.v, tile.index * kOwned, tile.kv, tile.b, barriers.keys_full);
        tile.for_each_step([&](int i, int h) {
            barriers.q_free[q_ring.stage].wait(q_ring.phase ^ 1);
            barriers.q_full[q_ring.stage].expect(QueryRows::kBytes);
            copy_tile(shared.q(q_ring.stage), in.q, i * kQueries, h, tile.b, barriers.q_full[q_ring.stage]);
            q_ring.next();
            Barrier& full = barriers.dy_full[dy_ring.stage];
            barriers.dy_free[dy_ring.stage].wait(dy_ring.phase ^ 1);
            full.expect(QueryRows::kBytes + kRowBytes);
            copy_tile(shared.dy(dy_ring.stage), in.dy, i * kQueries, h, tile.b, full);
            copy_bulk(shared.rows(dy_ring.stage), rows_of(in, tile.b, h, i * kQueries), kRowBytes, full);
            dy_ring.next();
        });
    }
}

// --- parts of dq into memory ---

__device__ __forceinline__ int load_acquire(const int* from) {
    int value;
    asm volatile("ld.acquire.gpu.global.s32 %0, [%1];" : "=r"(value) : "l"(from) : "memory");
    return value;
}
__device__ __forceinline__ void store_release(int* to, int value) {
    asm volatile("st.release.gpu.global.s32 [%0], %1;" ::"l"(to), "r"(value) : "memory");
}
// The copy engine's accesses, to whatever memory, and this thread's ordinary ones keep their order.
__device__ __forceinline__ void fence_copy_engine() {
    asm volatile("fence.proxy.async;" ::: "memory");
}

// Every kWriters-th step, from `writer` on. One thread would be the bottleneck: until the next block may add, the sum must
// be complete in memory.
__device__ __forceinline__ void write_dq(const WalkArgs& args, const WalkShared& shared, WalkBarriers& barriers,
                                         int writer) {
    constexpr int kBytes = kSums * static_cast<int>(sizeof(float));
    int dq_phase = 0, before = writer;  // steps before this thread's next one
    for (int phase = 0;; phase ^= 1) {
        barriers.keys_full.wait(phase);
        const int item = barriers.item;
        barriers.keys_free.arrive();
        if (item >= items(args)) return;
        const KeyTile tile = key_tile(args, item);
        tile.for_each_step([&](int i, int h) {
            if (before-- > 0) return;
            before = kWriters - 1;
            const int64_t place = (tile.b * args.in.shape.heads + h) * args.query_tiles + i;
            int* turn = args.turns + place;
            while (load_acquire(turn) != tile.index) {
            }
            barriers.dq_full[writer].wait(dq_phase);
            dq_phase ^= 1;
            fence_copy_engine();
            if (tile.index == 0)
                store_bulk(args.sums + place * kSums, shared.dq(), kBytes);
            else
                add_bulk(args.sums + place * kSums, shared.dq(), kBytes);
            store_commit();
            store_wait_read();
            barriers.dq_free.arrive();
            store_wait();
            fence_copy_engine();
            store_release(turn, tile.index + 1);
        });
    }
}

// --- products ---

enum NamedBarrier { kScoresWritten = 1 };

// A thread's piece of dq's sums: accumulators 4 j .. 4 j + 3 of the 64 columns of its warpgroup lie kWarpgroup pieces apart.
__device__ __forceinline__ int sums_piece() {
    return static_cast<int>(threadIdx.x) / kWarpgroup * (8 * kWarpgroup) + threadIdx.x % kWarpgroup;
}

// p [64 keys, 64 queries] from scores; `rows`: lse log2 e of the thread's first column on. Query n sees key m if n >= m + ahead.
__device__ __forceinline__ void weigh(float (&p)[kQueries / 2], const float* rows, float factor, int ahead) {
#pragma unroll
    for (int j = 0; j < kQueries / 8; ++j) {
        const float2 shift = *reinterpret_cast<const float2*>(rows + 8 * j);
#pragma unroll
        for (int e = 0; e < 4; ++e)
            p[4 * j + e] = exp2_approx(fmaf(p[4 * j + e], factor, e % 2 == 0 ? -shift.x : -shift.y));
    }
    if (ahead + 63 <= 0) return;
    const int first = ahead + accumulator_row() - threadIdx.x % 4 * 2;
#pragma unroll
    for (int i = 0; i < kQueries / 2; ++i)
        if (i / 4 * 8 + i % 2 < first + i / 2 % 2 * 8) p[i] = 0;
}

// dq [64 queries, 64 columns] = ds k
__device__ __forceinline__ void multiply_keys(float (&dq)[32], const Scores& ds, const KeyRows& k, int warpgroup) {
    const WgmmaDescriptor left = mn_major(ds), right = mn_major(k) + warpgroup * KeyRows::kPanel;
#pragma unroll
    for (int i = 0; i < kOwned; i += 16) wgmma_ss<Major::MN, Major::MN>(dq, left + 64 * i, right + 64 * i, i > 0);
}
// dk [64 keys, D] += ds^T q
__device__ __forceinline__ void accumulate_queries(float (&dk)[kD / 2], const Scores& ds, const QueryRows& q,
                                                   int warpgroup) {
    const WgmmaDescriptor left = k_major(ds, 64 * warpgroup), right = mn_major(q);
#pragma unroll
    for (int i = 0; i < kQueries; i += 16) wgmma_ss<Major::MN>(dk, left + k_offset<Scores>(i), right + 64 * i, true);
}

__device__ __forceinline__ void consume(const WalkArgs& args, const WalkShared& shared, WalkBarriers& barriers,
                                        int warpgroup) {
    const AttentionBackwardArgs& in = args.in;
    const float factor = in.shape.scale * kLog2E;
    float4* const dq_to = reinterpret_cast<float4*>(shared.dq()) + sums_piece();
    const auto pair = [](unsigned step) { return step % 2; };  // of dy and ds, and the parity of their barriers
    const auto pair_phase = [](unsigned step) { return step / 2 % 2; };
    const auto q_stage = [](unsigned step) { return step % kQueryStages; };
    const auto q_phase = [](unsigned step) { return step / kQueryStages % 2; };
    unsigned step = 0;
    for (int phase = 0;; phase ^= 1) {
        barriers.keys_full.wait(phase);
        const int item = __shfl_sync(0xffffffffu, barriers.item, 0);
        if (item >= items(args)) return;
        const KeyTile tile = key_tile(args, item);
        int ahead = tile.index * kOwned + 64 * warpgroup - static_cast<int>(in.shape.cached) - tile.last * kQueries;
        int heads_left = tile.group;
        float dk[kD / 2] = {}, dv[kD / 2] = {}, p[kQueries / 2];
        barriers.q_full[q_stage(step)].wait(q_phase(step));
        wgmma_fence();
        multiply_rows<kQueries>(p, shared.k(), 64 * warpgroup, shared.q(q_stage(step)));
        wgmma_commit();
        wgmma_wait<0>();
        wgmma_settle(p);
        const unsigned begin = step, end = step + tile.steps();
        for (; step != end; ++step) {
            float ds[kQueries / 2], dq[32];  // p and ds: transposed, a row a key
            const QueryRows dy = shared.dy(pair(step));
            const float* rows = shared.rows(pair(step)) + threadIdx.x % 4 * 2;
            barriers.dy_full[pair(step)].wait(pair_phase(step));
            wgmma_fence();
            multiply_rows<kQueries>(ds, shared.v(), 64 * warpgroup, dy);
            wgmma_commit();
            weigh(p, rows, factor, ahead);
            FragmentA p_operand[kQueries / 16];
#pragma unroll
            for (int i = 0; i < kQueries / 16; ++i) p_operand[i] = wgmma_operand(p, i);
            wgmma_fence();
            accumulate_rows<kQueries, kD>(dv, p_operand, dy);
            wgmma_commit();
            wgmma_wait<1>();
            wgmma_settle(ds);
            if (step != begin) release(barriers.q_free[q_stage(step - 1)]);
#pragma unroll
            for (int j = 0; j < kQueries / 8; ++j) {
                const float2 delta = *reinterpret_cast<const float2*>(rows + kQueries + 8 * j);
#pragma unroll
                for (int e = 0; e < 4; ++e)
                    ds[4 * j + e] = p[4 * j + e] * (ds[4 * j + e] - (e % 2 == 0 ? delta.x : delta.y));
            }
            const Scores scores = shared.ds(pair(step));
#pragma unroll
            for (int i = 0; i < kQueries / 16; ++i)
                store_operand(Scores{scores.data + 64 * 64 * warpgroup}, wgmma_operand(ds, i), i);
            fence_async_proxy();
            if (step + 1 != end) barriers.q_full[q_stage(step + 1)].wait(q_phase(step + 1));
            wgmma_fence();  // behind the last step: of some tile, for nobody; a branch would serialize all products
            multiply_rows<kQueries>(p, shared.k(), 64 * warpgroup, shared.q(q_stage(step + 1)));
            wgmma_commit();
            wgmma_wait<1>();  // for dv's product: its operands' registers are needed
            named_sync<kConsumerThreads>(kScoresWritten);
            wgmma_fence();
            multiply_keys(dq, scores, shared.k(), warpgroup);
            wgmma_commit();
            accumulate_queries(dk, scores, shared.q(q_stage(step)), warpgroup);
            wgmma_commit();
            wgmma_wait<1>();
            wgmma_settle(dq);
            wgmma_settle(p);
            barriers.dy_free[pair(step)].arrive();
            barriers.dq_free.wait(step % 2 ^ 1);
#pragma unroll
            for (int j = 0; j < 8; ++j)
                dq_to[j * kWarpgroup] = make_float4(dq[4 * j], dq[4 * j + 1], dq[4 * j + 2], dq[4 * j + 3]);
            release(barriers.dq_full[step % kWriters]);
            if (--heads_left == 0) heads_left = tile.group, ahead += kQueries;
        }
        wgmma_wait<0>();
        wgmma_settle(dk);
        wgmma_settle(dv);
        release(barriers.q_free[q_stage(step - 1)]);
        release(barriers.keys_free);
        const int k0 = tile.index * kOwned + 64 * warpgroup;
        if (in.dk) store_rows<kD>(in.dk, tile.b, tile.kv, k0, in.shape.keys, in.shape.scale, dk);
        if (in.dv) store_rows<kD>(in.dv, tile.b, tile.kv, k0, in.shape.keys, 1.0f, dv);
    }
}

#endif

__global__ void __launch_bounds__(kRoleThreads, 1) walk_kernel(const __grid_constant__ WalkArgs args) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
    extern __shared__ unsigned char dynamic[];
    __shared__ WalkBarriers barriers;
    const WalkShared shared{aligned_shared(dynamic)};
    const int warpgroup = warpgroup_index();
    if (threadIdx.x == 0) barriers.init();
    __syncthreads();
    if (warpgroup == kConsumers) {
        shrink_registers<kProducerRegisters>();
        const int warp = static_cast<int>(threadIdx.x) / kWarp - kConsumerWarps;
        if (threadIdx.x % kWarp != 0) return;
        if (warp == 0)
            produce(args, shared, barriers);
        else
            write_dq(args, shared, barriers, warp - 1);
    } else {
        grow_registers<kConsumerRegisters>();
        consume(args, shared, barriers, warpgroup);
    }
#endif
}
static_assert(kWriters == kWarpgroup / kWarp - 1, "the producer's warpgroup has a warp for each");

// dq from its sums: a block a tile of queries.
__global__ void __launch_bounds__(kConsumerThreads) round_kernel(const __grid_constant__ WalkArgs args) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
    const int head = static_cast<int>(blockIdx.x) / args.query_tiles,
              tile = static_cast<int>(blockIdx.x) % args.query_tiles;
    const int heads = static_cast<int>(args.in.shape.heads);
    const float4* from =
        reinterpret_cast<const float4*>(args.sums + static_cast<int64_t>(blockIdx.x) * kSums) + sums_piece();
    float dq[32];
#pragma unroll
    for (int j = 0; j < 8; ++j) {
        const float4 x = from[j * kWarpgroup];
        dq[4 * j] = x.x, dq[4 * j + 1] = x.y, dq[4 * j + 2] = x.z, dq[4 * j + 3] = x.w;
    }
    HeadTensor to = args.in.dq;
    to.offset += 64 * warpgroup_index() * to.strides[3];
    store_rows<64>(to, head / heads, head % heads, tile * kQueries, args.in.shape.t, args.in.shape.scale, dq);
#endif
}

}  // namespace

void softmax_attention_backward_one_walk(const AttentionBackwardArgs& in, Stream stream) {
    const AttentionShape& s = in.shape;
    const cudaStream_t queue = cuda::handle_of(stream);
    const int64_t query_tiles = ceil_div(s.t, kQueries), key_tiles = ceil_div(s.keys, kOwned);
    const int64_t tiles = s.batch * s.heads * query_tiles, work = s.batch * s.kv_heads * key_tiles;
    const DeviceScratch<float> sums(tiles * kSums, stream);
    const DeviceScratch<int> counters(tiles + 1, stream);
    LC_CUDA(cudaMemsetAsync(counters.data(), 0, static_cast<size_t>(tiles + 1) * sizeof(int), queue));
    const WalkArgs args{in,
                        sums.data(),
                        counters.data() + 1,
                        counters.data(),
                        static_cast<int>(query_tiles),
                        static_cast<int>(key_tiles)};
    allow_shared_memory(walk_kernel, kWalkBytes);
    const int64_t blocks = std::min<int64_t>(work, multiprocessors());
    walk_kernel<<<grid_x(blocks), kRoleThreads, kWalkBytes, queue>>>(args);
    LC_LAUNCHED("softmax_attention", queue);
    round_kernel<<<grid_x(tiles), kConsumerThreads, 0, queue>>>(args);
    LC_LAUNCHED("softmax_attention", queue);
}

}  // namespace lc::kernels
