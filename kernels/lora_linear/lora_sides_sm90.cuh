// What the launch of the large products makes beside them: p or q, and the gradients of the factors. lora_linear_sm90.cu says why here.
//
//   p or q   units of 256 rows, all of k, on blocks that make no outputs: sums of N ranks in registers
//   dA       units of 256 columns of x and 512 rows, as x^T q; whoever has nothing else to do takes the next one. They start when all of
//            q is there.
//   dB       dy^T p from the tiles of dy that pass for dx: two warps beside the producer read them as well. Of the blocks with one
//            row tile, that of column tile c keeps every column_tiles-th step of k, from step c on, in shared memory, through all of
//            its tiles: it has the same columns in each.
//
// Each block has a ring of its own for p, q and dA, in the memory of the pair's ring, which is empty by then.
#pragma once
#include "kernels/lora_linear/lora_linear_sm90.cuh"

namespace lc::kernels::lora_sm90 {

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

inline constexpr int kSoloStages = 4;
enum NamedBarrier { kFirstWarpgroupBarrier = 1, kObserverBarrier = kFirstWarpgroupBarrier + kConsumers };

struct SoloBarriers {
    Barrier full[kSoloStages], free[kSoloStages];
    int unit[kSoloStages];  // of dA, that the step belongs to; -1: there are no more
    __device__ void init() {
        for (int i = 0; i < kSoloStages; ++i) full[i].init(1), free[i].init(kConsumerWarps);
    }
};

// A stage of steps with N ranks, in `Bytes` of shared memory: 256 rows of a left operand and 64 of k, or 256 columns of x and 64 rows; and the right operand.
template <int N, int Bytes>
struct Solo {
    static constexpr int kSums = N / 2, kRanks = (N + kLow - 1) / kLow * kLow;  // of a thread; ranks that are copied
    static constexpr int kLeft = 2 * TileA::kBytes, kBytes = kLeft + kRanks * kK * 2;
    static constexpr int kStages = std::min(kSoloStages, (Bytes - kTileAlignment) / kBytes);
    static_assert(kStages >= 3);
    using Rows = WgmmaTile<kRanks, kK>;     // ranks x k
    using Columns = WgmmaTile<kK, kRanks>;  // k x ranks

    __nv_bfloat16* base;
    __device__ __forceinline__ Solo(__nv_bfloat16* shared, int stage) : base(shared + stage * (kBytes / 2)) {}
    __device__ __forceinline__ TileA left(int i) const { return {base + i * TileA::kBytes / 2}; }
    __device__ __forceinline__ TileLow panel(int i) const { return {base + i * TileLow::kBytes / 2}; }
    __device__ __forceinline__ __nv_bfloat16* right(int group = 0) const {
        return base + kLeft / 2 + group * TileLow::kBytes / 2;
    }
};

// f(std::integral_constant), with as many ranks at a time as `width` asks for. In the backward of several layers ranks of one layer have
// shares in sums over that layer's dy alone: no more than 64 then.
template <bool Apart, class F>
__device__ __forceinline__ void with_ranks(int width, F&& f) {
    if (width <= 32)
        f(std::integral_constant<int, 32>{});
    else if (Apart || width <= kLow)
        f(std::integral_constant<int, kLow>{});
    else
        f(std::integral_constant<int, 3 * kLow>{});
}

__device__ __forceinline__ int steps_of_low(const Args& args, int column, int ranks) {
    int steps = 0;
    for (int i = 0; i < args.low_factors; ++i)
        for (int c = column; c < column + ranks; c += kLow)
            if (has_share(args.factors[i], c)) {
                steps += args.factors[i].steps;
                break;
            }
    return steps;
}

// Units of dA: 256 columns of x, then slices of rows, then ranks.
struct Unit {
    int strip, slice, first_rank;
    __device__ __forceinline__ Unit(const Args& args, int unit, int ranks) {
        const int strips = tiles_of(args.in, 4 * kK), slices = tiles_of(args.rows, kSliceRows);
        strip = unit % strips, slice = unit / strips % slices, first_rank = unit / (strips * slices) * ranks;
    }
    __device__ static __forceinline__ int count(const Args& args, int ranks) {
        return args.da ? tiles_of(args.in, 4 * kK) * tiles_of(args.rows, kSliceRows) * tiles_of(args.width, ranks) : 0;
    }
    __device__ __forceinline__ int first_row() const { return slice * kSliceRows; }
    __device__ __forceinline__ int steps(const Args& args) const {
        return tiles_of(min(args.rows - first_row(), kSliceRows), kK);
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
    template <Major B>
    __device__ __forceinline__ void low_step(const Factor& factor, int pair, int k, int column) {
        Barrier& full = begin();
        full.expect(Solo::kBytes);
        const Solo stage(shared, ring.stage);
        for (int i = 0; i < kPair; ++i) copy_panel(stage.left(i).data, factor.left, (pair * kPair + i) * kM, k, full);
        for (int g = 0; g < Solo::kRanks / kLow; ++g) {
            const int first = column + g * kLow;
            copy_panel(stage.right(g), factor.low_right, B == Major::K ? first : k, B == Major::K ? k : first, full);
        }
        ring.next();
    }
    template <Major B>
    __device__ __forceinline__ void low() {
        for_each_low_pair(args, [&](int pair) {
            for (int column = 0; column < args.width; column += Solo::kRanks)
                for (int i = 0; i < args.low_factors; ++i)
                    if (B == Major::K || has_share(args.factors[i], column))
                        for (int k = 0; k < args.factors[i].steps; ++k)
                            low_step<B>(args.factors[i], pair, k * kK, column);
        });
    }
    __device__ __forceinline__ void da() {
        const int units = Unit::count(args, Solo::kRanks), tiles = low_tiles_of(args.rows, args.width);
        if (units == 0) return;
        await_count(args.ready + tiles, tiles);
        for (;;) {
            const int number = atomicAdd(args.ready + tiles + 1, 1);
            if (number >= units) break;
            const Unit unit(args, number, Solo::kRanks);
            for (int step = 0; step < unit.steps(args); ++step) {
                Barrier& full = begin();
                barriers.unit[ring.stage] = number;
                full.expect(Solo::kBytes);
                const Solo stage(shared, ring.stage);
                const int row = unit.first_row() + step * kK;
                for (int i = 0; i < 4; ++i)
                    copy_panel(stage.panel(i).data, args.x, row, (unit.strip * 4 + i) * kK, full);
                for (int g = 0; g < Solo::kRanks / kLow; ++g)
                    copy_panel(stage.right(g), args.q, row, unit.first_rank + g * kLow, full);
                ring.next();
            }
        }
        Barrier& full = begin();
        barriers.unit[ring.stage] = -1;
        full.arrive();
    }
};

// --- products ---

template <class Solo>
struct SoloConsumer {
    static constexpr int N = Solo::kSums * 2;
    const Args& args;
    __nv_bfloat16* shared;
    SoloBarriers& barriers;
    int warpgroup;
    Turn<Solo::kStages> ring;

    // sum[m] over `steps` stages; operands of step k within a stage: left(stage, m, k), right(stage, k).
    template <Major A, Major B, class Left, class Right>
    __device__ __forceinline__ void accumulate(float (&sum)[2][N / 2], int steps, Left&& left, Right&& right) {
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

    template <Major B>
    __device__ __forceinline__ void low() {
        for_each_low_pair(args, [&](int pair) {
            for (int column = 0; column < args.width; column += Solo::kRanks) {
                float sum[2][N / 2];
                accumulate<Major::K, B>(
                    sum, steps_of_low(args, column, Solo::kRanks),
                    [&](const Solo& stage, int m, int k) { return k_major(stage.left(warpgroup), 64 * m) + k; },
                    [&](const Solo& stage, int k) {
                        if constexpr (B == Major::K)
                            return k_major(typename Solo::Rows{stage.right()}) + k;
                        else
                            return mn_major(typename Solo::Columns{stage.right()}) + 64 * k;
                    });
                store_low(pair * kPair + warpgroup, column, sum);
            }
        });
    }
    // Rows of p or q, and the word to those that wait for them.
    __device__ __forceinline__ void store_low(int row_tile, int first_column, const float (&sum)[2][N / 2]) const {
#pragma unroll
        for (int m = 0; m < 2; ++m)
#pragma unroll
            for (int i = 0; i < N / 4; ++i) {
                const int row = row_tile * kM + 64 * m + accumulator_row() + i % 2 * 8;
                const int column = first_column + i / 2 * 8 + static_cast<int>(threadIdx.x) % 4 * 2;
                if (row < args.rows && column < args.width)
                    *reinterpret_cast<uint32_t*>(args.low + static_cast<int64_t>(row) * args.width + column) =
                        pack_bf16(sum[m][2 * i], sum[m][2 * i + 1]);
            }
        asm volatile("fence.proxy.async.global;" ::: "memory");
        __threadfence();
        named_sync<kWarpgroup>(kFirstWarpgroupBarrier + warpgroup);
        if (threadIdx.x % kWarpgroup != 0) return;
        const int row_tiles = row_tiles_of(args.rows), groups = tiles_of(args.width, kLow);
        for (int g = first_column / kLow; g < min(groups, (first_column + Solo::kRanks) / kLow); ++g) {
            atomicAdd(args.ready + g * row_tiles + row_tile, 1);
            atomicAdd(args.ready + groups * row_tiles, 1);
        }
    }

    __device__ __forceinline__ void da() {
        if (Unit::count(args, Solo::kRanks) == 0) return;
        for (;;) {
            barriers.full[ring.stage].wait(ring.phase);
            const int number = barriers.unit[ring.stage];
            if (number < 0) return;
            const Unit unit(args, number, Solo::kRanks);
            float sum[2][N / 2];
            accumulate<Major::MN, Major::MN>(
                sum, unit.steps(args),
                [&](const Solo& stage, int m, int k) { return mn_major(stage.panel(2 * warpgroup + m)) + 64 * k; },
                [&](const Solo& stage, int k) { return mn_major(typename Solo::Columns{stage.right()}) + 64 * k; });
            store_da(unit, sum);
        }
    }
    __device__ __forceinline__ void store_da(const Unit& unit, const float (&sum)[2][N / 2]) const {
        float* to = args.da + static_cast<int64_t>(unit.slice) * args.width * args.in;
#pragma unroll
        for (int m = 0; m < 2; ++m)
#pragma unroll
            for (int i = 0; i < N / 2; ++i) {
                const int rank = unit.first_rank + i / 4 * 8 + static_cast<int>(threadIdx.x) % 4 * 2 + i % 2;
                const int column = (unit.strip * 4 + 2 * warpgroup + m) * kK + accumulator_row() + i / 2 % 2 * 8;
                if (rank < args.width && column < args.in)
                    to[static_cast<int64_t>(rank) * args.in + column] = sum[m][i];
            }
    }
};

// --- dB ---

struct Observer {
    static constexpr int kSide = kK / kObservers;  // columns of a warp
    struct Memory {
        float4 sums[kMostSteps][kObservers][kSide / 16]
                   [kWarp];                    // [16 columns, 8 ranks] each, as the warp's lanes hold them
        __nv_bfloat16 p[kMostAdapted][kM][8];  // of this row tile
    };

    const Args& args;
    Memory& memory;
    int warp = static_cast<int>(threadIdx.x) % kWarpgroup / kWarp - 1, lane = static_cast<int>(threadIdx.x) % kWarp;
    FragmentB p[kM / 32];  // of one layer: 16 rows and 8 ranks in two registers each

    __device__ __forceinline__ void clear() {
        for (int step = 0; step < kMostSteps; ++step)
            for (int m = 0; m < kSide / 16; ++m) memory.sums[step][warp][m][lane] = make_float4(0, 0, 0, 0);
    }
    __device__ __forceinline__ void fetch_p(int first_row) {
        named_sync<kObservers * kWarp>(kObserverBarrier);  // nobody reads the last one
        for (int i = 0; i < args.low_factors; ++i)
            for (int row = warp * kWarp + lane; row < kM; row += kObservers * kWarp) {
                const bool valid = first_row + row < args.rows;
                copy_async(memory.p[i][row],
                           args.p + (valid ? (first_row + row) * args.p_stride + args.factors[i].low_first : 0), valid);
            }
        copy_async_commit();
    }
    __device__ __forceinline__ void await_p() {
        copy_async_wait<0>();
        named_sync<kObservers * kWarp>(kObserverBarrier);
    }
    __device__ __forceinline__ void load_p(int layer) {
#pragma unroll
        for (int i = 0; i < kM / 32; ++i) ldmatrix_transposed(p[i].r, memory.p[layer][32 * i + lane]);
    }
    __device__ __forceinline__ void add(const TileA& dy, int step) {
#pragma unroll
        for (int m = 0; m < kSide / 16; ++m) {
            float4& kept = memory.sums[step][warp][m][lane];
            Accumulator sum{{kept.x, kept.y, kept.z, kept.w}};
            const int column = warp * kSide + 16 * m + lane / 8 % 2 * 8;
#pragma unroll
            for (int k = 0; k < kM; k += 16) {
                FragmentA a;
                ldmatrix_transposed(a.r, dy.chunk(k + lane % 8 + lane / 16 * 8, column));
                mma(sum, a, p[k / 32], k / 16 % 2);
            }
            kept = make_float4(sum.c[0], sum.c[1], sum.c[2], sum.c[3]);
        }
    }
    // Steps first, first + stride, ... of k over all factors.
    __device__ __forceinline__ void store(int first, int stride, int slice) const {
        int past = 0;
        for (int i = 0; i < args.low_factors; ++i) {
            const Factor& factor = args.factors[i];
            for (int step = first; factor.db && step < past + factor.steps; step += stride) {
                if (step < past) continue;
                float* to = factor.db + static_cast<int64_t>(slice) * 8 * factor.columns;
                for (int m = 0; m < kSide / 16; ++m) {
                    const float4 kept = memory.sums[step / stride][warp][m][lane];
                    const float values[4] = {kept.x, kept.y, kept.z, kept.w};
                    for (int e = 0; e < 4; ++e) {
                        const int column = (step - past) * kK + warp * kSide + 16 * m + lane / 4 + e / 2 * 8;
                        const int rank = lane % 4 * 2 + e % 2;
                        if (column < factor.columns) to[rank * factor.columns + column] = values[e];
                    }
                }
            }
            past += factor.steps;
        }
    }
};

#endif

}  // namespace lc::kernels::lora_sm90
