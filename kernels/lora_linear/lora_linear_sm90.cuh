// The large products of adapted layers on Hopper: what a launch is told, which tiles a block makes, and how results are stored.
// lora_linear_sm90.cu says what is computed.
#pragma once
#include <array>

#include "kernels/common/cuda/block_pair.cuh"
#include "kernels/lora_linear/lora_linear_sm90.h"

namespace lc::kernels::lora_sm90 {

inline constexpr int kConsumers = 2, kRoles = 3;  // warpgroups
inline constexpr int kRoleThreads = kRoles * kWarpgroup, kConsumerWarps = kConsumers * kWarpgroup / kWarp;
inline constexpr int kM = 128, kN = 256, kK = 64,
                     kLow = 64;  // rows of a block, columns, step of k, most ranks in one copy
inline constexpr int kPair = 2, kStages = 4,
                     kGroup = 4;  // blocks of a cluster; steps under way; pairs whose tiles are taken together
// Ranks of p or q that are made at a time, at most.
template <Major B>
inline constexpr int kMostLow = B == Major::K ? 96 : kLow;
// Registers. Of the pairs that fill the register file, those that spill least.
template <Major B>
inline constexpr int kProducer = B == Major::K ? 40 : 56;
template <Major B>
inline constexpr int kConsumer = B == Major::K ? 232 : 224;
inline constexpr int kMostSteps = 8;  // of k, whose dB one block keeps

using TileA = WgmmaTile<kM, kK>;
template <Major B>
using TileB = std::conditional_t<B == Major::K, WgmmaTile<kN, kK>, WgmmaTile<kK, kN>>;
using TileLow = WgmmaTile<kLow, kK>;
static_assert(kLow == kK);
inline constexpr int kStageBytes = TileA::kBytes + TileB<Major::K>::kBytes;
// In the backward there is room for p of this row tile and sums of dB.
template <Major B>
inline constexpr int kBytes = kTileAlignment + kStages* kStageBytes +
                              (B == Major::K ? 0 : TileA::kBytes + kMostSteps * kWarpgroup * 16);

// left [rows,k] x right (either [columns,k] or [k,columns]) is a share of an output.
struct Factor {
    CUtensorMap left, right;
    CUtensorMap low_right;           // [ranks,k], for p or q
    int steps = 0;                   // of kK
    int low_first = 0, low_end = 0;  // columns of p or q that this factor makes
    float* db = nullptr;             // [slices,8,k], or null
    int columns = 0;                 // k
};
struct Output {
    std::byte* data = nullptr;
    int64_t stride = 0;
    int rows = 0, columns = 0;
    DType dtype = DType::bf16;            // or f32
    bool add = false;                     // to what is there
    int first = 0, count = 0;             // factors
    int low_first = 0, low_steps = 0;     // steps of kK over p or q
    int low_begin = 0, low_end = 0;       // within the first, and the last of them: multiples of 16
    CUtensorMap low_right;                // their right operand
    const __nv_bfloat16* bias = nullptr;  // [columns], or null

    Output() = default;
    explicit Output(const DeviceOutRows& to)
        : data(to.as<std::byte>()),
          stride(to.stride),
          rows(static_cast<int>(to.rows)),
          columns(static_cast<int>(to.columns)),
          dtype(to.dtype),
          add(to.beta != 0) {}
    // Columns first .. end - 1 of p or q are summed.
    void set_low(int64_t first, int64_t end) {
        low_first = static_cast<int>(first / kK);
        low_steps = static_cast<int>((end + kK - 1) / kK) - low_first;
        low_begin = static_cast<int>(first % kK / 16 * 16);
        low_end = static_cast<int>((end - 1) % kK / 16 * 16 + 16);
    }
};
// left^T right, [columns,ranks], as sums over slices of rows: dA^T = x^T q or dB = dy^T p.
struct Sum {
    CUtensorMap left, right;                     // boxes of kK rows
    float* parts = nullptr;                      // [slices,ranks,columns]
    int columns = 0, ranks = 0, first_rank = 0;  // the last: column of right
    bool of_q = false;                           // which must be there
};
struct Args {
    std::array<Factor, kMostAdapted> factors;
    std::array<Output, kMostAdapted> outputs;
    CUtensorMap low_left;          // p or q as an operand
    __nv_bfloat16* low = nullptr;  // [rows,width]
    int* ready = nullptr;          // [row tiles], then how many there are in all, then the next unit of the sums
    int rows = 0, width = 0, low_factors = 0, output_count = 0;
    int low_ranks = 0, low_blocks = 0;  // of p or q at a time; times
    int makers = 0;                     // clusters that make outputs; the others make p or q
    std::array<Sum, kMostAdapted + 1> sums;
    int sum_count = 0, sum_ranks = 0, slice_rows = 0;  // ranks at a time
    bool observes = false;                             // dB is made by the way
    CUtensorMap p;                                     // boxes of kM rows
};

__host__ __device__ constexpr int tiles_of(int64_t size, int tile) {
    return static_cast<int>((size + tile - 1) / tile);
}
__host__ __device__ constexpr int row_tiles_of(int64_t rows) {
    return tiles_of(rows, kPair * kM) * kPair;
}
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

__device__ __forceinline__ int column_tiles_of(const Args& args) {
    int tiles = 0;
    for (int o = 0; o < args.output_count; ++o) tiles += tiles_of(args.outputs[o].columns, kN);
    return tiles;
}

struct Tile {
    int output;
    int row, column;  // of this block
    int row_tile;     // row / kM
};

// f(Tile) for this block's share of the outputs: the same walk in every role.
template <class F>
__device__ __forceinline__ void for_each_tile(const Args& args, F&& f) {
    const int cluster = blockIdx.x / kPair, half = blockIdx.x % kPair;
    if (cluster >= args.makers) return;
    const int pairs = tiles_of(args.rows, kPair * kM), column_tiles = column_tiles_of(args);
    for (int i = cluster; i < pairs * column_tiles; i += args.makers) {
        const int group = i / (kGroup * column_tiles), within = i % (kGroup * column_tiles);
        const int size = min(kGroup, pairs - group * kGroup), pair = group * kGroup + within % size;
        int column_tile = within / size, output = 0;
        while (column_tile >= tiles_of(args.outputs[output].columns, kN))
            column_tile -= tiles_of(args.outputs[output++].columns, kN);
        f(Tile{output, (pair * kPair + half) * kM, column_tile * kN, pair * kPair + half});
    }
}

// f(pair of row tiles, factor, first rank) for this block's share of p or q, `ranks` at a time.
template <class F>
__device__ __forceinline__ void for_each_low_unit(const Args& args, int ranks, F&& f) {
    const int first = static_cast<int>(blockIdx.x) - args.makers * kPair, pairs = tiles_of(args.rows, kPair * kM);
    if (first < 0) return;
    for (int i = first; i < pairs * args.low_blocks; i += static_cast<int>(gridDim.x) - args.makers * kPair) {
        int block = i % args.low_blocks, factor = 0;
        const auto blocks = [&] {
            return tiles_of(args.factors[factor].low_end - args.factors[factor].low_first, ranks);
        };
        for (; block >= blocks(); ++factor) block -= blocks();
        f(i / args.low_blocks, args.factors[factor], args.factors[factor].low_first + block * ranks);
    }
}

// --- results ---

// Adds what is there, as eight bf16.
__device__ __forceinline__ void add_run(uint4& run, const uint4& there) {
    uint32_t* to = &run.x;
    const uint32_t* from = &there.x;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        const float2 a = unpack_bf16(to[i]), b = unpack_bf16(from[i]);
        to[i] = pack_bf16(a.x + b.x, a.y + b.y);
    }
}

// A tile in bf16, in registers, while the next one is made: what all multiprocessors write at the end of a tile at once would keep their
// tensor cores waiting.
struct Held {
    static constexpr int kParts = 16;

    uint32_t values[kN / 4];  // the same columns of rows r and r + 8: one half each
    __nv_bfloat16* to = nullptr;
    int64_t below = 0;                   // from row r to r + 8, in elements
    int columns = 0, columns_below = 0;  // of each that are there, from this lane's on

    __device__ __forceinline__ void take(const Output& output, int row, int column, const float (&sum)[kN / 2]) {
#pragma unroll
        for (int j = 0; j < kN / 8; ++j) {
            float2 bias = make_float2(0, 0);
            if (output.bias) {
                const int at = column + 8 * j + static_cast<int>(threadIdx.x) % 4 * 2;
                if (at < output.columns)
                    bias = make_float2(__bfloat162float(output.bias[at]), __bfloat162float(output.bias[at + 1]));
            }
            values[j] = pack_bf16(sum[4 * j] + bias.x, sum[4 * j + 1] + bias.y);
            values[kN / 8 + j] = pack_bf16(sum[4 * j + 2] + bias.x, sum[4 * j + 3] + bias.y);
        }
        column += static_cast<int>(threadIdx.x) % 4 * 8;
        to = reinterpret_cast<__nv_bfloat16*>(output.data) + row * output.stride + column;
        below = 8 * output.stride;
        columns = row < output.rows ? output.columns - column : 0;
        columns_below = row + 8 < output.rows ? output.columns - column : 0;
    }
    template <bool Add>
    __device__ __forceinline__ void store(int part) const {
        const int half = part / (kParts / 2), column = part % (kParts / 2) * 32;
        uint32_t v[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) v[i] = values[kN / 8 * half + column / 8 + i];
        uint4 run = gather_quad(v);
        if (column >= (half ? columns_below : columns)) return;
        auto* at = reinterpret_cast<uint4*>(to + half * below + column);
        if constexpr (Add) add_run(run, *at);
        *at = run;
    }
    template <bool Add>
    __device__ __forceinline__ void store_all() {
#pragma unroll
        for (int part = 0; part < kParts; ++part) store<Add>(part);
        columns = columns_below = 0;
    }
};

__device__ __forceinline__ void store_row_f32(const Output& output, int row, int first_column, int half,
                                              const float (&sum)[kN / 2]) {
    auto* to = reinterpret_cast<float*>(output.data) + row * output.stride;
#pragma unroll
    for (int j = 0; j < kN / 8; ++j) {
        const int column = first_column + 8 * j + static_cast<int>(threadIdx.x) % 4 * 2;
        if (column >= output.columns || row >= output.rows) continue;
        auto* at = reinterpret_cast<float2*>(to + column);
        float2 value = make_float2(sum[4 * j + 2 * half], sum[4 * j + 2 * half + 1]);  // dx: without a bias
        if (output.add) value = make_float2(value.x + at->x, value.y + at->y);
        *at = value;
    }
}

// Leaves a tile in `held`, or stores it.
__device__ __forceinline__ void finish_tile(const Output& output, int row, int column, const float (&sum)[kN / 2],
                                            Held& held) {
    if (output.dtype == DType::f32) {
        held.columns = held.columns_below = 0;
        store_row_f32(output, row, column, 0, sum), store_row_f32(output, row + 8, column, 1, sum);
        return;
    }
    held.take(output, row, column, sum);
    if (output.add) held.store_all<true>();
}

#endif

}  // namespace lc::kernels::lora_sm90
