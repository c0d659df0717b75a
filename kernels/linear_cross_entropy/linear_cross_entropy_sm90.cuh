// The product of a head on Hopper whose epilogue makes softmax's shares. linear_cross_entropy_sm90.cu says what is computed.
#pragma once
#include "kernels/common/cuda/block_pair.cuh"

namespace lc::kernels::head_sm90 {

inline constexpr int kConsumers = 2, kRoles = 3;  // warpgroups
inline constexpr int kRoleThreads = kRoles * kWarpgroup, kConsumerWarps = kConsumers * kWarpgroup / kWarp;
inline constexpr int kM = 128, kN = 256, kK = 64;      // rows of a block, columns, step of k
inline constexpr int kPair = 2, kStages = 4;           // blocks of a cluster; steps under way
inline constexpr int kProducer = 40, kConsumer = 232;  // registers

using TileA = WgmmaTile<kM, kK>;
using TileB = WgmmaTile<kN, kK>;
inline constexpr int kStageBytes = TileA::kBytes + TileB::kBytes;
inline constexpr int kSharedBytes = kTileAlignment + kStages * kStageBytes;
static_assert(kSharedBytes + 1024 <= kSharedLimit, "tiles, and barriers in static memory");

// Highest logit and sum of 2^(log2(e) logit - reference) of a row's tile of columns.
struct Partial {
    float high, sum;
};

struct Args {
    CUtensorMap hidden, weight;
    int rows = 0, vocabulary = 0, steps = 0;  // steps: of kK
    const float* reference = nullptr;         // [rows], of log2(e) logits; infinite: no shares
    const int* labels = nullptr;              // [rows], below 0: none
    __nv_bfloat16* shares = nullptr;          // [rows,stride], 2^(log2(e) logit - reference), 0 at the label; or null
    int64_t stride = 0;                       // a multiple of 8, at least vocabulary; what is between is written as 0
    Partial* partial = nullptr;               // [rows,column tiles]
    float* at_label = nullptr;                // [rows], log2(e) logit - reference
    const int* wanted = nullptr;              // nothing is done where *wanted is 0; null: it is wanted
};

__host__ __device__ constexpr int tiles_of(int64_t size, int tile) {
    return static_cast<int>((size + tile - 1) / tile);
}

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

using Barriers = PairBarriers<kStages, kConsumerWarps>;

struct Stage {
    __nv_bfloat16* base;
    __device__ __forceinline__ Stage(__nv_bfloat16* shared, int stage) : base(shared + stage * (kStageBytes / 2)) {}
    __device__ __forceinline__ TileA a() const { return {base}; }
    __device__ __forceinline__ TileB b() const { return {base + TileA::kBytes / 2}; }
};

// f(row, column) of this block's tiles: the same walk in every role. All rows of a chunk before the next columns: hidden stays in L2,
// and what clusters multiply at a time shares W's rows.
template <class F>
__device__ __forceinline__ void for_each_tile(const Args& args, F&& f) {
    const int clusters = gridDim.x / kPair, half = blockIdx.x % kPair;
    const int pairs = tiles_of(args.rows, kPair * kM), total = pairs * tiles_of(args.vocabulary, kN);
    for (int i = blockIdx.x / kPair; i < total; i += clusters) f((i % pairs * kPair + half) * kM, i / pairs * kN);
}

// Each block fetches its own rows of the left operand and half of the right one for both.
__device__ __forceinline__ void produce(const Args& args, __nv_bfloat16* shared, Barriers& barriers) {
    constexpr int kHalf = kN / kPair;
    constexpr uint16_t kBoth = 3;
    const int half = static_cast<int>(blockIdx.x) % kPair;
    Turn<kStages> ring;
    for_each_tile(args, [&](int row, int column) {
        for (int k = 0; k < args.steps; ++k) {
            barriers.free[ring.stage].wait(ring.phase ^ 1);
            Barrier& full = barriers.full[ring.stage];
            full.expect(kStageBytes);
            const Stage stage(shared, ring.stage);
            copy_panel(stage.a().data, args.hidden, row, k * kK, full);
            copy_panel(stage.b().data + half * kHalf * kK, args.weight, column + half * kHalf, k * kK, full, kBoth);
            ring.next();
        }
    });
}

// sum = hidden weight^T of this warpgroup's rows.
__device__ __forceinline__ void multiply(const Args& args, __nv_bfloat16* shared, Barriers& barriers,
                                         Turn<kStages>& ring, int warpgroup, float (&sum)[kN / 2]) {
    int previous = 0;
    for (int step = 0; step < args.steps; ++step) {
        const Stage stage(shared, ring.stage);
        const WgmmaDescriptor left = k_major(stage.a(), 64 * warpgroup), right = k_major(stage.b());
        barriers.full[ring.stage].wait(ring.phase);
        wgmma_fence();
#pragma unroll
        for (int k = 0; k < kK; k += 16)
            wgmma_ss<Major::K>(sum, left + k_offset<TileA>(k), right + k_offset<TileB>(k), step > 0 || k > 0);
        wgmma_commit();
        wgmma_wait<1>();  // the step before this one
        if (step > 0) release_pair(barriers.free[previous]);
        previous = ring.stage;
        ring.next();
    }
    wgmma_wait<0>();
    wgmma_settle(sum);
    release_pair(barriers.free[previous]);
}

// --- the epilogue ---

// One of this thread's two rows of a tile: accumulators 4 j + 2 half and the next are columns 8 j + 2 t and the next.
struct TileRow {
    float reference = INFINITY;
    int label = -1;

    __device__ __forceinline__ TileRow(const Args& args, int row) {
        if (row < args.rows) reference = args.reference[row], label = args.labels[row];
    }
    // Logits become shares; `columns` of the tile are logits.
    __device__ __forceinline__ Partial exponentiate(const Args& args, int row, int half, int first_column, int columns,
                                                    float (&x)[kN / 2]) const {
        constexpr float kLog2E = 1.4426950408889634f;
        const int own = static_cast<int>(threadIdx.x) % 4 * 2, at = label - first_column - own;
        const bool has_label = at >= 0 && at < kN && at % 8 < 2;
        const auto logit = [&](int i) -> float& { return x[4 * (i / 2) + 2 * half + i % 2]; };
        const auto column = [](int i) { return 8 * (i / 2) + i % 2; };
        if (columns < kN) {
#pragma unroll
            for (int i = 0; i < kN / 4; ++i)
                if (column(i) + own >= columns) logit(i) = -INFINITY;
        }
        if (has_label) {
            float found = 0;
#pragma unroll
            for (int i = 0; i < kN / 4; ++i) found = column(i) == at ? logit(i) : found;
            args.at_label[row] = fmaf(found, kLog2E, -reference);
        }
        Partial partial{-INFINITY, 0};
#pragma unroll
        for (int i = 0; i < kN / 4; ++i) {
            partial.high = fmaxf(partial.high, logit(i));
            logit(i) = exp2f(fmaf(logit(i), kLog2E, -reference));
            partial.sum += logit(i);
        }
        if (has_label) {
#pragma unroll
            for (int i = 0; i < kN / 4; ++i) logit(i) = column(i) == at ? 0.0f : logit(i);
        }
        partial.high = warp_max<4>(partial.high), partial.sum = warp_sum<4>(partial.sum);
        return partial;
    }
};

__device__ __forceinline__ void store_shares(const Args& args, int row, int half, int first_column,
                                             const float (&share)[kN / 2]) {
    __nv_bfloat16* to = args.shares + row * args.stride;
#pragma unroll
    for (int j = 0; j < kN / 8; j += 4) {
        uint32_t v[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) v[i] = pack_bf16(share[4 * (j + i) + 2 * half], share[4 * (j + i) + 2 * half + 1]);
        const uint4 run = gather_quad(v);
        const int column = first_column + 8 * (j + static_cast<int>(threadIdx.x) % 4);
        if (row < args.rows && column < args.stride) *reinterpret_cast<uint4*>(to + column) = run;
    }
}

__device__ __forceinline__ void consume(const Args& args, __nv_bfloat16* shared, Barriers& barriers, int warpgroup) {
    const int column_tiles = tiles_of(args.vocabulary, kN);
    Turn<kStages> ring;
    for_each_tile(args, [&](int first_row, int first_column) {
        const int row = first_row + 64 * warpgroup + accumulator_row();
        const TileRow rows[2] = {TileRow(args, row), TileRow(args, row + 8)};
        float x[kN / 2];
        multiply(args, shared, barriers, ring, warpgroup, x);
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const int r = row + 8 * half;
            const Partial partial =
                rows[half].exponentiate(args, r, half, first_column, args.vocabulary - first_column, x);
            if (threadIdx.x % 4 == 0 && r < args.rows)
                args.partial[static_cast<int64_t>(r) * column_tiles + first_column / kN] = partial;
            if (args.shares) store_shares(args, r, half, first_column, x);
        }
    });
}

#endif

}  // namespace lc::kernels::head_sm90
