// The large products of adapted layers on Hopper: what a launch is told, which tiles a block makes, and how results are stored.
// lora_linear_sm90.cu says what is computed.
#pragma once
#include <array>

#include "kernels/common/cuda/roles.cuh"
#include "kernels/lora_linear/lora_linear_sm90.h"

namespace lc::kernels::lora_sm90 {

inline constexpr int kConsumers = 2, kRoles = 3;  // warpgroups
inline constexpr int kRoleThreads = kRoles * kWarpgroup, kConsumerWarps = kConsumers * kWarpgroup / kWarp;
inline constexpr int kM = 128, kN = 256, kK = 64,
                     kLow = 64;  // rows of a block, columns, step of k, ranks of a low tile
inline constexpr int kPair = 2, kStages = 4,
                     kGroup = 8;  // blocks of a cluster; steps under way; pairs whose tiles are taken together
inline constexpr int kProducer = 40, kConsumer = 232;  // registers: the producer's walk needs more than 24
inline constexpr int kReadyAt = kConsumers;            // arrivals at a low tile's counter

using TileA = WgmmaTile<kM, kK>;
template <Major B>
using TileB = std::conditional_t<B == Major::K, WgmmaTile<kN, kK>, WgmmaTile<kK, kN>>;
using TileLow = WgmmaTile<kLow, kK>;  // [kLow,kK] or [kK,kLow]
static_assert(kLow == kK);
inline constexpr int kStageBytes = TileA::kBytes + TileB<Major::K>::kBytes;
inline constexpr int kSharedBytes = kTileAlignment + kStages * kStageBytes;
static_assert(kSharedBytes + 1024 <= kSharedLimit, "tiles, and barriers in static memory");

// left [rows,k] x right (either [columns,k] or [k,columns]) is a share of an output.
struct Factor {
    CUtensorMap left, right;
    CUtensorMap low_right;           // for p or q
    int steps = 0;                   // of kK
    int low_first = 0, low_end = 0;  // columns of p or q that this factor has a share in
};
struct Output {
    std::byte* data = nullptr;
    int64_t stride = 0;
    int rows = 0, columns = 0;
    DType dtype = DType::bf16;            // or f32
    bool add = false;                     // to what is there
    int first = 0, count = 0;             // factors
    int low_first = 0, low_steps = 0;     // steps of kK over p or q
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
};
struct Args {
    std::array<Factor, kMostAdapted> factors;
    std::array<Output, kMostAdapted> outputs;
    CUtensorMap low_left;          // p or q as an operand
    __nv_bfloat16* low = nullptr;  // [rows,width]
    int* ready = nullptr;          // [low tiles, 2 pairs]
    int rows = 0, width = 0, low_factors = 0, output_count = 0;
};

__host__ __device__ constexpr int tiles_of(int64_t size, int tile) {
    return static_cast<int>((size + tile - 1) / tile);
}

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

struct Tile {
    bool low;  // of p or q, else of an output
    int output;
    int row, column;  // of this block
    int row_tile;     // row / kM
};

// f(Tile) for this block's share: the same walk in every role.
template <class F>
__device__ __forceinline__ void for_each_tile(const Args& args, F&& f) {
    const int clusters = gridDim.x / kPair, cluster = blockIdx.x / kPair, half = blockIdx.x % kPair;
    const int pairs = tiles_of(args.rows, kPair * kM);
    int column_tiles = 0;
    for (int o = 0; o < args.output_count; ++o) column_tiles += tiles_of(args.outputs[o].columns, kN);
    const int total = pairs * column_tiles, idle = clusters - total % clusters;
    const int low_tiles = pairs * tiles_of(args.width, kLow), helpers = 2 * idle >= low_tiles ? idle : clusters;
    const auto at = [&](int pair) { return (pair * kPair + half) * kM; };
    if (cluster < helpers)
        for (int i = cluster; i < low_tiles; i += helpers)
            f(Tile{true, 0, at(i % pairs), i / pairs * kLow, i % pairs * kPair + half});
    for (int i = clusters - 1 - cluster; i < total; i += clusters) {
        const int group = i / (kGroup * column_tiles), within = i % (kGroup * column_tiles);
        const int size = min(kGroup, pairs - group * kGroup), pair = group * kGroup + within % size;
        int column_tile = within / size, output = 0;
        while (column_tile >= tiles_of(args.outputs[output].columns, kN))
            column_tile -= tiles_of(args.outputs[output++].columns, kN);
        f(Tile{false, output, at(pair), column_tile * kN, pair * kPair + half});
    }
}

__device__ __forceinline__ bool has_share(const Factor& factor, int low_column) {
    return factor.low_first < low_column + kLow && factor.low_end > low_column;
}

// --- results ---

// Four lanes of a quad hold columns 2t, 2t+1 of four tiles of eight; afterwards lane t holds all of tile t.
__device__ __forceinline__ uint4 gather_quad(uint32_t (&v)[4]) {
    const int t = threadIdx.x % 4;
#pragma unroll
    for (int bit = 1; bit < 4; bit *= 2)
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            if (i & bit) continue;
            const bool upper = t & bit;
            const uint32_t got = __shfl_xor_sync(0xffffffffu, upper ? v[i] : v[i | bit], bit);
            (upper ? v[i] : v[i | bit]) = got;
        }
    return make_uint4(v[0], v[1], v[2], v[3]);
}

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

// Of this lane's two columns of a tile of eight.
__device__ __forceinline__ float2 bias_at(const Output& output, int column) {
    column += static_cast<int>(threadIdx.x) % 4 * 2;
    if (!output.bias || column >= output.columns) return make_float2(0, 0);
    return make_float2(__bfloat162float(output.bias[column]), __bfloat162float(output.bias[column + 1]));
}

__device__ __forceinline__ void store_row_bf16(const Output& output, int row, int first_column, int half,
                                               const float (&sum)[kN / 2]) {
    auto* to = reinterpret_cast<__nv_bfloat16*>(output.data) + row * output.stride;
#pragma unroll
    for (int j = 0; j < kN / 8; j += 4) {
        uint32_t v[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const float2 bias = bias_at(output, first_column + 8 * (j + i));
            v[i] = pack_bf16(sum[4 * (j + i) + 2 * half] + bias.x, sum[4 * (j + i) + 2 * half + 1] + bias.y);
        }
        uint4 run = gather_quad(v);
        const int column = first_column + 8 * (j + static_cast<int>(threadIdx.x) % 4);
        if (column >= output.columns || row >= output.rows) continue;
        auto* at = reinterpret_cast<uint4*>(to + column);
        if (output.add) add_run(run, *at);
        *at = run;
    }
}

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

__device__ __forceinline__ void store_output(const Args& args, const Tile& tile, int warpgroup,
                                             const float (&sum)[kN / 2]) {
    const Output& output = args.outputs[tile.output];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const int row = tile.row + 64 * warpgroup + accumulator_row() + 8 * half;
        if (output.dtype == DType::f32)
            store_row_f32(output, row, tile.column, half, sum);
        else
            store_row_bf16(output, row, tile.column, half, sum);
    }
}

// Rows of p or q, and the word to those that wait for them.
__device__ __forceinline__ void store_low(const Args& args, const Tile& tile, int warpgroup,
                                          const float (&sum)[kLow / 2]) {
    const int row = tile.row + 64 * warpgroup + accumulator_row();
#pragma unroll
    for (int i = 0; i < kLow / 4; ++i) {
        const int r = row + i % 2 * 8, column = tile.column + i / 2 * 8 + threadIdx.x % 4 * 2;
        if (r < args.rows && column < args.width)
            *reinterpret_cast<uint32_t*>(args.low + static_cast<int64_t>(r) * args.width + column) =
                pack_bf16(sum[2 * i], sum[2 * i + 1]);
    }
    asm volatile("fence.proxy.async.global;" ::: "memory");
    __threadfence();
    named_sync<kWarpgroup>(1 + warpgroup);
    if (threadIdx.x % kWarpgroup == 0) {
        const int row_tiles = tiles_of(args.rows, kPair * kM) * kPair;
        atomicAdd(args.ready + tile.column / kLow * row_tiles + tile.row_tile, 1);
    }
}

#endif

}  // namespace lc::kernels::lora_sm90
