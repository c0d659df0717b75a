// What both ways through a feature map on tensor cores share: W in shared memory, and who has which feature of a row.
//
//   four threads a row           thread t has two runs of eight features: 32 half + 8 t + 0 .. 7, its own 16-byte accesses
//   u, a tile of eight columns   column n of tile i is feature 32 (i/4) + 8 (n/2) + 2 (i%4) + n%2: that is what makes those runs of a
//                                thread's accumulators, 2 n + 1, n = 0 .. 7, in order
//   WeightTile                   W^T [64,D]: row f has feature f's column of W in chunks of eight; chunk c lies at c ^ (4 (f%2) + f/8%4),
//                                so that two features x four chunks, and eight features of a tile x one chunk, touch all banks once
#pragma once
#include "kernels/common/cuda/head_tensor.cuh"
#include "kernels/common/cuda/mma.cuh"
#include "kernels/common/cuda/pack.cuh"
#include "kernels/feature_map/feature_map_device.cuh"

namespace lc::kernels {

inline constexpr int kMapThreads = 128, kMapWarps = kMapThreads / kWarp, kMapSize = 64;
inline constexpr int kMapTiles = kMapSize / 8,
                     kMapOwn = kMapSize / 4;  // tiles of u; numbers of u a thread has of a row

__device__ __forceinline__ int feature_of(int tile, int column) {
    return tile / 4 * 32 + column / 2 * 8 + tile % 4 * 2 + column % 2;
}

template <int D>
struct WeightTile {
    __nv_bfloat16 rows[kMapSize][D];
    __device__ __forceinline__ const __nv_bfloat16* chunk(int f, int c) const {
        return &rows[f][(c ^ (f % 2 * 4 + f / 8 % 4)) * 8];
    }
    __device__ __forceinline__ __nv_bfloat16* chunk(int f, int c) {
        return &rows[f][(c ^ (f % 2 * 4 + f / 8 % 4)) * 8];
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

// All threads of the block: W [D,64] of a head, k_of(c, j) being the row of W that is number j of chunk c. A thread turns 8 x 4 numbers
// at a time, all loads under way before the first is used.
template <class W, int D, class RowOf>
__device__ __forceinline__ void load_weight(const W* w, int64_t stride, WeightTile<D>& weight, RowOf&& row_of) {
    constexpr int kUnits = D / 8 * (kMapSize / 4) / kMapThreads;
    float4 rows[kUnits][8];
    const auto place = [](int unit, int& c, int& f) {
        const int i = threadIdx.x + unit * kMapThreads;
        c = i % 4 + i / 64 * 4, f = i / 4 % 16 * 4;
    };
#pragma unroll
    for (int unit = 0; unit < kUnits; ++unit) {
        int c, f;
        place(unit, c, f);
#pragma unroll
        for (int j = 0; j < 8; ++j) rows[unit][j] = load_four(w + row_of(c, j) * stride + f);
    }
#pragma unroll
    for (int unit = 0; unit < kUnits; ++unit) {
        int c, f;
        place(unit, c, f);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            Pack<__nv_bfloat16> pack;
#pragma unroll
            for (int j = 0; j < 8; ++j) {
                const float4 four = rows[unit][j];
                pack.set(j, i == 0 ? four.x : i == 1 ? four.y : i == 2 ? four.z : four.w);
            }
            store_pack(weight.chunk(f + i, c), pack);
        }
    }
}
// W of either dtype.
template <int D, class RowOf>
__device__ __forceinline__ void load_weight(const HeadTensor& w, int64_t head, WeightTile<D>& weight, RowOf&& row_of) {
    const int64_t first = w.row(head, 0, 0), stride = w.strides[1];
    if (w.dtype == DType::bf16)
        load_weight(reinterpret_cast<const __nv_bfloat16*>(w.base) + first, stride, weight, row_of);
    else
        load_weight(reinterpret_cast<const float*>(w.base) + first, stride, weight, row_of);
}

__device__ __forceinline__ float exp2_approx(float x) {
    float result;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
    return result;
}

// Reduces over the four threads of a row.
template <class Combine>
__device__ __forceinline__ float over_row(float value, Combine&& combine) {
    value = combine(value, __shfl_xor_sync(0xffffffffu, value, 1));
    return combine(value, __shfl_xor_sync(0xffffffffu, value, 2));
}
__device__ __forceinline__ float sum_of_row(float value) {
    return over_row(value, [](float a, float b) { return a + b; });
}
__device__ __forceinline__ float max_of_row(float value) {
    return over_row(value, [](float a, float b) { return fmaxf(a, b); });
}

// exp(u - high) and exp(low - u) of a row whose extremes are these.
struct MapExponentials {
    static constexpr float kLog2e = 1.4426950408889634f;
    float high, low, shift_p, shift_n;

    __device__ __forceinline__ explicit MapExponentials(const float (&u)[kMapOwn]) : high(u[0]), low(u[0]) {
#pragma unroll
        for (int i = 1; i < kMapOwn; ++i) high = fmaxf(high, u[i]), low = fminf(low, u[i]);
        high = max_of_row(high), low = -max_of_row(-low);
        shift_p = -high * kLog2e, shift_n = low * kLog2e;
    }
    __device__ __forceinline__ float positive(float u) const {
        return exp2_approx(fmaf(u, kLog2e, shift_p));
    }
    __device__ __forceinline__ float negative(float u) const {
        return exp2_approx(fmaf(u, -kLog2e, shift_n));
    }
};
__device__ __forceinline__ bool is_softmax(FeatureActivation a) {
    return a == FeatureActivation::softmax_dim || a == FeatureActivation::softmax_half;
}

// Whether rows of a tensor, along its last axis, are dense and start on 16 bytes.
inline bool is_packed(const TensorView& view) {
    const int last = view.rank() - 1;
    bool packed = view.stride(last) == 1 && is_pack_aligned(view.base + view.layout.offset * size_of(view.dtype));
    for (int axis = 0; axis < last; ++axis) packed = packed && (view.size(axis) == 1 || view.stride(axis) % 8 == 0);
    return packed;
}

}  // namespace lc::kernels
