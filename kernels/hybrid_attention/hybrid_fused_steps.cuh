// The steps that the fused kernels share.
//
// TILING  A thread block of two warpgroups walks one query head of one batch entry, in blocks of 64 positions (= w). A product
//         has 64 rows a warpgroup, 16 a warp, and lies in registers as wgmma.cuh draws it; warpgroup w has
//
//           maps         all of u of one tile: queries (0) or keys (1)
//           scores       64 queries x 64 keys: of the block before (0), of their own (1)       WindowTile
//           outputs      64 rows x D/2 columns: y, dq, dk, dv                                  OutputTile
//           states       64 features (0: positive, 1: negative) x D, f32, for the whole walk   FeatureSums
//           dphi, du     64 rows x 32 features of both signs                                   FeatureGradient
//           dW           D/2 rows (D = 64: columns), f32, for the whole walk                   MapGradient
//
//         Where a state is an operand, a bf16 copy in shared memory stands for it.
#pragma once
#include "kernels/hybrid_attention/hybrid_fused.cuh"

namespace lc::kernels {

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

// This thread's numbers among its warpgroup's 64 rows: in rows row and row + 8, pairs of columns 8 n + column and the next. Each
// step makes its own: addresses made of it are then no invariants of the walk, which would fill the registers.
struct Place {
    int row, column;
    __device__ __forceinline__ Place() {
        int t = static_cast<int>(threadIdx.x);
        asm volatile("" : "+r"(t));
        row = t % kWarpgroup / kWarp * 16 + t % kWarp / 4, column = t % 4 * 2;
    }
    // f(half, row)
    template <class F>
    __device__ __forceinline__ void each_row(F&& f) const {
#pragma unroll
        for (int half = 0; half < 2; ++half) f(half, row + 8 * half);
    }
};
// The n-th pair of a row in an accumulator.
template <int Count>
__device__ __forceinline__ float* pair_of(float (&c)[Count], int half, int n) {
    return c + 4 * n + 2 * half;
}
template <int Count>
__device__ __forceinline__ const float* pair_of(const float (&c)[Count], int half, int n) {
    return c + 4 * n + 2 * half;
}
// The same pairs in a tile, as bf16, from a row (a multiple of 8) and a column (of 8) on. Bits 4-6 of an address are the chunk's
// place in its 128 bytes, and nothing else: to move by n chunks is to flip bits.
template <class Tile>
struct TilePairs {
    uint32_t base;
    __device__ __forceinline__ TilePairs(const Tile& tile, const Place& place, int row = 0, int column = 0)
        : base(shared_address(tile.data) + column / 64 * (2 * Tile::kPanel) + (row + place.row) * 128 +
               ((place.row ^ (column / 8)) % 8 * 16 + 2 * place.column)) {}
    __device__ __forceinline__ uint32_t address(int half, int n) const {
        return (base ^ (n % 8 * 16)) + n / 8 * (2 * Tile::kPanel) + half * 1024;
    }
    __device__ __forceinline__ float2 load(int half, int n) const { return unpack_bf16(load_shared(address(half, n))); }
    __device__ __forceinline__ void store(int half, int n, uint32_t pair) const {
        store_shared(address(half, n), pair);
    }
};
template <class Tile>
TilePairs(const Tile&, const Place&, int, int) -> TilePairs<Tile>;

// --- feature maps ---

// u = x W; may be read after wait_products.
template <int D>
__device__ __forceinline__ void multiply_map(float (&u)[kFusedMap / 2], const RowTile<D>& x, const MapTile<D>& w) {
    begin_products();
    multiply<D, Major::MN>(u, x, 0, w, 0, false);
    end_products();
}
// phi of this warp's rows from u = x W, rounded to bf16; with z, far = phi . z of each row as rounded.
__device__ __forceinline__ void map_rows(float (&u)[kFusedMap / 2], const FeatureTile& phi, const float* z,
                                         float* far) {
    constexpr float kLeast = static_cast<float>(kFeatureEpsilon);
    constexpr int kPairs = kFusedMap / 8;
    const Place place;
    const TilePairs out(phi, place);
    place.each_row([&](int half, int row) {
        float high = -INFINITY, low = INFINITY;
#pragma unroll
        for (int n = 0; n < kPairs; ++n) {
            const float* x = pair_of(u, half, n);
            high = fmaxf(high, fmaxf(x[0], x[1])), low = fminf(low, fminf(x[0], x[1]));
        }
        high = quad_max(high) * kLog2E, low = -quad_max(-low) * kLog2E;
        float2 p[kPairs];
        float sum_p = 0, sum_n = 0;
#pragma unroll
        for (int n = 0; n < kPairs; ++n) {
            float* x = pair_of(u, half, n);
            p[n] = make_float2(exp2_approx(fmaf(x[0], kLog2E, -high)), exp2_approx(fmaf(x[1], kLog2E, -high)));
            x[0] = exp2_approx(fmaf(x[0], -kLog2E, low)), x[1] = exp2_approx(fmaf(x[1], -kLog2E, low));
            sum_p += p[n].x + p[n].y, sum_n += x[0] + x[1];
        }
        const float scale_p = 1 / quad_sum(sum_p), scale_n = 1 / quad_sum(sum_n);
        float dot = 0;
#pragma unroll
        for (int n = 0; n < kPairs; ++n) {
            const float* x = pair_of(u, half, n);
            const int column = 8 * n + place.column;
            const uint32_t pair_p = pack_bf16(fmaxf(scale_p * p[n].x, kLeast), fmaxf(scale_p * p[n].y, kLeast));
            const uint32_t pair_n = pack_bf16(fmaxf(scale_n * x[0], kLeast), fmaxf(scale_n * x[1], kLeast));
            out.store(half, n, pair_p), out.store(half, kFusedMap / 8 + n, pair_n);
            if (!z) continue;
            const float2 a = unpack_bf16(pair_p), b = unpack_bf16(pair_n);
            const float2 za = *reinterpret_cast<const float2*>(z + column);
            const float2 zb = *reinterpret_cast<const float2*>(z + kFusedMap + column);
            dot += a.x * za.x + a.y * za.y + b.x * zb.x + b.y * zb.y;
        }
        if (!z) return;
        dot = quad_sum(dot);
        if (quad_lane() == 0) far[row] = dot;
    });
}

// Sum over positions of phi^T x [F',D] and of phi^T weights [F']: a state, or the gradient of one. This warp's 16 features.
template <int D>
struct FeatureSums {
    float c[D / 2] = {};
    Accumulator total = {};  // columns 0 and 1 add up to phi^T weights
    FragmentA left[kFusedRows / 16];

    // Adds a block; done after wait_products<..>(c, left). weights(k): the operand [16, 8] whose columns 0 and 1 add up to the
    // weights of positions k .. k + 15.
    template <class Weights>
    __device__ __forceinline__ void add(const FeatureTile& phi, const RowTile<D>& x, Weights&& weights) {
        load_transposed<kFusedRows>(left, phi, 0, warpgroup() * kFusedMap);
#pragma unroll
        for (int k = 0; k < kFusedRows; k += 16) mma(total, left[k / 16], weights(k), 0);
        begin_products();
        multiply_transposed<kFusedRows, Major::MN>(c, left, x, 0, true);
        end_products();
    }
    __device__ __forceinline__ void put_total(float* to) const {
        if (quad_lane() != 0) return;
        Place().each_row(
            [&](int half, int row) { to[warpgroup() * kFusedMap + row] = total.c[2 * half] + total.c[2 * half + 1]; });
    }
    // A bf16 copy [F',D].
    __device__ __forceinline__ void publish(const StateTile<D>& copy) const {
        const Place place;
        const TilePairs out(copy, place, warpgroup() * kFusedMap, 0);
        place.each_row([&](int half, int) {
#pragma unroll
            for (int n = 0; n < D / 8; ++n) {
                const float* x = pair_of(c, half, n);
                out.store(half, n, pack_bf16(x[0], x[1]));
            }
        });
    }
};

// Weights for FeatureSums::add: all 1, or all 0.
struct UnitWeights {
    bool one;
    __device__ __forceinline__ FragmentB operator()(int) const {
        const uint32_t pair = one && quad_row() == 0 ? 0x3f803f80u : 0u;
        return {{pair, pair, 0, 0}};
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

// dphi of 64 rows, this warpgroup's 32 features of either sign. And back through the softmaxes:
// du = p (g+ - <p,g+>) - n (g- - <n,g->), where clamped features have no g.
struct FeatureGradient {
    float g[2][kFusedMap / 4];  // positive, negative

    // g = x state^T; may be read after wait_products<..>(g[0], g[1])
    template <int D>
    __device__ __forceinline__ void multiply_state(const RowTile<D>& x, const StateTile<D>& state) {
        begin_products();
#pragma unroll
        for (int sign = 0; sign < 2; ++sign)
            multiply<D, Major::K>(g[sign], x, 0, state, sign * kFusedMap + warpgroup() * (kFusedMap / 2), false);
        end_products();
    }
    // g += factor(row) total[feature]; shares of <p,g+> and <n,g-> go to dots[row] = (p of either warpgroup, n of either).
    template <class Factor>
    __device__ __forceinline__ void put_dots(const float* total, Factor&& factor, const FeatureTile& phi,
                                             float4* dots) {
        const Place place;
        const int first = warpgroup() * (kFusedMap / 2);
        const TilePairs values(phi, place, 0, first);
        place.each_row([&](int half, int row) {
            const float x = factor(row);
#pragma unroll
            for (int sign = 0; sign < 2; ++sign) {
                float dot = 0;
#pragma unroll
                for (int n = 0; n < kFusedMap / 16; ++n) {
                    float* to = pair_of(g[sign], half, n);
                    const float2 end =
                        *reinterpret_cast<const float2*>(total + sign * kFusedMap + first + 8 * n + place.column);
                    const float2 value = values.load(half, sign * (kFusedMap / 8) + n);
                    to[0] = is_live(value.x) ? fmaf(x, end.x, to[0]) : 0.0f;
                    to[1] = is_live(value.y) ? fmaf(x, end.y, to[1]) : 0.0f;
                    dot = fmaf(value.x, to[0], fmaf(value.y, to[1], dot));
                }
                dot = quad_sum(dot);
                if (quad_lane() == sign) reinterpret_cast<float*>(dots + row)[2 * sign + warpgroup()] = dot;
            }
        });
    }
    // After a barrier.
    __device__ __forceinline__ void put_du(const FeatureTile& phi, const float4* dots, const DuTile& du) const {
        const Place place;
        const TilePairs values(phi, place, 0, warpgroup() * (kFusedMap / 2));
        const TilePairs out(du, place, 0, warpgroup() * (kFusedMap / 2));
        place.each_row([&](int half, int row) {
            const float4 parts = dots[row];
            const float dot_p = parts.x + parts.y, dot_n = parts.z + parts.w;
#pragma unroll
            for (int n = 0; n < kFusedMap / 16; ++n) {
                const float *gp = pair_of(g[0], half, n), *gn = pair_of(g[1], half, n);
                const float2 p = values.load(half, n), m = values.load(half, kFusedMap / 8 + n);
                out.store(half, n,
                          pack_bf16(p.x * (gp[0] - dot_p) - m.x * (gn[0] - dot_n),
                                    p.y * (gp[1] - dot_p) - m.y * (gn[1] - dot_n)));
            }
        });
    }
    // D of a row.
    static __device__ __forceinline__ float row_sum(const float4& parts) {
        return -((parts.x + parts.y) + (parts.z + parts.w));
    }

  private:
    static __device__ __forceinline__ bool is_live(float value) {
        return value > unpack_bf16(pack_bf16(static_cast<float>(kFeatureEpsilon), 0)).x;
    }
};

// dW [D,F] += x^T du over the blocks of a walk. D = 128: this warpgroup's 64 rows; D = 64: its 32 columns.
template <int D>
struct MapGradient {
    static constexpr int kColumns = D / 2;
    float c[kColumns / 2] = {};
    FragmentA left[kFusedRows / 16];

    static __device__ __forceinline__ int row0() { return D == 128 ? warpgroup() * 64 : 0; }
    static __device__ __forceinline__ int column0() { return D == 128 ? 0 : warpgroup() * kColumns; }
    // The block's x, ahead of its du.
    __device__ __forceinline__ void load(const RowTile<D>& x) { load_transposed<kFusedRows>(left, x, 0, row0()); }
    // Done after wait_products<..>(c, left).
    __device__ __forceinline__ void add(const DuTile& du) {
        begin_products();
        multiply_transposed<kFusedRows, Major::MN>(c, left, du, column0(), true);
        end_products();
    }
    // To the item's part of [items,D,F].
    __device__ __forceinline__ void store(float* parts, int64_t item) const {
        const Place place;
        float* to = parts + item * D * kFusedMap + column0() + place.column;
        place.each_row([&](int half, int row) {
#pragma unroll
            for (int n = 0; n < kColumns / 8; ++n) {
                const float* x = pair_of(c, half, n);
                *reinterpret_cast<float2*>(to + (row0() + row) * kFusedMap + 8 * n) = make_float2(x[0], x[1]);
            }
        });
    }
};

// --- the window ---

// gamma exp(scale (score - m)) of a row with raw maximum m.
struct WindowWeight {
    float factor, shift;
    __device__ WindowWeight(float scale, float log2_gamma, float high)
        : factor(scale * kLog2E), shift(fmaf(-high, factor, log2_gamma)) {}
    __device__ __forceinline__ float operator()(float score) const { return exp2_approx(fmaf(score, factor, shift)); }
};

// Raw scores of 64 queries against one side of their window (side 0: the block before; 1: their own), on the way to weights.
struct WindowTile {
    int side = warpgroup();
    float s[kFusedRows / 2];

    // s = q k^T; may be read after wait_products. Every kernel makes scores by this product, so that a score has the same bits
    // wherever it is made.
    template <int D>
    __device__ __forceinline__ void multiply_keys(const RowTile<D>& q, const RowTile<D>& k) {
        begin_products();
        multiply<D, Major::K>(s, q, 0, k, 0, false);
        end_products();
    }
    // Hides what is not in the window; this side's row maxima go to high [2][64].
    __device__ __forceinline__ void mask(bool first_block, float* high) {
        const Place place;
        place.each_row([&](int half, int row) {
            float top = -INFINITY;
#pragma unroll
            for (int n = 0; n < kFusedRows / 8; ++n) {
                float* x = pair_of(s, half, n);
                const int column = 8 * n + place.column;
                if (side == 1 ? column > row : first_block) x[0] = -INFINITY;
                if (side == 1 ? column + 1 > row : first_block) x[1] = -INFINITY;
                top = fmaxf(top, fmaxf(x[0], x[1]));
            }
            top = quad_max(top);
            if (quad_lane() == 0) high[side * kFusedRows + row] = top;
        });
    }
    // After a barrier: the maximum of a row.
    static __device__ __forceinline__ float top(const float* high, int row) {
        return fmaxf(high[row], high[kFusedRows + row]);
    }
    // Weights as rounded for products: put(half, n, pair). Their sums over this side go to sum [2][64].
    template <class Put>
    __device__ __forceinline__ void make_weights(const float* high, float scale, float log2_gamma, float* sum,
                                                 Put&& put) {
        Place().each_row([&](int half, int row) {
            const WindowWeight weight(scale, log2_gamma, top(high, row));
            float total = 0;
#pragma unroll
            for (int n = 0; n < kFusedRows / 8; ++n) {
                const float* x = pair_of(s, half, n);
                const uint32_t pair = pack_bf16(weight(x[0]), weight(x[1]));
                const float2 rounded = unpack_bf16(pair);
                total += rounded.x + rounded.y;
                put(half, n, pair);
            }
            total = quad_sum(total);
            if (quad_lane() == 0) sum[side * kFusedRows + row] = total;
        });
    }
    // This side's columns of a tile of the window's 128 keys.
    __device__ __forceinline__ TilePairs<WindowWeights> columns_of(const WindowWeights& tile) const {
        return {tile, Place(), 0, side * kFusedRows};
    }
    // Which scores are their row's maximum: bit 16 half + 2 n + e; how many of this side are goes to ties [2][64].
    __device__ __forceinline__ uint32_t find_highest(const float* high, float* ties) const {
        uint32_t bits = 0;
        Place().each_row([&](int half, int row) {
            const float m = top(high, row);
            float count = 0;
#pragma unroll
            for (int n = 0; n < kFusedRows / 8; ++n)
#pragma unroll
                for (int e = 0; e < 2; ++e)
                    if (pair_of(s, half, n)[e] == m) bits |= 1u << (16 * half + 2 * n + e), count += 1;
            count = quad_sum(count);
            if (quad_lane() == 0) ties[side * kFusedRows + row] = count;
        });
        return bits;
    }
};

// --- outputs ---

// [64, D]: this warpgroup's half of the columns.
template <int D>
struct OutputTile {
    float c[D / 4];

    static __device__ __forceinline__ int column0() { return warpgroup() * (D / 2); }
    // c (+)= A x with A [64,K] from a column of a tile on: the other half of the columns is the other warpgroup's.
    template <int K, class TileA, class TileB>
    __device__ __forceinline__ void add(const TileA& a, int column, const TileB& x, bool keep) {
        multiply<K, Major::MN>(c, a, column, x, column0(), keep);
    }
    // c += du W^T
    __device__ __forceinline__ void add_map(const DuTile& du, const MapTile<D>& w) {
        multiply<kFusedMap, Major::K>(c, du, 0, w, column0(), true);
    }
    // f(half, row, elements): elements(g) calls g(n, column, pair) for the row's pairs of neighbours.
    template <class F>
    __device__ __forceinline__ void each_pair(F&& f) {
        const Place place;
        place.each_row([&](int half, int row) {
            f(half, row, [&](auto&& g) {
#pragma unroll
                for (int n = 0; n < D / 16; ++n) g(n, column0() + 8 * n + place.column, pair_of(c, half, n));
            });
        });
    }
};

#endif

}  // namespace lc::kernels
