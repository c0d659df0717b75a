// The steps that the fused kernels share.
//
// TILING  A thread block of 8 warps walks one query head of one batch entry, or a segment of it, in blocks of 64 positions (= w).
//         Of a product [64 or 128 rows, N] a warp owns
//
//           scores       16 queries x 64 keys: warp w has rows 16 (w % 4), side w / 4: keys of the block before | their own
//           maps         16 rows x all of u, so that a row's softmax stays in four lanes
//           outputs      32 rows x D/4 columns: y, dq, dk, dv   (OutputTile)
//           states       16 features x D: features 8w .. 8w+7 of either sign, in f32 registers for the whole walk (FeatureSums)
//           dphi, du     64 rows x the same 16 features          (FeatureGradient)
//           dW           16 of D x F (D = 64: x F/2), in f32 registers for the whole walk        (MapGradient)
//
//         A state S [F', D] in registers is at once the operand of dN S^T; phi S reads a bf16 copy in shared memory.
#pragma once
#include "kernels/hybrid_attention/hybrid_fused.cuh"

namespace lc::kernels {

// c [16 M, 8 N] += A B over K;  a(m, k) and b(n, k) give the operands that begin there.
template <int K, int M, int N, class LoadA, class LoadB>
__device__ __forceinline__ void multiply(Accumulator (&c)[M][N], LoadA&& a, LoadB&& b) {
#pragma unroll
    for (int k = 0; k < K; k += 16) {
        FragmentA left[M];
#pragma unroll
        for (int i = 0; i < M; ++i) left[i] = a(16 * i, k);
#pragma unroll
        for (int n = 0; n < N; n += 2) {
            const FragmentB right = b(8 * n, k);
#pragma unroll
            for (int i = 0; i < M; ++i) mma(c[i][n], left[i], right, 0), mma(c[i][n + 1], left[i], right, 1);
        }
    }
}

// --- feature maps ---

// phi of rows row .. row + 15 of x goes to the same rows of phi, rounded to bf16; with z, far = phi . z of each row as rounded.
template <int D>
__device__ __forceinline__ void map_rows(const SharedTile<D>& x, int row, const SharedTile<kFusedMap>& w,
                                         const SharedTile<kFusedFeatures>& phi, const float* z, float* far) {
    constexpr float kLeast = static_cast<float>(kFeatureEpsilon);
    const int t = quad_lane();
    Accumulator u[1][kFusedMap / 8] = {};
    multiply<D>(
        u, [&](int m, int k) { return load_a(x, row + m, k); },
        [&](int n, int k) { return load_b_transposed(w, n, k); });
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const int r = row + 8 * half + quad_row();
        float high = -INFINITY, low = INFINITY;
#pragma unroll
        for (int n = 0; n < kFusedMap / 8; ++n)
#pragma unroll
            for (int e = 0; e < 2; ++e)
                high = fmaxf(high, u[0][n].c[2 * half + e]), low = fminf(low, u[0][n].c[2 * half + e]);
        high = quad_max(high), low = -quad_max(-low);
        float p[kFusedMap / 4], sum_p = 0, sum_n = 0;
#pragma unroll
        for (int n = 0; n < kFusedMap / 8; ++n)
#pragma unroll
            for (int e = 0; e < 2; ++e) {
                float& value = u[0][n].c[2 * half + e];
                p[2 * n + e] = exp2_approx((value - high) * kLog2E);
                value = exp2_approx((low - value) * kLog2E);
                sum_p += p[2 * n + e], sum_n += value;
            }
        const float scale_p = 1 / quad_sum(sum_p), scale_n = 1 / quad_sum(sum_n);
        float dot = 0;
#pragma unroll
        for (int n = 0; n < kFusedMap / 8; ++n) {
            const float* negative = &u[0][n].c[2 * half];
            const uint32_t pair_p = pack_bf16(fmaxf(scale_p * p[2 * n], kLeast), fmaxf(scale_p * p[2 * n + 1], kLeast));
            const uint32_t pair_n =
                pack_bf16(fmaxf(scale_n * negative[0], kLeast), fmaxf(scale_n * negative[1], kLeast));
            pair_at(phi, r, 8 * n + 2 * t) = pair_p;
            pair_at(phi, r, kFusedMap + 8 * n + 2 * t) = pair_n;
            if (!z) continue;
            const float2 a = unpack_bf16(pair_p), b = unpack_bf16(pair_n);
            const float2 za = *reinterpret_cast<const float2*>(z + 8 * n + 2 * t);
            const float2 zb = *reinterpret_cast<const float2*>(z + kFusedMap + 8 * n + 2 * t);
            dot += a.x * za.x + a.y * za.y + b.x * zb.x + b.y * zb.y;
        }
        if (!z) continue;
        dot = quad_sum(dot);
        if (t == 0) far[r] = dot;
    }
}

// Sum over positions of phi^T x [F',D] and of phi^T weights [F']: a state, or the gradient of one. This warp's 16 features.
template <int D>
struct FeatureSums {
    Accumulator c[1][D / 8] = {};
    Accumulator total = {};  // columns 0 and 1 add up to phi^T weights

    static __device__ __forceinline__ int feature(int half) { return half * kFusedMap + 8 * warp_index() + quad_row(); }

    // weights(k): the operand [16, 8] whose columns 0 and 1 add up to the weights of positions k .. k + 15.
    template <class Weights>
    __device__ __forceinline__ void add(const SharedTile<kFusedFeatures>& phi, const SharedTile<D>& x,
                                        Weights&& weights) {
        const int lane = threadIdx.x % kWarp;
#pragma unroll
        for (int k = 0; k < kFusedRows; k += 16) {
            FragmentA a;  // as load_a_transposed, rows 8 .. 15 from the negative half
            ldmatrix_transposed(a.r,
                                phi.chunk(k + lane % 8 + lane / 16 * 8, 8 * warp_index() + lane / 8 % 2 * kFusedMap));
#pragma unroll
            for (int n = 0; n < D / 8; n += 2) {
                const FragmentB b = load_b_transposed(x, 8 * n, k);
                mma(c[0][n], a, b, 0), mma(c[0][n + 1], a, b, 1);
            }
            mma(total, a, weights(k), 0);
        }
    }
    __device__ __forceinline__ void put_total(float* to) const {
        if (quad_lane() != 0) return;
#pragma unroll
        for (int half = 0; half < 2; ++half) to[feature(half)] = total.c[2 * half] + total.c[2 * half + 1];
    }
    // To [F',D] and [F'] in memory; and added from there.
    __device__ __forceinline__ void store(float* sums, float* totals) const {
        put_total(totals);
#pragma unroll
        for (int n = 0; n < D / 8; ++n)
#pragma unroll
            for (int half = 0; half < 2; ++half)
                *reinterpret_cast<float2*>(sums + feature(half) * D + 8 * n + 2 * quad_lane()) =
                    make_float2(c[0][n].c[2 * half], c[0][n].c[2 * half + 1]);
    }
    __device__ __forceinline__ void add(const float* sums, const float* totals) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            if (quad_lane() == 0) total.c[2 * half] += totals[feature(half)];
#pragma unroll
            for (int n = 0; n < D / 8; ++n) {
                const float2 pair =
                    *reinterpret_cast<const float2*>(sums + feature(half) * D + 8 * n + 2 * quad_lane());
                c[0][n].c[2 * half] += pair.x, c[0][n].c[2 * half + 1] += pair.y;
            }
        }
    }
    // A bf16 copy [F',D].
    __device__ __forceinline__ void publish(const SharedTile<D>& copy) const {
#pragma unroll
        for (int n = 0; n < D / 8; ++n)
#pragma unroll
            for (int half = 0; half < 2; ++half)
                pair_at(copy, feature(half), 8 * n + 2 * quad_lane()) =
                    pack_bf16(c[0][n].c[2 * half], c[0][n].c[2 * half + 1]);
    }
};

// Weights for FeatureSums::add: all 1.
struct UnitWeights {
    __device__ __forceinline__ FragmentB operator()(int) const {
        const uint32_t ones = quad_row() == 0 ? 0x3f803f80u : 0u;
        return {{ones, ones, 0, 0}};
    }
};
// f32 numbers: column 0 has them rounded to bf16, column 1 what that took away.
struct SplitWeights {
    const float* values;
    __device__ __forceinline__ FragmentB operator()(int k) const {
        const float2* from = reinterpret_cast<const float2*>(values + k + 2 * quad_lane());
        return {{part(from[0]), part(from[4]), 0, 0}};
    }
    static __device__ __forceinline__ uint32_t part(float2 x) {
        const uint32_t rounded = pack_bf16(x.x, x.y);
        const float2 kept = unpack_bf16(rounded);
        return quad_row() == 0 ? rounded : quad_row() == 1 ? pack_bf16(x.x - kept.x, x.y - kept.y) : 0u;
    }
};

// dphi of 64 rows, this warp's 16 features: column tile 0 the positive ones, tile 1 the negative ones. And back through the
// softmaxes: du = p (g+ - <p,g+>) - n (g- - <n,g->), where clamped features have no g.
struct FeatureGradient {
    static constexpr int kDots = 2 * kWarps;  // floats a row in `dots`: each warp's share of <p,g+>, then of <n,g->
    Accumulator c[4][2] = {};

    // c = x sums^T
    template <int D>
    __device__ __forceinline__ void multiply_sums(const SharedTile<D>& x, const FeatureSums<D>& sums) {
        multiply<D>(
            c, [&](int m, int k) { return load_a(x, m, k); },
            [&](int, int k) { return as_b(sums.c[0][k / 8], sums.c[0][k / 8 + 1]); });
    }
    // c += factor(row) total[feature]
    template <class Factor>
    __device__ __forceinline__ void add_total(const float* total, Factor&& factor) {
        const float2 ends[2] = {total_at(total, 0), total_at(total, 1)};
        each_row([&](int i, int half, int row) {
            const float x = factor(row);
#pragma unroll
            for (int n = 0; n < 2; ++n) {
                float* g = &c[i][n].c[2 * half];
                g[0] = fmaf(x, ends[n].x, g[0]), g[1] = fmaf(x, ends[n].y, g[1]);
            }
        });
    }
    __device__ __forceinline__ void put_dots(const SharedTile<kFusedFeatures>& phi, float* dots) {
        each_row([&](int i, int half, int row) {
#pragma unroll
            for (int n = 0; n < 2; ++n) {
                const float2 value = unpack_bf16(phi_at(phi, row, n));
                float* g = &c[i][n].c[2 * half];
                if (!is_live(value.x)) g[0] = 0;
                if (!is_live(value.y)) g[1] = 0;
                const float dot = quad_sum(value.x * g[0] + value.y * g[1]);
                if (quad_lane() == n) dots[row * kDots + n * kWarps + warp_index()] = dot;
            }
        });
    }
    // After a barrier: du of this warp's columns.
    __device__ __forceinline__ void put_du(const SharedTile<kFusedFeatures>& phi, const float* dots,
                                           const SharedTile<kFusedMap>& du) const {
        each_row([&](int i, int half, int row) {
            float2 sum = make_float2(0, 0);
#pragma unroll
            for (int n = 0; n < 2; ++n) {
                const float2 value = unpack_bf16(phi_at(phi, row, n));
                const float* g = &c[i][n].c[2 * half];
                const float dot = total_dot(dots, row, n), sign = n == 0 ? 1.0f : -1.0f;
                sum.x += sign * value.x * (g[0] - dot), sum.y += sign * value.y * (g[1] - dot);
            }
            pair_at(du, row, column()) = pack_bf16(sum.x, sum.y);
        });
    }
    // <p,g+> or <n,g-> of a row.
    static __device__ __forceinline__ float total_dot(const float* dots, int row, int n) {
        const float4* parts = reinterpret_cast<const float4*>(dots + row * kDots + n * kWarps);
        const float4 a = parts[0], b = parts[1];
        return ((a.x + a.y) + (a.z + a.w)) + ((b.x + b.y) + (b.z + b.w));
    }

  private:
    static __device__ __forceinline__ int column() {
        return 8 * warp_index() + 2 * quad_lane();
    }
    static __device__ __forceinline__ float2 total_at(const float* total, int n) {
        return *reinterpret_cast<const float2*>(total + n * kFusedMap + column());
    }
    static __device__ __forceinline__ uint32_t phi_at(const SharedTile<kFusedFeatures>& phi, int row, int n) {
        return pair_at(phi, row, n * kFusedMap + column());
    }
    static __device__ __forceinline__ bool is_live(float value) {
        return value > unpack_bf16(pack_bf16(static_cast<float>(kFeatureEpsilon), 0)).x;
    }
    template <class F>
    static __device__ __forceinline__ void each_row(F&& f) {
#pragma unroll
        for (int i = 0; i < 4; ++i)
#pragma unroll
            for (int half = 0; half < 2; ++half) f(i, half, 16 * i + 8 * half + quad_row());
    }
};

// dW [D,F] += x^T du over the blocks of a walk.
template <int D>
struct MapGradient {
    Accumulator c[1][D / 16] = {};
    static constexpr int kGroups = D / 16;  // warps that share the rows of D

    static __device__ __forceinline__ int row() { return warp_index() % kGroups * 16; }
    static __device__ __forceinline__ int column() { return warp_index() / kGroups * (D / 2); }
    __device__ __forceinline__ void add(const SharedTile<D>& x, const SharedTile<kFusedMap>& du) {
        multiply<kFusedRows>(
            c, [&](int, int k) { return load_a_transposed(x, row(), k); },
            [&](int n, int k) { return load_b_transposed(du, column() + n, k); });
    }
    // To the item's part of [items,D,F].
    __device__ __forceinline__ void store(float* parts, int64_t item) const {
        float* to = parts + item * D * kFusedMap + column() + 2 * quad_lane();
#pragma unroll
        for (int n = 0; n < D / 16; ++n)
#pragma unroll
            for (int half = 0; half < 2; ++half)
                *reinterpret_cast<float2*>(to + (row() + 8 * half + quad_row()) * kFusedMap + 8 * n) =
                    make_float2(c[0][n].c[2 * half], c[0][n].c[2 * half + 1]);
    }
};

// --- the window ---

// factor = scale log2 e
__device__ __forceinline__ float window_weight(float score, float high, float factor, float gamma) {
    return gamma * exp2_approx((score - high) * factor);
}

// Raw scores of queries row .. row + 15 of q against keys column .. column + 8 N - 1 of k. Every kernel makes them by the same
// instructions in the same order of D, so that a score has the same bits wherever it is made.
template <int D, int N>
__device__ __forceinline__ void window_scores(Accumulator (&s)[1][N], const SharedTile<D>& q, int row,
                                              const SharedTile<D>& k, int column = 0) {
#pragma unroll
    for (int n = 0; n < N; ++n) s[0][n] = {};
    multiply<D>(
        s, [&](int m, int c) { return load_a(q, row + m, c); }, [&](int n, int c) { return load_b(k, column + n, c); });
}
// f(half, row, n, e, score) for this thread's scores, rows counted from the tile's first.
template <int N, class F>
__device__ __forceinline__ void each_score(Accumulator (&s)[1][N], F&& f) {
#pragma unroll
    for (int half = 0; half < 2; ++half)
#pragma unroll
        for (int n = 0; n < N; ++n)
#pragma unroll
            for (int e = 0; e < 2; ++e) f(8 * half + quad_row(), 8 * n + 2 * quad_lane() + e, s[0][n].c[2 * half + e]);
}

// The scores of a warp's 16 queries against one side of their window, on the way to weights.
struct WindowTile {
    int row, side;  // side 0: the block before; 1: the queries' own
    Accumulator s[1][8];

    __device__ WindowTile() : row(warp_index() % 4 * 16), side(warp_index() / 4) {}

    // Scores and this side's row maxima into high [2][64].
    template <int D>
    __device__ __forceinline__ void make_scores(const SharedTile<D>& q, const SharedTile<D>& k, bool first_block,
                                                float* high) {
        window_scores(s, q, row, k);
        if (side == 1)
            each_score(s, [&](int r, int c, float& x) { x = c <= row + r ? x : -INFINITY; });
        else if (first_block)
            each_score(s, [](int, int, float& x) { x = -INFINITY; });
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            float top = -INFINITY;
#pragma unroll
            for (int n = 0; n < 8; ++n) top = fmaxf(top, fmaxf(s[0][n].c[2 * half], s[0][n].c[2 * half + 1]));
            top = quad_max(top);
            if (quad_lane() == 0) high[side * kFusedRows + row + 8 * half + quad_row()] = top;
        }
    }
    // After a barrier: the maximum of row g (half 0) or g + 8.
    __device__ __forceinline__ float top(const float* high, int half) const {
        const int r = row + 8 * half + quad_row();
        return fmaxf(high[r], high[kFusedRows + r]);
    }
    // Weights as rounded for products: put(row, column, pair). Their sums over this side go to sum [2][64].
    template <class Put>
    __device__ __forceinline__ void make_weights(const float* high, float factor, float gamma, float* sum, Put&& put) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const int r = row + 8 * half + quad_row();
            const float m = top(high, half);
            float total = 0;
#pragma unroll
            for (int n = 0; n < 8; ++n) {
                const float* x = &s[0][n].c[2 * half];
                const uint32_t pair =
                    pack_bf16(window_weight(x[0], m, factor, gamma), window_weight(x[1], m, factor, gamma));
                const float2 rounded = unpack_bf16(pair);
                total += rounded.x + rounded.y;
                put(half, n, pair);
            }
            total = quad_sum(total);
            if (quad_lane() == 0) sum[side * kFusedRows + r] = total;
        }
    }
    // Which scores are their row's maximum: bit 16 half + 2 n + e; how many of this side are goes to ties [2][64].
    __device__ __forceinline__ uint32_t find_highest(const float* high, float* ties) const {
        uint32_t bits = 0;
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const int r = row + 8 * half + quad_row();
            const float m = top(high, half);
            float count = 0;
#pragma unroll
            for (int n = 0; n < 8; ++n)
#pragma unroll
                for (int e = 0; e < 2; ++e)
                    if (s[0][n].c[2 * half + e] == m) bits |= 1u << (16 * half + 2 * n + e), count += 1;
            count = quad_sum(count);
            if (quad_lane() == 0) ties[side * kFusedRows + r] = count;
        }
        return bits;
    }
};

// --- outputs ---

// [64, D] over the warps.
template <int D>
struct OutputTile {
    int row, column;
    Accumulator c[2][D / 32] = {};

    __device__ OutputTile() : row(warp_index() / 4 * 32), column(warp_index() % 4 * (D / 4)) {}

    // c += A x;  a(m, k): the operand of rows m ..
    template <int K, class LoadA>
    __device__ __forceinline__ void add(LoadA&& a, const SharedTile<D>& x) {
        multiply<K>(
            c, [&](int m, int k) { return a(row + m, k); },
            [&](int n, int k) { return load_b_transposed(x, column + n, k); });
    }
    // c += du W^T
    __device__ __forceinline__ void add_map(const SharedTile<kFusedMap>& du, const SharedTile<kFusedMap>& w) {
        multiply<kFusedMap>(
            c, [&](int m, int k) { return load_a(du, row + m, k); },
            [&](int n, int k) { return load_b(w, column + n, k); });
    }
    // f(row, elements) for each of this thread's rows; elements(g) calls g(n, column, pair) for its n-th pair of neighbours.
    template <class F>
    __device__ __forceinline__ void each_row(F&& f) {
#pragma unroll
        for (int i = 0; i < 2; ++i)
#pragma unroll
            for (int half = 0; half < 2; ++half)
                f(row + 16 * i + 8 * half + quad_row(), [&](auto&& g) {
#pragma unroll
                    for (int n = 0; n < D / 32; ++n) g(n, column + 8 * n + 2 * quad_lane(), &c[i][n].c[2 * half]);
                });
    }
};

}  // namespace lc::kernels
