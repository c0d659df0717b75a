// What the launch of the large products makes beside them: p or q, and the gradients of the factors. lora_linear_sm90.cu says why here.
//
//   p or q   units of 256 rows and N ranks, all of k, on blocks that make no outputs
//   sums     dA^T = x^T q, in units of 256 columns of x and a slice of rows; whoever has nothing else to do takes the next one. Those of dA
//            start when all of q is there. dB = dy^T p in the same way where it is not made by the way:
//   dB       dy^T p from the tiles of dy that pass for dx, by the consumers between two steps. Of the blocks with one row tile, that of
//            column tile c takes every column_tiles-th step of k, from step c on, and keeps its sums in shared memory through all of
//            its tiles: it has the same columns in each.
//
// Each block has a ring of its own for p, q and sums, in the memory of the pair's ring, which is empty by then.
#pragma once
#include "kernels/lora_linear/lora_linear_sm90.cuh"

namespace lc::kernels::lora_sm90 {

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

inline constexpr int kSoloStages = 4;
enum NamedBarrier { kFirstWarpgroupBarrier = 1 };

struct SoloBarriers {
    Barrier full[kSoloStages], free[kSoloStages];
    Barrier claimed, taken;  // of the sums, a turn a unit
    int unit;                // that comes next; -1: there are no more
    __device__ void init() {
        for (int i = 0; i < kSoloStages; ++i) full[i].init(1), free[i].init(kConsumerWarps);
        claimed.init(1), taken.init(kConsumerWarps * kWarp);
    }
};

// A stage of steps with N ranks: 256 rows of a left operand and 64 of k, or 256 columns of x and 64 rows; and the
// right operand, [ranks,k] (K) or [k,ranks] (MN).
template <int N, Major B>
struct Solo {
    static constexpr int kSums = N / 2;  // of a thread
    static constexpr int kLeft = 2 * TileA::kBytes, kRight = (B == Major::K ? N : kLow) * kK * 2;
    static constexpr int kBytes = (kLeft + kRight + kTileAlignment - 1) / kTileAlignment * kTileAlignment;
    static constexpr int kStages = kSoloStages;
    static_assert(kStages * kBytes <= lora_sm90::kStages * kStageBytes);
    using Rows = WgmmaTile<N, kK>;
    using Columns = WgmmaTile<kK, kLow>;

    __nv_bfloat16* base;
    __device__ __forceinline__ Solo(__nv_bfloat16* shared, int stage) : base(shared + stage * (kBytes / 2)) {}
    __device__ __forceinline__ TileA left(int i) const { return {base + i * TileA::kBytes / 2}; }
    __device__ __forceinline__ TileLow panel(int i) const { return {base + i * TileLow::kBytes / 2}; }
    __device__ __forceinline__ __nv_bfloat16* right() const { return base + kLeft / 2; }
};

// f(std::integral_constant) with that many ranks at a time, up to `Most` of them.
template <int Most, class F>
__device__ __forceinline__ void with_ranks(int ranks, F&& f) {
    if (ranks == 8)
        f(std::integral_constant<int, 8>{});
    else if (ranks == 32)
        f(std::integral_constant<int, 32>{});
    else if (ranks == kLow || Most == kLow)
        f(std::integral_constant<int, kLow>{});
    else
        f(std::integral_constant<int, Most>{});
}

struct Unit {
    int sum = 0, strip, slice, first_rank;  // -1: there is none
    __device__ __forceinline__ Unit(const Args& args, int unit, int ranks) {
        const int slices = tiles_of(args.rows, args.slice_rows);
        for (; sum < args.sum_count; ++sum) {
            const int groups = tiles_of(args.sums[sum].ranks, ranks), strips = tiles_of(args.sums[sum].columns, 4 * kK);
            first_rank = unit % groups * ranks, strip = unit / groups % strips, slice = unit / (groups * strips);
            if (slice < slices) return;
            unit -= groups * strips * slices;
        }
        sum = -1;
    }
    __device__ __forceinline__ int first_row(const Args& args) const { return slice * args.slice_rows; }
    __device__ __forceinline__ int steps(const Args& args) const {
        return tiles_of(min(args.rows - first_row(args), args.slice_rows), kK);
    }
};

__device__ __forceinline__ void await_count(const int* counter, int wanted) {
    int count;
    do {
        asm volatile("ld.acquire.gpu.global.s32 %0, [%1];" : "=r"(count) : "l"(counter) : "memory");
    } while (count < wanted);
    asm volatile("fence.proxy.async.global;" ::: "memory");  // ordinary stores, read by the copy engine
}

// --- copies ---

template <class Solo>
struct SoloProducer {
    static constexpr int kRanks = Solo::kSums * 2;

    const Args& args;
    __nv_bfloat16* shared;
    SoloBarriers& barriers;
    Turn<Solo::kStages> ring;

    __device__ __forceinline__ Barrier& begin() {
        barriers.free[ring.stage].wait(ring.phase ^ 1);
        return barriers.full[ring.stage];
    }
    // Afterwards nothing is under way.
    __device__ __forceinline__ void drain() {
        for (int i = 0; i < Solo::kStages; ++i) begin(), ring.next();
    }
    __device__ __forceinline__ void low() {
        for_each_low_unit(args, kRanks, [&](int pair, const Factor& factor, int column) {
            for (int k = 0; k < factor.steps; ++k) {
                Barrier& full = begin();
                full.expect(Solo::kLeft + Solo::kRight);
                const Solo stage(shared, ring.stage);
                for (int half = 0; half < kPair; ++half)
                    copy_panel(stage.left(half).data, factor.left, (pair * kPair + half) * kM, k * kK, full);
                copy_panel(stage.right(), factor.low_right, column, k * kK, full);
                ring.next();
            }
        });
    }
    // before(): once there is something to do, before the first copy.
    template <class Before>
    __device__ __forceinline__ void sums(Before&& before) {
        if (args.sum_count == 0) return;
        int* const counters = args.ready + row_tiles_of(args.rows);
        bool started = false, waited = false;
        int number = atomicAdd(counters + 1, 1), turn = 0;
        const auto announce = [&](int unit) {
            barriers.taken.wait(turn ^ 1);
            barriers.unit = unit;
            barriers.claimed.arrive();
            turn ^= 1;
        };
        for (;;) {
            const Unit unit(args, number, kRanks);
            if (unit.sum < 0) break;
            const int next = atomicAdd(counters + 1, 1);  // on its way while this one is copied
            const Sum& sum = args.sums[unit.sum];
            if (sum.of_q && !waited) await_count(counters, row_tiles_of(args.rows) * args.low_blocks), waited = true;
            if (!started) before(), started = true;
            announce(number);
            const int steps = unit.steps(args);
            for (int step = 0; step < steps; ++step) {
                Barrier& full = begin();
                full.expect(Solo::kLeft + Solo::kRight);
                const Solo stage(shared, ring.stage);
                const int row = unit.first_row(args) + step * kK;
                for (int i = 0; i < 4; ++i)
                    copy_panel(stage.panel(i).data, sum.left, row, (unit.strip * 4 + i) * kK, full);
                copy_panel(stage.right(), sum.right, row, sum.first_rank + unit.first_rank, full);
                ring.next();
            }
            number = next;
        }
        announce(-1);
    }
};

// --- products ---

template <class Solo>
struct SoloConsumer {
    static constexpr int kRanks = Solo::kSums * 2;

    const Args& args;
    __nv_bfloat16* shared;
    SoloBarriers& barriers;
    int warpgroup;
    Turn<Solo::kStages> ring;

    // sum[m] over `steps` stages; operands of step k within a stage: left(stage, m, k), right(stage, k).
    template <Major A, Major B, class Left, class Right>
    __device__ __forceinline__ void accumulate(float (&sum)[2][kRanks / 2], int steps, Left&& left, Right&& right) {
        int previous = 0;
        for (int step = 0; step < steps; ++step) {
            const Solo stage(shared, ring.stage);
            barriers.full[ring.stage].wait(ring.phase);
            wgmma_fence();
#pragma unroll
            for (int k = 0; k < kK; k += 16)
#pragma unroll
                for (int m = 0; m < 2; ++m)
                    wgmma_ss<B, A>(sum[m], left(stage, m, k), right(stage, k), step > 0 || k > 0);
            wgmma_commit();
            wgmma_wait<1>();
            if (step > 0) release(barriers.free[previous]);
            previous = ring.stage;
            ring.next();
        }
        wgmma_wait<0>();
        wgmma_settle(sum[0]), wgmma_settle(sum[1]);
        release(barriers.free[previous]);
    }

    __device__ __forceinline__ void low() {
        for_each_low_unit(args, kRanks, [&](int pair, const Factor& factor, int column) {
            float sum[2][kRanks / 2];
            accumulate<Major::K, Major::K>(
                sum, factor.steps,
                [&](const Solo& stage, int m, int k) { return k_major(stage.left(warpgroup), 64 * m) + k; },
                [&](const Solo& stage, int k) { return k_major(typename Solo::Rows{stage.right()}) + k; });
            store_low(pair * kPair + warpgroup, column, factor.low_end, sum);
        });
    }
    __device__ __forceinline__ void store_low(int row_tile, int first_column, int end,
                                              const float (&sum)[2][kRanks / 2]) const {
#pragma unroll
        for (int m = 0; m < 2; ++m)
#pragma unroll
            for (int i = 0; i < kRanks / 4; ++i) {
                const int row = row_tile * kM + 64 * m + accumulator_row() + i % 2 * 8;
                const int column = first_column + i / 2 * 8 + static_cast<int>(threadIdx.x) % 4 * 2;
                if (row < args.rows && column < end)
                    *reinterpret_cast<uint32_t*>(args.low + static_cast<int64_t>(row) * args.width + column) =
                        pack_bf16(sum[m][2 * i], sum[m][2 * i + 1]);
            }
        // The word to those that wait for these rows, or for all.
        asm volatile("fence.proxy.async.global;" ::: "memory");
        __threadfence();
        named_sync<kWarpgroup>(kFirstWarpgroupBarrier + warpgroup);
        if (threadIdx.x % kWarpgroup == 0)
            atomicAdd(args.ready + row_tile, 1), atomicAdd(args.ready + row_tiles_of(args.rows), 1);
    }

    __device__ __forceinline__ void sums() {
        if (args.sum_count == 0) return;
        for (int turn = 0;; turn ^= 1) {
            barriers.claimed.wait(turn);
            const int number = barriers.unit;
            barriers.taken.arrive();
            if (number < 0) return;
            const Unit unit(args, number, kRanks);
            float sum[2][kRanks / 2];
            accumulate<Major::MN, Major::MN>(
                sum, unit.steps(args),
                [&](const Solo& stage, int m, int k) { return mn_major(stage.panel(2 * warpgroup + m)) + 64 * k; },
                [&](const Solo& stage, int k) { return mn_major(typename Solo::Columns{stage.right()}) + 64 * k; });
            store_sum(args.sums[unit.sum], unit, sum);
        }
    }
    __device__ __forceinline__ void store_sum(const Sum& of, const Unit& unit,
                                              const float (&sum)[2][kRanks / 2]) const {
        float* to = of.parts + static_cast<int64_t>(unit.slice) * of.ranks * of.columns;
#pragma unroll
        for (int m = 0; m < 2; ++m)
#pragma unroll
            for (int i = 0; i < kRanks / 2; ++i) {
                const int rank = unit.first_rank + i / 4 * 8 + static_cast<int>(threadIdx.x) % 4 * 2 + i % 2;
                const int column = (unit.strip * 4 + 2 * warpgroup + m) * kK + accumulator_row() + i / 2 % 2 * 8;
                if (rank < of.ranks && column < of.columns)
                    to[static_cast<int64_t>(rank) * of.columns + column] = sum[m][i];
            }
    }
};

// --- dB ---

struct ObserverBarriers {
    Barrier full, free;  // p of this row tile
};

// A consumer warpgroup's share: steps c + (2 i + warpgroup) column_tiles.
struct Observer {
    using Sums = float4[kMostSteps][kWarpgroup];  // [64 columns of dy, 8 ranks] each, as a warpgroup holds them

    const Args& args;
    Sums& sums;
    TileA p;  // columns are ranks of all layers
    ObserverBarriers& barriers;
    int warpgroup;
    float sum[4] = {};
    int first, stride, next = 0, phase = 0, thread = static_cast<int>(threadIdx.x) % kWarpgroup;

    __device__ __forceinline__ Observer(const Args& a, Sums& s, TileA p_tile, ObserverBarriers& b, int w)
        : args(a), sums(s), p(p_tile), barriers(b), warpgroup(w) {
        const int column_tiles = column_tiles_of(args);
        first = static_cast<int>(blockIdx.x) / kPair % (kGroup * column_tiles) / kGroup, stride = column_tiles;
        for (int i = warpgroup; args.observes && i < kMostSteps; i += kConsumers)
            sums[i][thread] = make_float4(0, 0, 0, 0);
    }
    __device__ __forceinline__ void begin_tile() { next = args.observes ? first + warpgroup * stride : -1; }
    __device__ __forceinline__ void end_tile() {
        if (!args.observes) return;
        release(barriers.free), phase ^= 1;
    }
    // Begins with a tile of dy that is there. It is done when one more group of products has been committed and all but that one are finished.
    __device__ __forceinline__ void begin(const TileA& dy, int step) {
        barriers.full.wait(phase);
        int layer = 0;
        for (int past = args.factors[0].steps; step >= past; past += args.factors[layer].steps) ++layer;
        const float4 kept = sums[step / stride][thread];
        sum[0] = kept.x, sum[1] = kept.y, sum[2] = kept.z, sum[3] = kept.w;
        const WgmmaDescriptor left = mn_major(dy), right = mn_major(p) + args.factors[layer].low_first;
        wgmma_fence();
#pragma unroll
        for (int k = 0; k < kM; k += 16) wgmma_ss<Major::MN, Major::MN>(sum, left + 64 * k, right + 64 * k, true);
        wgmma_commit();
    }
    __device__ __forceinline__ void keep(int step) {
        wgmma_settle(sum);
        sums[step / stride][thread] = make_float4(sum[0], sum[1], sum[2], sum[3]);
        next += kConsumers * stride;
    }
    __device__ __forceinline__ void store() const {
        const int cluster = static_cast<int>(blockIdx.x) / kPair, half = static_cast<int>(blockIdx.x) % kPair;
        if (!args.observes || cluster >= args.makers) return;
        const int slice = (cluster / (kGroup * stride) * kGroup + cluster % kGroup) * kPair + half;
        int past = 0;
        for (int i = 0; i < args.low_factors; past += args.factors[i++].steps) {
            const Factor& factor = args.factors[i];
            float* to = factor.db + static_cast<int64_t>(slice) * 8 * factor.columns;
            for (int step = first + warpgroup * stride; step < past + factor.steps; step += kConsumers * stride) {
                if (step < past) continue;
                const float4 kept = sums[step / stride][thread];
                const float values[4] = {kept.x, kept.y, kept.z, kept.w};
                for (int e = 0; e < 4; ++e) {
                    const int column = (step - past) * kK + accumulator_row() + e / 2 * 8,
                              rank = thread % 4 * 2 + e % 2;
                    if (column < factor.columns) to[rank * factor.columns + column] = values[e];
                }
            }
        }
    }
};

#endif

}  // namespace lc::kernels::lora_sm90
