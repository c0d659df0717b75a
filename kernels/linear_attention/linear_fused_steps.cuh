// The steps that the fused kernels of linear attention add to those of hybrid attention.
//
// TILING  Of the products inside a block, [64 queries, 64 keys], only the ten squares of 16 x 16 on or below the
//         diagonal are made: warps 0-3 have keys 0-31 of query rows 0, 16, 32, 48; warps 4-7 have keys 32-63 of query
//         rows 48, 32, 16, 0. So no warp has more than two squares, no two warps of a scheduler (w, w + 4) more than
//         three.
#pragma once
#include "kernels/hybrid_attention/hybrid_fused_steps.cuh"

namespace lc::kernels {

// A warp's part of a product of the block's queries and keys.
struct CausalTile {
    int side, row, column;  // rows row .. row + 15; keys column .. column + 31 = 32 side ..
    Accumulator c[4] = {};  // 0 where a square lies above the diagonal

    __device__ CausalTile()
        : side(warp_index() / 4), row((side == 0 ? warp_index() : 7 - warp_index()) * 16), column(side * 32) {}

    // c = A B over K;  a(m, k) and b(n, k) give the operands that begin there.
    template <int K, class LoadA, class LoadB>
    __device__ __forceinline__ void multiply(LoadA&& a, LoadB&& b) {
        if (column > row) return;
        if (column == row)
            multiply_squares<K, 1>(a, b);
        else
            multiply_squares<K, 2>(a, b);
    }
    // f(half, query, n, key): this thread's c[n].c[2 half], c[n].c[2 half + 1] belong to a query and to keys key, key + 1.
    template <class F>
    __device__ __forceinline__ void each_pair(F&& f) {
#pragma unroll
        for (int half = 0; half < 2; ++half)
#pragma unroll
            for (int n = 0; n < 4; ++n) f(half, row + 8 * half + quad_row(), n, column + 8 * n + 2 * quad_lane());
    }
    // Zeros above the diagonal, in every square that touches it.
    __device__ __forceinline__ void mask() {
        each_pair([&](int half, int query, int n, int key) {
            float* x = &c[n].c[2 * half];
            if (key > query) x[0] = 0;
            if (key + 1 > query) x[1] = 0;
        });
    }

  private:
    template <int K, int Squares, class LoadA, class LoadB>
    __device__ __forceinline__ void multiply_squares(LoadA&& a, LoadB&& b) {
#pragma unroll
        for (int k = 0; k < K; k += 16) {
            const FragmentA left = a(row, k);
#pragma unroll
            for (int i = 0; i < Squares; ++i) {
                const FragmentB right = b(column + 16 * i, k);
                mma(c[2 * i], left, right, 0), mma(c[2 * i + 1], left, right, 1);
            }
        }
    }
};

// phi_q phi_k^T of a block, causal.
__device__ __forceinline__ void multiply_features(CausalTile& tile, const SharedTile<kFusedFeatures>& phi_q,
                                                  const SharedTile<kFusedFeatures>& phi_k) {
    tile.multiply<kFusedFeatures>([&](int m, int k) { return load_a(phi_q, m, k); },
                                  [&](int n, int k) { return load_b(phi_k, n, k); });
    tile.mask();
}

// G of a block, rounded: value(row, product) on and below the diagonal, else 0.
template <class Value>
__device__ __forceinline__ void put_score_gradient(CausalTile& tile, const SharedTile<kFusedRows>& g, Value&& value) {
    tile.each_pair([&](int half, int query, int n, int key) {
        const float* x = &tile.c[n].c[2 * half];
        pair_at(g, query, key) =
            pack_bf16(key <= query ? value(query, x[0]) : 0.0f, key + 1 <= query ? value(query, x[1]) : 0.0f);
    });
}

// Weights for FeatureSums::add: 1 for the first `count` positions, else 0.
struct LeadingWeights {
    int count;
    __device__ __forceinline__ FragmentB operator()(int k) const {
        const int left = count - k - 2 * quad_lane();
        return {{part(left), part(left - 8), 0, 0}};
    }
    static __device__ __forceinline__ uint32_t part(int left) {
        return quad_row() != 0 || left <= 0 ? 0u : left == 1 ? 0x3f80u : 0x3f803f80u;
    }
};

// f(row, c0, c1): this thread's pairs of a row's gradient, of a positive and of a negative feature.
template <class F>
__device__ __forceinline__ void each_gradient(FeatureGradient& dphi, F&& f) {
#pragma unroll
    for (int i = 0; i < 4; ++i)
#pragma unroll
        for (int half = 0; half < 2; ++half)
            f(16 * i + 8 * half + quad_row(), &dphi.c[i][0].c[2 * half], &dphi.c[i][1].c[2 * half]);
}

// Each row times its factor.
__device__ __forceinline__ void scale_rows(FeatureGradient& dphi, const float* factor) {
    each_gradient(dphi, [&](int row, float* positive, float* negative) {
        const float x = factor[row];
        positive[0] *= x, positive[1] *= x, negative[0] *= x, negative[1] *= x;
    });
}

// Softmax as rounded adds up to 1 only within 2^-9; a gradient that all its features share must vanish all the same, and
// where Z is tiny it is most of what there is. So <p,g+> and <n,g-> are divided by the sums of p and n as rounded:
// put_inverse_sums, a barrier, put_dots.

// 1 / the sums of each row's positive and of its negative features to inverse [2][64]: a quarter of a row a thread.
__device__ __forceinline__ void put_inverse_sums(const SharedTile<kFusedFeatures>& phi, float* inverse) {
    const int row = threadIdx.x / 4;
#pragma unroll
    for (int sign = 0; sign < 2; ++sign) {
        float sum = 0;
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            const auto pack = load_pack(phi.chunk(row, sign * kFusedMap + (i * 4 + threadIdx.x % 4) * 8));
#pragma unroll
            for (int e = 0; e < 8; ++e) sum += pack.get(e);
        }
        sum = quad_sum(sum);
        if (threadIdx.x % 4 == 0) inverse[sign * kFusedRows + row] = 1 / sum;
    }
}
// FeatureGradient::put_dots, divided.
__device__ __forceinline__ void put_dots(FeatureGradient& dphi, const SharedTile<kFusedFeatures>& phi,
                                         const float* inverse, float* dots) {
    dphi.put_dots(phi, dots);
    const int sign = quad_lane();  // whose share this lane has put
    if (sign >= 2) return;
    each_gradient(dphi, [&](int row, const float*, const float*) {
        dots[row * FeatureGradient::kDots + sign * kWarps + warp_index()] *= inverse[sign * kFusedRows + row];
    });
}

// Each warp's share of phi.dphi, clamped features included; FeatureGradient::total_dot(dots, row, 0) adds them up.
__device__ __forceinline__ void put_shares(FeatureGradient& dphi, const SharedTile<kFusedFeatures>& phi, float* dots) {
    each_gradient(dphi, [&](int row, const float* positive, const float* negative) {
        const int column = 8 * warp_index() + 2 * quad_lane();
        const float2 p = unpack_bf16(pair_at(phi, row, column)), n = unpack_bf16(pair_at(phi, row, kFusedMap + column));
        const float dot = quad_sum(p.x * positive[0] + p.y * positive[1] + n.x * negative[0] + n.y * negative[1]);
        if (quad_lane() == 0) dots[row * FeatureGradient::kDots + warp_index()] = dot;
    });
}

// dphi += A phi over the positions of a block;  a(m, k): the operand of rows m ..
template <class LoadA>
__device__ __forceinline__ void add_features(FeatureGradient& dphi, LoadA&& a, const SharedTile<kFusedFeatures>& phi) {
    multiply<kFusedRows>(dphi.c, a, [&](int, int k) {
        const int lane = threadIdx.x % kWarp;
        FragmentB b;  // as load_b_transposed, columns 8 .. 15 from the negative half
        ldmatrix_transposed(b.r, phi.chunk(k + lane % 16, 8 * warp_index() + lane / 16 * kFusedMap));
        return b;
    });
}

}  // namespace lc::kernels
