// Feature maps on tensor cores: bf16 rows of 64 or 128 numbers, maps of 64, no bias, no skip.
//
// MATHS    feature_map.h.
// TILING   block = (batch, head, up to 512 rows): four warps, each 16 rows at a time. Nothing but W goes through shared memory: a
//          product sums over k in any order, so an operand's registers may hold whichever eight neighbours a thread loads at once.
//
//            thread t of the four of a row    loads x[8 (t + 4 j) ..+8], j = 0, 1, ...: k = those eight, in two mma of 16
//            W transposed [64,D]              the same eight k of a column of W are one 16-byte read; rows of D + 32 numbers, so that
//                                             two columns x four threads touch all 32 banks
//            result                           column n of tile i is feature 32 (i/4) + 8 (n/2) + 2 (i%4) + n%2: a thread ends with two
//                                             runs of eight features of a row, its own 16-byte stores
//
//          The next 16 rows are loaded while these are made into features.
//            registers: 32 x, 32 u, 96 in all; five blocks an SM; shared: W 64 (D + 32) 2 bytes, D = 128: 20 KiB
// COST     2 rows D F FLOPs; bytes: x and phi once, W once a block: D = 128, F' = 128 in bf16: 31.6 us for 8 x 32 x 1024 rows on an H200.
// NUMERICS W is rounded to bf16, as attention does; f32 sums; exp by ex2.approx (2 ulp, and 2^-22 of the exponent, at most 0: far below
//          the bf16 of phi); sums over a row of four threads in a fixed order.
// LADDER   8 x 32 heads x 1024 rows, D = 128, softmax_dim, H200, us; meant for 45 (0.7 of a copy)
//          1 576 (H100)  feature_map.cu: FFMA.
//          2 107  this with 256 rows a block, W split in two bf16 and read number by number: each load was awaited, two waves of blocks
//          3  62  W in 16-byte loads, all under way at once; 58 with 512 rows a block (one wave)
//          4  48  W rounded once: half the products and half the reads of shared memory
//          5  45  ex2.approx instead of expf, five blocks an SM: 0.70. Without any activation it is 45 to 50: what is left are the starts
//            of the walks (W first) and the one wave's end. 256 rows a block: 47; 1024: 60.
// SOURCE   arXiv 2402.04347; PTX ISA, "Matrix Fragments for mma.m16n8k16".
#include "kernels/common/cuda/head_tensor.cuh"
#include "kernels/common/cuda/launch.h"
#include "kernels/common/cuda/mma.cuh"
#include "kernels/common/cuda/pack.cuh"
#include "kernels/feature_map/feature_map_device.cuh"
#include "kernels/feature_map/feature_map_tiles.h"

namespace lc::kernels {
namespace {

constexpr int kThreads = 128, kWarps = kThreads / kWarp, kTileRows = 16, kBlockRows = 512, kFeatures = 64;
constexpr int kTiles = kFeatures / 8,
              kOwn = kFeatures / 4;  // products a tile of rows; numbers of u a thread has of a row

struct Args {
    HeadTensor x, w, phi;
    int64_t heads, group, t;  // group heads read one head of x
    FeatureActivation activation;
    bool two_sided;
};

template <int D>
struct TransposedWeight {
    static constexpr int kStride = D + 32;  // 64 bytes modulo 128
    __nv_bfloat16 rows[kFeatures][kStride];
};

// One row of 16 x D as this thread of its four has it.
template <int D>
struct RowPart {
    uint4 chunks[D / 32];
    __device__ __forceinline__ static RowPart load(const __nv_bfloat16* row, bool valid) {
        RowPart part;
#pragma unroll
        for (int j = 0; j < D / 32; ++j) {
            part.chunks[j] = {};
            if (valid) part.chunks[j] = *reinterpret_cast<const uint4*>(row + (threadIdx.x % 4 + 4 * j) * 8);
        }
        return part;
    }
};

// Four neighbours of a row of W.
__device__ __forceinline__ float4 load_four(const float* from) {
    return *reinterpret_cast<const float4*>(from);
}
__device__ __forceinline__ float4 load_four(const __nv_bfloat16* from) {
    const uint2 bits = *reinterpret_cast<const uint2*>(from);
    const float2 first = unpack_bf16(bits.x), second = unpack_bf16(bits.y);
    return {first.x, first.y, second.x, second.y};
}

// A thread turns 8 x 4 numbers of W at a time; the eight threads of a 128-byte store have four neighbouring k.
template <class W, int D>
__device__ __forceinline__ void load_weight(const W* w, int64_t stride, TransposedWeight<D>& weight) {
    constexpr int kUnits = D / 8 * (kFeatures / 4) / kThreads;
    float4 rows[kUnits][8];
    const auto place = [](int unit, int& k, int& f) {
        const int i = threadIdx.x + unit * kThreads;
        k = (i % 4 + i / 64 * 4) * 8, f = i / 4 % 16 * 4;
    };
#pragma unroll
    for (int unit = 0; unit < kUnits; ++unit) {
        int k, f;
        place(unit, k, f);
#pragma unroll
        for (int j = 0; j < 8; ++j) rows[unit][j] = load_four(w + (k + j) * stride + f);
    }
#pragma unroll
    for (int unit = 0; unit < kUnits; ++unit) {
        int k, f;
        place(unit, k, f);
#pragma unroll
        for (int c = 0; c < 4; ++c) {
            Pack<__nv_bfloat16> pack;
#pragma unroll
            for (int j = 0; j < 8; ++j) {
                const float4 four = rows[unit][j];
                pack.set(j, c == 0 ? four.x : c == 1 ? four.y : c == 2 ? four.z : four.w);
            }
            store_pack(&weight.rows[f + c][k], pack);
        }
    }
}

// u [16,64] += x w, where a column of the product is the feature that the head of this file says.
template <int D>
__device__ __forceinline__ void project(const RowPart<D> (&x)[2],
                                        const __nv_bfloat16 (&w)[kFeatures][TransposedWeight<D>::kStride],
                                        Accumulator (&u)[kTiles]) {
    const int g = threadIdx.x % kWarp / 4, t = threadIdx.x % 4;
#pragma unroll
    for (int j = 0; j < D / 32; ++j) {
        const uint4 upper = x[0].chunks[j], lower = x[1].chunks[j];
        const FragmentA first{{upper.x, lower.x, upper.y, lower.y}}, second{{upper.z, lower.z, upper.w, lower.w}};
#pragma unroll
        for (int i = 0; i < kTiles; ++i) {
            const int f = i / 4 * 32 + g / 2 * 8 + i % 4 * 2 + g % 2;
            const uint4 column = *reinterpret_cast<const uint4*>(&w[f][(t + 4 * j) * 8]);
            const FragmentB b{{column.x, column.y, column.z, column.w}};
            mma(u[i], first, b, 0);
            mma(u[i], second, b, 1);
        }
    }
}

// Reduces over the four threads of a row.
template <class Combine>
__device__ __forceinline__ float over_row(float value, Combine&& combine) {
    value = combine(value, __shfl_xor_sync(0xffffffffu, value, 1));
    return combine(value, __shfl_xor_sync(0xffffffffu, value, 2));
}

// The features of one row from u: positive over u, negative where the map is two-sided.
__device__ __forceinline__ void activate(FeatureActivation activation, bool two_sided, float (&u)[kOwn],
                                         float (&negative)[kOwn]) {
    if (!is_shift_invariant(activation)) {
#pragma unroll
        for (int i = 0; i < kOwn; ++i) u[i] = feature_map_positive(activation, {}, u[i]);
        return;
    }
    const auto add = [](float a, float b) { return a + b; };
    const auto larger = [](float a, float b) { return fmaxf(a, b); };
    float high = u[0], low = u[0], sum_p = 0, sum_n = 0;
#pragma unroll
    for (int i = 1; i < kOwn; ++i) high = fmaxf(high, u[i]), low = fminf(low, u[i]);
    high = over_row(high, larger), low = -over_row(-low, larger);
#pragma unroll
    for (int i = 0; i < kOwn; ++i) {
        if (two_sided) sum_n += negative[i] = __expf(low - u[i]);
        sum_p += u[i] = __expf(u[i] - high);
    }
    const bool softmax = activation == FeatureActivation::softmax_dim || activation == FeatureActivation::softmax_half;
    const float scale_p = softmax ? 1 / over_row(sum_p, add) : 1.0f,
                scale_n = softmax ? 1 / over_row(sum_n, add) : 1.0f;
#pragma unroll
    for (int i = 0; i < kOwn; ++i) {
        u[i] = feature_map_clamp(scale_p * u[i]);
        negative[i] = feature_map_clamp(scale_n * negative[i]);
    }
}

// This thread's sixteen of 64 features: two runs of eight.
__device__ __forceinline__ void store(__nv_bfloat16* row, const float (&values)[kOwn]) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        Pack<__nv_bfloat16> pack;
#pragma unroll
        for (int j = 0; j < 8; ++j) pack.set(j, values[half * 8 + j]);
        store_pack(row + half * 32 + threadIdx.x % 4 * 8, pack);
    }
}

template <class W, int D>
__global__ void __launch_bounds__(kThreads, 5) forward_kernel(const __grid_constant__ Args args) {
    extern __shared__ __align__(16) unsigned char shared[];
    auto& weight = *reinterpret_cast<TransposedWeight<D>*>(shared);
    const int64_t blocks = ceil_div(args.t, kBlockRows);
    const int64_t b = blockIdx.x / blocks / args.heads, h = blockIdx.x / blocks % args.heads;
    const int64_t first = blockIdx.x % blocks * kBlockRows, end = min(args.t, first + kBlockRows);
    const int g = threadIdx.x % kWarp / 4;
    const auto* x = reinterpret_cast<const __nv_bfloat16*>(args.x.base);
    auto* phi = reinterpret_cast<__nv_bfloat16*>(args.phi.base);
    int64_t row = first + threadIdx.x / kWarp * kTileRows + g;  // and row + 8
    RowPart<D> next[2];
    const auto fetch = [&] {
#pragma unroll
        for (int i = 0; i < 2; ++i)
            next[i] = next[i].load(x + args.x.row(b, h / args.group, row + 8 * i), row + 8 * i < end);
    };
    fetch();
    load_weight(reinterpret_cast<const W*>(args.w.base) + args.w.row(h, 0, 0), args.w.strides[1], weight);
    __syncthreads();
    while (row - g < end) {
        Accumulator u[kTiles] = {};
        project<D>(next, weight.rows, u);
        const int64_t at = row;
        row += kWarps * kTileRows;
        fetch();
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            float positive[kOwn], negative[kOwn] = {};
#pragma unroll
            for (int n = 0; n < kTiles; ++n) positive[2 * n] = u[n].c[2 * i], positive[2 * n + 1] = u[n].c[2 * i + 1];
            activate(args.activation, args.two_sided, positive, negative);
            if (at + 8 * i >= end) continue;
            __nv_bfloat16* to = phi + args.phi.row(b, h, at + 8 * i);
            store(to, positive);
            if (args.two_sided) store(to + kFeatures, negative);
        }
    }
}

// Whether rows of a tensor, along its last axis, are dense and start on 16 bytes.
bool is_packed(const TensorView& view) {
    const int last = view.rank() - 1;
    bool packed = view.stride(last) == 1 && is_pack_aligned(view.base + view.layout.offset * size_of(view.dtype));
    for (int axis = 0; axis < last; ++axis) packed = packed && (view.size(axis) == 1 || view.stride(axis) % 8 == 0);
    return packed;
}

}  // namespace

bool feature_map_forward_tiled(const FeatureMapForward& a, Stream stream) {
    const int64_t d = a.w.size(1);
    if (a.b || a.skip || a.w.size(2) != kFeatures || (d != 64 && d != 128)) return false;
    if (a.x.dtype != DType::bf16 || a.phi.dtype != DType::bf16) return false;
    if (!is_packed(a.x) || !is_packed(a.w) || !is_packed(a.phi)) return false;
    const Args args{.x = HeadTensor(a.x),
                    .w = HeadTensor(a.w),
                    .phi = HeadTensor(a.phi),
                    .heads = a.w.size(0),
                    .group = a.w.size(0) / a.x.size(1),
                    .t = a.x.size(2),
                    .activation = a.activation,
                    .two_sided = is_two_sided(a.activation)};
    const int64_t blocks = a.x.size(0) * args.heads * ceil_div(args.t, kBlockRows);
    if (blocks == 0) return true;
    const cudaStream_t queue = cuda::handle_of(stream);
    dispatch_cuda(a.w.dtype, "feature_map", [&](auto weight) {
        dispatch_bool(d == 128, [&](auto wide) {
            constexpr int kSize = wide() ? 128 : 64;
            constexpr int64_t kBytes = sizeof(TransposedWeight<kSize>);
            constexpr auto kKernel = forward_kernel<typename decltype(weight)::type, kSize>;
            allow_shared_memory(kKernel, kBytes);
            kKernel<<<grid_x(blocks), kThreads, kBytes, queue>>>(args);
        });
    });
    LC_LAUNCHED("feature_map", queue);
    return true;
}

}  // namespace lc::kernels
