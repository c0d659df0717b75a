// Gate, up and SwiGLU of many rows in one product on Hopper (sm_90a): wgmma, TMA with multicast, blocks that stay; bf16.
//
// MATHS    y = silu(x G^T) * (x U^T)
// TILING   a pair of blocks (a cluster) makes tiles of 2 x 128 rows and 128 columns of y. Each fetches its own rows of x; one fetches
//          rows of G for both, the other the same rows of U: the right operand [256,64] is 128 of G above 128 of U.
//
//            warpgroup 0, 1   64 rows each: [64,256] in registers, where a thread has gate and up of the same columns of y; the tile
//                             before it too, as bf16, which is stored meanwhile
//            warpgroup 2      one thread queues copies, four steps of k ahead
//
//          Pairs walk 16 pairs of row tiles x all columns at a time, so that 4096 rows of x stay in L2.
// COST     4 rows In Out FLOPs; y is written once, 2 bytes a number, where products of their own write gate and up and SwiGLU reads
//          them: 10 bytes. Two approximate functions a number of y, 3 % of a tile's time where nothing hides them.
// NUMERICS f32 sums, from which silu is made (sigmoid.cuh): nothing is rounded before y.
// LADDER   us of 8192 rows, 4096 to 14336 (Llama-3-8B), H200 at its power limit, where the least of the FLOPs is 2620:
//          1 cuBLASLt twice, then swiglu.cu: 3020 to 3160.
//          2 this, predicted 2790: the products as fast as cuBLASLt's, no SwiGLU. 8 pairs of row tiles at a time 2867 to 3117, 4 and 32
//            slower still; 16 are 2866 to 2965, alone after a pause 2813.
//            4096 tokens of a prompt: 96.1 ms, before 101.1 (H100). Steps of stage 1: docs/profiling.md.
// SOURCE   PTX ISA, "wgmma.mma_async", "cp.async.bulk.tensor".
#include "kernels/common/cuda/block_pair.cuh"
#include "kernels/common/cuda/launch.h"
#include "kernels/common/cuda/rows.h"
#include "kernels/common/cuda/sigmoid.cuh"
#include "kernels/frozen_linear/frozen_linear.h"

namespace lc::kernels {
namespace gated_sm90 {

inline constexpr int kConsumers = 2, kRoleThreads = 3 * kWarpgroup, kConsumerWarps = kConsumers * kWarpgroup / kWarp;
inline constexpr int kM = 128, kN = 128, kK = 64;      // rows of a block, columns of y, step of k
inline constexpr int kPair = 2, kStages = 4;           // blocks of a cluster; steps under way
inline constexpr int kGroup = 16;                      // pairs whose tiles are taken together
inline constexpr int kProducer = 40, kConsumer = 232;  // registers

using TileX = WgmmaTile<kM, kK>;
using TileW = WgmmaTile<2 * kN, kK>;
inline constexpr int kStageBytes = TileX::kBytes + TileW::kBytes;
inline constexpr int kSharedBytes = kTileAlignment + kStages * kStageBytes;
static_assert(kSharedBytes + 1024 <= kSharedLimit, "tiles, and barriers in static memory");

struct Args {
    CUtensorMap x, gate, up;
    __nv_bfloat16* y;  // [rows,columns]
    int64_t stride;
    int rows, columns, steps;  // steps: of kK
};

__host__ __device__ constexpr int tiles_of(int64_t size, int tile) {
    return static_cast<int>((size + tile - 1) / tile);
}

}  // namespace gated_sm90

namespace {

using namespace gated_sm90;

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

using Barriers = PairBarriers<kStages, kConsumerWarps>;

struct Stage {
    __nv_bfloat16* base;
    __device__ __forceinline__ Stage(__nv_bfloat16* shared, int stage) : base(shared + stage * (kStageBytes / 2)) {}
    __device__ __forceinline__ TileX x() const { return {base}; }
    __device__ __forceinline__ TileW w() const { return {base + TileX::kBytes / 2}; }
};

// f(row, column) of this block's tiles: the same walk in every role.
template <class F>
__device__ __forceinline__ void for_each_tile(const Args& args, F&& f) {
    const int clusters = gridDim.x / kPair, half = blockIdx.x % kPair;
    const int pairs = tiles_of(args.rows, kPair * kM), columns = tiles_of(args.columns, kN);
    for (int i = blockIdx.x / kPair; i < pairs * columns; i += clusters) {
        const int group = i / (kGroup * columns), within = i % (kGroup * columns);
        const int size = min(kGroup, pairs - group * kGroup), pair = group * kGroup + within % size;
        f((pair * kPair + half) * kM, within / size * kN);
    }
}

__device__ __forceinline__ void produce(const Args& args, __nv_bfloat16* shared, Barriers& barriers) {
    constexpr uint16_t kBoth = 3;
    const int half = static_cast<int>(blockIdx.x) % kPair;
    const CUtensorMap& own = half == 0 ? args.gate : args.up;
    Turn<kStages> ring;
    for_each_tile(args, [&](int row, int column) {
        for (int k = 0; k < args.steps; ++k) {
            barriers.free[ring.stage].wait(ring.phase ^ 1);
            Barrier& full = barriers.full[ring.stage];
            full.expect(kStageBytes);
            const Stage stage(shared, ring.stage);
            copy_panel(stage.x().data, args.x, row, k * kK, full);
            copy_panel(stage.w().data + half * kN * kK, own, column, k * kK, full, kBoth);
            ring.next();
        }
    });
}

// A tile of y in registers while the next one is made: what all multiprocessors write at the end of a tile at once would keep their
// tensor cores waiting.
struct Held {
    static constexpr int kParts = 8;

    uint32_t values[kN / 4];  // the same columns of rows r and r + 8: one half each
    __nv_bfloat16* to = nullptr;
    int64_t below = 0;                   // from row r to r + 8, in elements
    int columns = 0, columns_below = 0;  // of each that are there, from this lane's on

    __device__ __forceinline__ void take(const Args& args, int row, int column, const float (&sum)[kN]) {
        const auto y = [&](int i) { return sum[i] * sigmoid<false>(sum[i]) * sum[kN / 2 + i]; };
#pragma unroll
        for (int j = 0; j < kN / 8; ++j) {
            values[j] = pack_bf16(y(4 * j), y(4 * j + 1));
            values[kN / 8 + j] = pack_bf16(y(4 * j + 2), y(4 * j + 3));
        }
        column += static_cast<int>(threadIdx.x) % 4 * 8;
        to = args.y + row * args.stride + column, below = 8 * args.stride;
        columns = row < args.rows ? args.columns - column : 0;
        columns_below = row + 8 < args.rows ? args.columns - column : 0;
    }
    __device__ __forceinline__ void store(int part) const {
        const int half = part / (kParts / 2), column = part % (kParts / 2) * 32;
        uint32_t v[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) v[i] = values[kN / 8 * half + column / 8 + i];
        const uint4 run = gather_quad(v);
        if (column < (half ? columns_below : columns)) *reinterpret_cast<uint4*>(to + half * below + column) = run;
    }
};

struct Consumer {
    const Args& args;
    __nv_bfloat16* shared;
    Barriers& barriers;
    int warpgroup;
    Turn<kStages> ring;
    int previous;

    __device__ __forceinline__ void multiply(float (&sum)[kN], bool add) {
        const Stage stage(shared, ring.stage);
        const WgmmaDescriptor left = k_major(stage.x(), 64 * warpgroup), right = k_major(stage.w());
        barriers.full[ring.stage].wait(ring.phase);
        wgmma_fence();
#pragma unroll
        for (int k = 0; k < kK; k += 16)
            wgmma_ss<Major::K>(sum, left + k_offset<TileX>(k), right + k_offset<TileW>(k), add || k > 0);
        wgmma_commit();
    }
    // The step before this one is done with its stage.
    __device__ __forceinline__ void pass() {
        wgmma_wait<1>();
        if (previous >= 0) release_pair(barriers.free[previous]);
        previous = ring.stage;
        ring.next();
    }
    __device__ __forceinline__ void run() {
        Held held;
        const auto store_all = [&] {
#pragma unroll
            for (int part = 0; part < Held::kParts; ++part) held.store(part);
        };
        for_each_tile(args, [&](int row, int column) {
            float sum[kN];
            previous = -1;
            if (args.steps < Held::kParts) store_all();
#pragma unroll
            for (int step = 0; step < Held::kParts; ++step) {
                if (step >= args.steps) break;
                multiply(sum, step > 0);
                if (args.steps >= Held::kParts) held.store(step);
                pass();
            }
            for (int step = Held::kParts; step < args.steps; ++step) multiply(sum, true), pass();
            wgmma_wait<0>();
            wgmma_settle(sum);
            release_pair(barriers.free[previous]);
            held.take(args, row + 64 * warpgroup + accumulator_row(), column, sum);
        });
        store_all();
    }
};

#endif

__global__ void __launch_bounds__(kRoleThreads, 1) gated_kernel(const __grid_constant__ Args args) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
    extern __shared__ unsigned char dynamic[];
    __shared__ Barriers barriers;
    __nv_bfloat16* const shared = aligned_shared(dynamic);
    const int warpgroup = warpgroup_index();
    if (threadIdx.x == 0) barriers.init();
    cluster_arrive(), cluster_wait();  // the other block's barriers are there as well
    if (warpgroup == kConsumers) {
        shrink_registers<kProducer>();
        if (threadIdx.x == kConsumers * kWarpgroup) produce(args, shared, barriers);
    } else {
        grow_registers<kConsumer>();
        Consumer{args, shared, barriers, warpgroup, {}, -1}.run();
    }
    __syncwarp();
    cluster_arrive(), cluster_wait();  // nobody leaves whose memory the other one still writes
#endif
}

// Pairs that the device holds at a time; 0 where the build has no code for it. Asked once: on another GPU of the same kind it is the
// same.
int most_clusters() {
    static const int clusters = [] {
        cudaFuncAttributes attributes{};
        if (cudaFuncGetAttributes(&attributes, gated_kernel) != cudaSuccess || attributes.sharedSizeBytes == 0) {
            cudaGetLastError();
            return 0;
        }
        return std::max(pairs_at_a_time(gated_kernel, kRoleThreads, kSharedBytes), 1);
    }();
    return clusters;
}

// What TMA copies and 16-byte stores reach.
bool is_aligned(const TensorView& x, const std::optional<Layout>& rows) {
    return x.dtype == DType::bf16 && rows && rows->strides[0] % 8 == 0 && rows->shape[1] % 8 == 0 &&
           reinterpret_cast<uintptr_t>(x.base + rows->offset * 2) % 16 == 0;
}

}  // namespace

bool frozen_linear_gated(const FrozenLinear& a, Stream stream) {
    const bool plain =
        a.gated && a.code == WeightCode::none && !a.norm_weight && !a.residual && !a.matrices[0].b && !a.matrices[1].b;
    if (!plain || row_count(a.x.shape()) < kGatedRows) return false;
    const TensorView &gate = a.matrices[0].w, &up = a.matrices[1].w;
    const auto x_rows = row_layout(a.x), y_rows = row_layout(a.y[0]), g_rows = row_layout(gate),
               u_rows = row_layout(up);
    if (!is_aligned(a.x, x_rows) || !is_aligned(a.y[0], y_rows) || !is_aligned(gate, g_rows) ||
        !is_aligned(up, u_rows) || most_clusters() == 0)
        return false;
    const auto map = [](const TensorView& x, const Layout& rows, int box) {
        return matrix_map(x.base + rows.offset * 2, rows.shape[0], rows.shape[1], rows.strides[0], box);
    };
    const Args args{.x = map(a.x, *x_rows, kM),
                    .gate = map(gate, *g_rows, kN),
                    .up = map(up, *u_rows, kN),
                    .y = reinterpret_cast<__nv_bfloat16*>(a.y[0].base) + y_rows->offset,
                    .stride = y_rows->strides[0],
                    .rows = static_cast<int>(y_rows->shape[0]),
                    .columns = static_cast<int>(y_rows->shape[1]),
                    .steps = tiles_of(x_rows->shape[1], kK)};
    const int tiles = tiles_of(args.rows, kPair * kM) * tiles_of(args.columns, kN);
    const auto clusters = static_cast<unsigned>(std::min(tiles, most_clusters()));
    launch_clusters(gated_kernel, kPair, clusters, kRoleThreads, kSharedBytes, cuda::handle_of(stream), args);
    LC_LAUNCHED("frozen_linear", cuda::handle_of(stream));
    return true;
}

}  // namespace lc::kernels
