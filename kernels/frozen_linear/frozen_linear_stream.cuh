// The kernel of frozen_linear_sm90.cu, which says what it does.
#pragma once
#include "kernels/common/cuda/early.cuh"
#include "kernels/common/cuda/pack.cuh"
#include "kernels/common/cuda/roles.cuh"
#include "kernels/frozen_linear/frozen_linear.h"

namespace lc::kernels {

inline constexpr int kPanel = 128, kPanels = 4;  // bytes of a row in one panel; panels of a row of weights in a stage

struct StreamMatrix {
    CUtensorMap map;                   // panels of W or of its codes
    const float* scale = nullptr;      // [rows], with codes
    const __nv_bfloat16* b = nullptr;  // [rows], or none
    __nv_bfloat16* y = nullptr;        // [batch, rows], `ld_y` elements from row to row
    int64_t ld_y = 0;
    int rows = 0, first_tile = 0;
};

struct StreamArgs {
    StreamMatrix matrix[3];
    CUtensorMap x;                               // panels of x [batch, columns]
    const __nv_bfloat16* norm_weight = nullptr;  // [columns], or none: x is taken as it is
    const __nv_bfloat16* residual = nullptr;     // [batch, rows of matrix 0], or none
    int64_t ld_residual = 0;
    int matrices = 1, batch = 0, columns = 0, tiles = 0;
    float eps = 0, offset = 0;
};

template <WeightCode Code, int RowTiles, int BatchTiles, bool Gated>
struct StreamTraits {
    static constexpr WeightCode kCode = Code;
    static constexpr bool kGated = Gated;
    static constexpr int kRowTiles = RowTiles, kBatchTiles = BatchTiles;
    static constexpr int kRows = 16 * RowTiles, kBatch = 8 * BatchTiles;  // of a tile of results
    static constexpr int kBox = Gated ? kRows / 2 : kRows;                // rows of one copy
    static constexpr int kWidth = Code == WeightCode::none ? 2 : 1;       // bytes a weight
    // Codes are more work: two groups of warps take turns at the stages.
    static constexpr int kGroup = 8, kGroups = 2 / kWidth, kWarps = kGroup * kGroups;
    static constexpr int kMultiply = kWarps * kWarp, kThreads = kMultiply + kWarp;  // the last warp copies
    static constexpr int kColumns = kPanels * kPanel / kWidth;                      // of a stage
    static constexpr int kInputPanels = kColumns * 2 / kPanel;
    static constexpr int kWeights = kPanels * kRows * kPanel, kInputs = kInputPanels * kBatch * kPanel;
    static constexpr int kStage = kWeights + kInputs + 1024;  // behind them the norm's weights
    static constexpr int kOutputs = 16 * kBatch;
    static constexpr int kOwn = (kOutputs + kMultiply - 1) / kMultiply;
    static constexpr int kSums = kWarps * kOutputs * 4, kSquares = kWarps * kBatch * 4;
    static constexpr int kStages = (kSharedLimit - kSums - kSquares - 2 * kTileAlignment) / kStage;
    static constexpr int kBytes = kTileAlignment + kStages * kStage + kSums + kSquares;
    static_assert(kStages >= 2 && (!Gated || RowTiles % 2 == 0));
};

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

// Where the tiles of this block are, stage by stage.
template <class S>
struct StreamPlace {
    int tile, column = 0;
    __device__ __forceinline__ void next(const StreamArgs& a) {
        column += S::kColumns;
        if (column >= a.columns) column = 0, tile += static_cast<int>(gridDim.x);
    }
};

// The matrix of a tile, and its first row there. Gated: of both.
template <class S>
struct StreamTile {
    int matrix = 0, row;
    __device__ __forceinline__ StreamTile(const StreamArgs& a, int tile) {
        if constexpr (!S::kGated)
            while (matrix + 1 < a.matrices && tile >= a.matrix[matrix + 1].first_tile) ++matrix;
        row = (tile - a.matrix[matrix].first_tile) * S::kBox;
    }
};

// Queues a box of panels, [panel][row][128 bytes] in shared memory; within a row, the 16 bytes of number c lie at c ^ (row % 8).
__device__ __forceinline__ void copy_panels(unsigned char* to_shared, const CUtensorMap& map, int row, int panel,
                                            Barrier& full) {
    asm volatile(
        "cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3, %4}], "
        "[%5];" ::"r"(shared_address(to_shared)),
        "l"(&map), "r"(0), "r"(row), "r"(panel), "r"(shared_address(&full.state))
        : "memory");
}

// One thread: a few copies a stage.
template <class S>
struct StreamProducer {
    const StreamArgs& a;
    unsigned char* shared;
    Barrier *full, *free;

    // Weights depend on nobody.
    __device__ __forceinline__ void copy_weights(int stage, const StreamPlace<S>& place) const {
        const int norm_bytes = a.norm_weight ? min(S::kColumns, a.columns - place.column) * 2 : 0;
        full[stage].expect(S::kWeights + S::kInputs + norm_bytes);
        unsigned char* to = shared + stage * S::kStage;
        const int panel = place.column * S::kWidth / kPanel;
        const StreamTile<S> tile(a, place.tile);
        if constexpr (S::kGated) {
            copy_panels(to, a.matrix[0].map, tile.row, panel, full[stage]);
            copy_panels(to + S::kWeights / 2, a.matrix[1].map, tile.row, panel, full[stage]);
        } else {
            copy_panels(to, a.matrix[tile.matrix].map, tile.row, panel, full[stage]);
        }
        if (norm_bytes) copy_bulk(to + S::kWeights + S::kInputs, a.norm_weight + place.column, norm_bytes, full[stage]);
    }
    __device__ __forceinline__ void copy_inputs(int stage, int column) const {
        copy_panels(shared + stage * S::kStage + S::kWeights, a.x, 0, column * 2 / kPanel, full[stage]);
    }
    __device__ __forceinline__ void run() const {
        const StreamPlace<S> first{static_cast<int>(blockIdx.x)};
        StreamPlace<S> place = first;
        int ahead = 0;
        for (; ahead < S::kStages && place.tile < a.tiles; ++ahead, place.next(a)) copy_weights(ahead, place);
        wait_for_predecessor();
        StreamPlace<S> again = first;
        for (int stage = 0; stage < ahead; ++stage, again.next(a)) copy_inputs(stage, again.column);
        Turn<S::kStages> turn;
        for (; place.tile < a.tiles; place.next(a), turn.next()) {
            free[turn.stage].wait(turn.phase);
            copy_weights(turn.stage, place);
            copy_inputs(turn.stage, place.column);
        }
    }
};

// Two codes (bytes 2 half and 2 half + 1 of a word) as a pair of bf16, exactly. int8 c = 128 s + low: bf16 counts in ones
// between 128 and 256, so 128 + low is bits, and so is the -128 or -256 to be added. e4m3: its bits four places down are a bf16 2^120
// times too small, subnormal ones included.
template <WeightCode Code>
__device__ __forceinline__ uint32_t decode_pair(uint32_t word, int half) {
    uint32_t result;
    if constexpr (Code == WeightCode::int8) {
        const uint32_t bytes = __byte_perm(word, 0, half == 0 ? 0x4140 : 0x4342);
        const uint32_t value = (bytes & 0x007f007fu) | 0x43004300u, less = (bytes & 0x00800080u) | 0xc300c300u;
        asm("{\n.reg .b32 one;\nmov.b32 one, 0x3f803f80;\nfma.rn.bf16x2 %0, %1, one, %2;\n}"
            : "=r"(result)
            : "r"(value), "r"(less));
    } else {
        const uint32_t bytes = __byte_perm(word, 0, half == 0 ? 0x1404 : 0x3424);
        const uint32_t value = (bytes & 0x80008000u) | ((bytes >> 4) & 0x07f007f0u);
        asm("{\n.reg .b32 up, zero;\nmov.b32 up, 0x7b807b80;\nmov.b32 zero, 0x80008000;\nfma.rn.bf16x2 %0, %1, up, "
            "zero;\n}"
            : "=r"(result)
            : "r"(value));
    }
    return result;
}

__device__ __forceinline__ const unsigned char* chunk_of(const unsigned char* panel, int row, int chunk) {
    return panel + row * kPanel + ((chunk ^ (row % 8)) * 16);
}

// 16 rows of weights as left operands of two products, which take eight columns of a lane (g, t), run `run` of its chunk, from rows g and
// g + 8. These are other columns than mma.sync says, but the right operands' are the same, and a sum over columns does not see it.
template <WeightCode Code>
__device__ __forceinline__ void load_weights(const unsigned char* panel, int row, int chunk, int run,
                                             FragmentA (&w)[2]) {
    const unsigned char *low = chunk_of(panel, row, chunk), *high = chunk_of(panel, row + 8, chunk);
    if constexpr (Code == WeightCode::none) {
        const uint4 l = *reinterpret_cast<const uint4*>(low), h = *reinterpret_cast<const uint4*>(high);
        w[0] = {{l.x, h.x, l.y, h.y}}, w[1] = {{l.z, h.z, l.w, h.w}};
    } else {
        const uint2 l = reinterpret_cast<const uint2*>(low)[run], h = reinterpret_cast<const uint2*>(high)[run];
        w[0] = {{decode_pair<Code>(l.x, 0), decode_pair<Code>(h.x, 0), decode_pair<Code>(l.x, 1),
                 decode_pair<Code>(h.x, 1)}};
        w[1] = {{decode_pair<Code>(l.y, 0), decode_pair<Code>(h.y, 0), decode_pair<Code>(l.y, 1),
                 decode_pair<Code>(h.y, 1)}};
    }
}

// x -> x weight, rounded as x is. The product of two bf16 is exact in f32, so that one instruction rounds it the same way.
__device__ __forceinline__ void weigh(uint32_t& x, uint32_t weight, float offset) {
    if (offset == 0) {
        asm("{\n.reg .b32 zero;\nmov.b32 zero, 0x80008000;\nfma.rn.bf16x2 %0, %0, %1, zero;\n}"
            : "+r"(x)
            : "r"(weight));
    } else {
        const float2 value = unpack_bf16(x), factor = unpack_bf16(weight);
        x = pack_bf16(value.x * (factor.x + offset), value.y * (factor.y + offset));
    }
}
__device__ __forceinline__ void add_squares(float& squares, uint32_t x) {
    const float2 value = unpack_bf16(x);
    squares = fmaf(value.x, value.x, squares);
    squares = fmaf(value.y, value.y, squares);
}

template <class S>
struct StreamConsumer {
    const StreamArgs& a;
    float *sums, *squares;  // [warps][batch][16], [warps][batch]
    Accumulator sum[S::kRowTiles][S::kBatchTiles];
    float square[S::kBatchTiles];
    bool first = true;  // tile of this block: the only one that squares x

    __device__ __forceinline__ static int warp() { return static_cast<int>(threadIdx.x) / kWarp; }
    // Of the stages of a tile, which this warp's group takes; of those, this warp's panel, and its first column.
    __device__ __forceinline__ static bool takes(int column) {
        return S::kGroups == 1 || column / S::kColumns % S::kGroups == warp() / S::kGroup;
    }
    __device__ __forceinline__ static int panel() { return warp() % S::kGroup / 2; }
    __device__ __forceinline__ static int first_column() { return panel() * kPanel / S::kWidth; }
    __device__ __forceinline__ void clear() {
#pragma unroll
        for (int n = 0; n < S::kBatchTiles; ++n) {
            square[n] = 0;
#pragma unroll
            for (int r = 0; r < S::kRowTiles; ++r) sum[r][n] = {};
        }
    }
    // Half of a panel: every other chunk of 16 bytes, so that no two lanes want one bank.
    __device__ __forceinline__ void multiply(const unsigned char* stage) {
        constexpr int kRuns = 2 / S::kWidth;  // of eight columns in a chunk
        const int g = threadIdx.x % kWarp / 4, t = threadIdx.x % 4;
        const int chunk = 2 * t + warp() % 2;
#pragma unroll
        for (int i = 0; i < kRuns; ++i) {
            FragmentA w[S::kRowTiles][2];
#pragma unroll
            for (int r = 0; r < S::kRowTiles; ++r) {
                const int box = r * 16 / S::kBox;  // gated: two, each of panels of its own
                load_weights<S::kCode>(stage + (box * kPanels + panel()) * S::kBox * kPanel, r * 16 % S::kBox + g,
                                       chunk, i, w[r]);
            }
            multiply_run(stage, (panel() * 8 + chunk) * kRuns + i, g, w);
        }
    }
    // Run `run` of eight columns of the stage.
    __device__ __forceinline__ void multiply_run(const unsigned char* stage, int run, int g,
                                                 const FragmentA (&w)[S::kRowTiles][2]) {
        const unsigned char* inputs = stage + S::kWeights + run / 8 * S::kBatch * kPanel;
        const unsigned char* norm = stage + S::kWeights + S::kInputs + run * 16;
#pragma unroll
        for (int n = 0; n < S::kBatchTiles; ++n) {
            uint4 x = *reinterpret_cast<const uint4*>(chunk_of(inputs, 8 * n + g, run % 8));
            if (a.norm_weight) {
                if (first)
                    add_squares(square[n], x.x), add_squares(square[n], x.y), add_squares(square[n], x.z),
                        add_squares(square[n], x.w);
                const uint4 weight = *reinterpret_cast<const uint4*>(norm);
                weigh(x.x, weight.x, a.offset), weigh(x.y, weight.y, a.offset);
                weigh(x.z, weight.z, a.offset), weigh(x.w, weight.w, a.offset);
            }
            const FragmentB right{{x.x, x.y, x.z, x.w}};
#pragma unroll
            for (int r = 0; r < S::kRowTiles; ++r) {
                mma(sum[r][n], w[r][0], right, 0);
                mma(sum[r][n], w[r][1], right, 1);
            }
        }
    }
    // The warps' sums of 16 rows, added in order: u[i] is row output % 16 of batch output / 16,
    // output = thread + kMultiply i.
    __device__ __forceinline__ void gather(const Accumulator* part, float (&u)[S::kOwn]) {
        const int g = threadIdx.x % kWarp / 4, t = threadIdx.x % 4;
        named_sync<S::kMultiply>(1);  // all have read what was there
        float* own = sums + warp() * S::kOutputs;
#pragma unroll
        for (int n = 0; n < S::kBatchTiles; ++n)
#pragma unroll
            for (int c = 0; c < 4; ++c) own[(8 * n + 2 * t + c % 2) * 16 + g + c / 2 * 8] = part[n].c[c];
        named_sync<S::kMultiply>(1);
#pragma unroll
        for (int i = 0; i < S::kOwn; ++i) {
            const int output = static_cast<int>(threadIdx.x) + i * S::kMultiply;
            u[i] = 0;
            if (output < S::kOutputs)
#pragma unroll
                for (int w = 0; w < S::kWarps; ++w) u[i] += sums[w * S::kOutputs + output];
        }
    }
    // The barriers of gather() publish them.
    __device__ __forceinline__ void share_squares() {
#pragma unroll
        for (int n = 0; n < S::kBatchTiles; ++n) {
            const float total = warp_sum<4>(square[n]);
            if (threadIdx.x % 4 == 0) squares[warp() * S::kBatch + 8 * n + threadIdx.x % kWarp / 4] = total;
        }
    }
    __device__ __forceinline__ float norm_factor(int batch) const {
        if (!a.norm_weight) return 1;
        float total = 0;
#pragma unroll
        for (int w = 0; w < S::kWarps; ++w) total += squares[w * S::kBatch + batch];
        return rsqrtf(total / static_cast<float>(a.columns) + a.eps);
    }
    __device__ __forceinline__ static float finish(const StreamMatrix& m, int row, float u, float factor) {
        if (S::kCode != WeightCode::none) factor *= m.scale[row];
        return fmaf(u, factor, m.b ? to_float(m.b[row]) : 0.0f);
    }
    __device__ __forceinline__ void store(int tile) {
        const StreamTile<S> at(a, tile);
        if (a.norm_weight && first) share_squares();
        first = false;
        float u[S::kRowTiles][S::kOwn];
#pragma unroll
        for (int r = 0; r < S::kRowTiles; ++r) gather(sum[r], u[r]);
#pragma unroll
        for (int i = 0; i < S::kOwn; ++i) store_own(at, static_cast<int>(threadIdx.x) + i * S::kMultiply, u, i);
    }
    __device__ __forceinline__ void store_own(const StreamTile<S>& at, int output,
                                              const float (&u)[S::kRowTiles][S::kOwn], int i) const {
        const int b = output / 16;
        if (output >= S::kOutputs || b >= a.batch) return;
        const float factor = norm_factor(b);
        const StreamMatrix& m = a.matrix[at.matrix];
        constexpr int kResults = S::kBox / 16;
#pragma unroll
        for (int r = 0; r < kResults; ++r) {
            const int row = at.row + r * 16 + output % 16;
            if (row >= m.rows) continue;
            float y = finish(m, row, u[r][i], factor);
            if constexpr (S::kGated) y = y / (1 + expf(-y)) * finish(a.matrix[1], row, u[r + kResults][i], factor);
            if (a.residual) y += to_float(a.residual[b * a.ld_residual + row]);
            m.y[b * m.ld_y + row] = __float2bfloat16_rn(y);
        }
    }
};

#endif

template <class S>
__global__ void __launch_bounds__(S::kThreads, 1) stream_kernel(const __grid_constant__ StreamArgs a) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
    extern __shared__ unsigned char unaligned[];
    __shared__ Barrier full[S::kStages], free[S::kStages];
    unsigned char* shared = reinterpret_cast<unsigned char*>(aligned_shared(unaligned));
    start_successor();
    if (threadIdx.x == 0) {
        for (int s = 0; s < S::kStages; ++s) full[s].init(1), free[s].init(S::kGroup * kWarp);
        fence_barriers();
    }
    __syncthreads();
    if (threadIdx.x >= S::kMultiply) {
        if (threadIdx.x == S::kMultiply) StreamProducer<S>{a, shared, full, free}.run();
        return;
    }
    wait_for_predecessor();
    float* sums = reinterpret_cast<float*>(shared + S::kStages * S::kStage);
    StreamConsumer<S> consumer{a, sums, sums + S::kWarps * S::kOutputs};
    Turn<S::kStages> turn;
    for (int tile = static_cast<int>(blockIdx.x); tile < a.tiles; tile += static_cast<int>(gridDim.x)) {
        consumer.clear();
        for (int column = 0; column < a.columns; column += S::kColumns, turn.next()) {
            if (!consumer.takes(column)) continue;
            full[turn.stage].wait(turn.phase);
            if (consumer.first_column() < a.columns - column) consumer.multiply(shared + turn.stage * S::kStage);
            free[turn.stage].arrive();
        }
        consumer.store(tile);
    }
#endif
}

// Boxes of `rows` rows and `panels` panels of a matrix [rows, columns] of bf16 or bytes, `stride` bytes from row to row; columns are whole
// panels, start and stride multiples of 16. What lies outside is zeros.
inline CUtensorMap panel_map(const void* data, int width, int64_t rows, int64_t columns, int64_t stride, int box_rows,
                             int panels) {
    const auto in_panel = static_cast<cuuint32_t>(kPanel / width);
    const cuuint64_t sizes[3] = {in_panel, static_cast<cuuint64_t>(rows), static_cast<cuuint64_t>(columns) / in_panel};
    const cuuint64_t strides[2] = {static_cast<cuuint64_t>(stride), kPanel};
    const cuuint32_t box[3] = {in_panel, static_cast<cuuint32_t>(box_rows), static_cast<cuuint32_t>(panels)};
    const cuuint32_t steps[3] = {1, 1, 1};
    CUtensorMap map;
    const CUresult result = tensor_map_encoder()(
        &map, width == 1 ? CU_TENSOR_MAP_DATA_TYPE_UINT8 : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 3, const_cast<void*>(data),
        sizes, strides, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
        CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    LC_CHECK(result == CUDA_SUCCESS, "cuTensorMapEncodeTiled refuses panels of [{},{}], stride {} (error {})", rows,
             columns, stride, static_cast<int>(result));
    return map;
}

template <class S>
void launch_stream(const StreamArgs& a, cudaStream_t queue) {
    launch_early(stream_kernel<S>, {std::min(a.tiles, multiprocessors()), S::kThreads, S::kBytes}, queue, a);
}

}  // namespace lc::kernels
