// The steps of feature_map_tiles_backward.cu on a tile of 64 rows, of which each of four warps has sixteen.
#pragma once
#include "kernels/common/cuda/run.cuh"
#include "kernels/feature_map/feature_map_tiles.cuh"

namespace lc::kernels {

inline constexpr int kTileRows = 64, kWarpRows = kTileRows / kMapWarps;
static_assert(kWarpRows == 16, "an mma a warp");

// The row of W that is number j of chunk c: in a chunk lie two of each eight columns of x, those that thread c % 4 has of an operand.
struct Interleaved {
    __device__ __forceinline__ int operator()(int c, int j) const { return c / 4 * 32 + j / 2 * 8 + c % 4 * 2 + j % 2; }
};

// u [16,64] of this warp's rows of x.
template <int D>
__device__ __forceinline__ void project(const SharedTile<D>& x, const WeightTile<D>& weight,
                                        Accumulator (&u)[kMapTiles]) {
    const int row = threadIdx.x / kWarp * kWarpRows, g = threadIdx.x % kWarp / 4, t = threadIdx.x % 4;
#pragma unroll
    for (int j = 0; j < D / 32; ++j) {
        const FragmentA first = load_a(x, row, 32 * j), second = load_a(x, row, 32 * j + 16);
#pragma unroll
        for (int i = 0; i < kMapTiles; ++i) {
            const uint4 column = *reinterpret_cast<const uint4*>(weight.chunk(feature_of(i, g), 4 * j + t));
            const FragmentB b{{column.x, column.y, column.z, column.w}};
            mma(u[i], first, b, 0);
            mma(u[i], second, b, 1);
        }
    }
}

// Features of this thread of one row of dphi: positive and, of two-sided maps, negative ones.
struct RowGradient {
    uint4 chunks[4];
    __device__ __forceinline__ float get(int i) const {
        const uint4& chunk = chunks[i / 8];
        const float2 pair = unpack_bf16(i % 8 / 2 == 0   ? chunk.x
                                        : i % 8 / 2 == 1 ? chunk.y
                                        : i % 8 / 2 == 2 ? chunk.z
                                                         : chunk.w);
        return i % 2 == 0 ? pair.x : pair.y;
    }
};

// du over u, of this thread's two rows. What the clamp holds, at most 1e-12, is treated as if it did not. Both rows in one branch, so that
// the steps of one fill the waits of the other.
__device__ __forceinline__ void differentiate(FeatureActivation activation, const RowGradient (&g)[2],
                                              float (&u)[2][kMapOwn]) {
    if (!is_shift_invariant(activation)) {
#pragma unroll
        for (int r = 0; r < 2; ++r)
#pragma unroll
            for (int i = 0; i < kMapOwn; ++i) {
                const float phi = feature_map_positive(activation, {}, u[r][i]);
                const float live = phi > static_cast<float>(kFeatureEpsilon) ? g[r].get(i) : 0.0f;
                u[r][i] = u[r][i] > 0 ? live : activation == FeatureActivation::relu ? 0.0f : live * phi;
            }
        return;
    }
    float p[2][kMapOwn], n[2][kMapOwn], sum_p[2] = {}, sum_n[2] = {}, dot_p[2] = {}, dot_n[2] = {}, top[2], bottom[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
        const MapExponentials exponentials(u[r]);
        top[r] = exponentials.positive(exponentials.high), bottom[r] = exponentials.negative(exponentials.low);
#pragma unroll
        for (int i = 0; i < kMapOwn; ++i) {
            p[r][i] = exponentials.positive(u[r][i]), n[r][i] = exponentials.negative(u[r][i]);
            sum_p[r] += p[r][i], sum_n[r] += n[r][i];
            dot_p[r] += p[r][i] * g[r].get(i);
            dot_n[r] += n[r][i] * g[r].get(kMapOwn + i);  // 0 where the map has no negative half
        }
        dot_p[r] = sum_of_row(dot_p[r]), dot_n[r] = sum_of_row(dot_n[r]);
    }
    if (is_softmax(activation)) {
#pragma unroll
        for (int r = 0; r < 2; ++r) {
            const float scale_p = __fdividef(1, sum_of_row(sum_p[r])), scale_n = __fdividef(1, sum_of_row(sum_n[r]));
            const float mean_p = dot_p[r] * scale_p, mean_n = dot_n[r] * scale_n;
#pragma unroll
            for (int i = 0; i < kMapOwn; ++i)
                u[r][i] =
                    scale_p * p[r][i] * (g[r].get(i) - mean_p) - scale_n * n[r][i] * (g[r].get(kMapOwn + i) - mean_n);
        }
        return;
    }
#pragma unroll
    for (int r = 0; r < 2; ++r) {  // an extreme's share goes to all that tie for it
        float at_top = 0, at_bottom = 0;
#pragma unroll
        for (int i = 0; i < kMapOwn; ++i)
            at_top += p[r][i] == top[r] ? 1.0f : 0.0f, at_bottom += n[r][i] == bottom[r] ? 1.0f : 0.0f;
        const float share_p = dot_p[r] / sum_of_row(at_top), share_n = dot_n[r] / sum_of_row(at_bottom);
#pragma unroll
        for (int i = 0; i < kMapOwn; ++i)
            u[r][i] = p[r][i] * g[r].get(i) - (p[r][i] == top[r] ? share_p : 0.0f) - n[r][i] * g[r].get(kMapOwn + i) +
                      (n[r][i] == bottom[r] ? share_n : 0.0f);
    }
}

// This warp's 32 columns from 32 a of dx [16,D] += du W^T.
template <int D>
__device__ __forceinline__ void add_dx(const FragmentA (&du)[kMapTiles / 2], const WeightTile<D>& weight, int a,
                                       Accumulator (&dx)[4]) {
    const int lane = threadIdx.x % kWarp;
#pragma unroll
    for (int s = 0; s < kMapTiles / 2; ++s) {
        const int f = feature_of(2 * s + lane / 8 % 2, lane % 8);
#pragma unroll
        for (int i = 0; i < 4; i += 2) {
            FragmentB b;
            ldmatrix_transposed(b.r, weight.chunk(f, 4 * a + i + lane / 16));
            mma(dx[i], du[s], b, 0), mma(dx[i + 1], du[s], b, 1);
        }
    }
}

// dW [D/4 of this warp,64] += x^T du over the tile's rows.
template <int D>
__device__ __forceinline__ void add_dw(const SharedTile<D>& x, const SharedTile<kMapSize>& du,
                                       Accumulator (&dw)[D / 64][kMapTiles]) {
    const int column = threadIdx.x / kWarp * (D / 4);
#pragma unroll
    for (int k = 0; k < kTileRows; k += 16) {
        FragmentA a[D / 64];
#pragma unroll
        for (int m = 0; m < D / 64; ++m) a[m] = load_a_transposed(x, column + 16 * m, k);
#pragma unroll
        for (int n = 0; n < kMapTiles; n += 2) {
            const FragmentB b = load_b_transposed(du, 8 * n, k);
#pragma unroll
            for (int m = 0; m < D / 64; ++m) mma(dw[m][n], a[m], b, 0), mma(dw[m][n + 1], a[m], b, 1);
        }
    }
}

}  // namespace lc::kernels
