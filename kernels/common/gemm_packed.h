// The portable matrix product: blocked for the caches, packed for contiguous loads, computed by a micro-kernel that keeps
// a tile of C in registers (K. Goto, R. van de Geijn, "Anatomy of High-Performance Matrix Multiplication", 2008).
//
//            N                    for each kBlockN columns, kBlockK of the inner dimension:
//       +---------+                  pack B [K,N] into panels of kTileN columns        (stays in L2/L3)
//     K |  B      |                  for each kBlockM rows: pack A into strips of kTileM rows      (stays in L2)
//       +---------+                     for each tile: kTileM x kTileN sums in registers, K steps of one
//   +-+ +---------+                     broadcast from A times one row of B
//   |A| |C        |
// M | | |     [ ] | <- tile
//   +-+ +---------+
#pragma once
#include <algorithm>
#include <cstring>

#include "kernels/common/gemm.h"
#include "kernels/common/rows.h"

namespace lc::kernels::packed {

#ifdef __AVX512F__
inline constexpr int kVectorBytes = 64;
#else
inline constexpr int kVectorBytes = 32;
#endif

template <class T>
struct Tile {
    typedef T Vector __attribute__((vector_size(kVectorBytes)));
    static constexpr int64_t kLanes = kVectorBytes / static_cast<int64_t>(sizeof(T));
    static constexpr int64_t kTileM = 6, kTileN = 2 * kLanes;  // 12 sums + 2 of B + 1 of A = 15 of 16 registers (AVX2)
    static constexpr int64_t kBlockM = 96, kBlockK = 256, kBlockN = 1024;
};

// rows x columns of X (element (i,j) at x[i*row_step + j*column_step]) into strips of `width` rows: strip by strip, column
// by column, the strip's rows next to each other. The last strip is filled up with zeros.
template <class T>
void pack(const T* x, int64_t row_step, int64_t column_step, int64_t rows, int64_t columns, int64_t width, T* out) {
    for (int64_t first = 0; first < rows; first += width, out += width * columns) {
        const int64_t height = std::min(width, rows - first);
        const T* strip = x + first * row_step;
        if (height < width) std::fill_n(out, width * columns, T{0});
        if (row_step == 1)  // the strip's rows lie next to each other already
            for (int64_t j = 0; j < columns; ++j) std::copy_n(strip + j * column_step, height, out + j * width);
        else
            for (int64_t i = 0; i < height; ++i)
                for (int64_t j = 0; j < columns; ++j) out[j * width + i] = strip[i * row_step + j * column_step];
    }
}

// sums[kTileM][kTileN] = (strip of A) (panel of B) over k steps.
template <class T>
void multiply_tile(int64_t k, const T* a, const T* b, T* sums) {
    using P = Tile<T>;
    typename P::Vector c[P::kTileM][2] = {};
    for (int64_t l = 0; l < k; ++l, a += P::kTileM, b += P::kTileN) {
        typename P::Vector b0, b1;
        std::memcpy(&b0, b, sizeof b0);
        std::memcpy(&b1, b + P::kLanes, sizeof b1);
        for (int64_t i = 0; i < P::kTileM; ++i) {
            c[i][0] += a[i] * b0;
            c[i][1] += a[i] * b1;
        }
    }
    std::memcpy(sums, c, sizeof c);
}

// The tile of C at c gets alpha * sums, on top of beta * C. beta = 0 does not read C.
template <class T>
void store_tile(const T* sums, int64_t rows, int64_t columns, T alpha, T beta, T* c, int64_t ldc) {
    for (int64_t i = 0; i < rows; ++i, sums += Tile<T>::kTileN, c += ldc) {
        if (beta == T{0})
            for (int64_t j = 0; j < columns; ++j) c[j] = alpha * sums[j];
        else
            for (int64_t j = 0; j < columns; ++j) c[j] = alpha * sums[j] + beta * c[j];
    }
}

template <class T>
void gemm(const Gemm<T>& g) {
    using P = Tile<T>;
    const auto up = [](int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; };
    const int64_t a_row = g.op_a == Op::None ? g.lda : 1, a_column = g.op_a == Op::None ? 1 : g.lda;
    const int64_t b_row = g.op_b == Op::None ? g.ldb : 1, b_column = g.op_b == Op::None ? 1 : g.ldb;
    const int64_t deepest = std::min(P::kBlockK, g.k);
    const Scratch<T> a_packed(up(std::min(P::kBlockM, g.m), P::kTileM) * deepest);
    const Scratch<T> b_packed(up(std::min(P::kBlockN, g.n), P::kTileN) * deepest);
    alignas(kVectorBytes) T sums[P::kTileM * P::kTileN];
    for (int64_t j0 = 0; j0 < g.n; j0 += P::kBlockN)
        for (int64_t l0 = 0; l0 < g.k; l0 += P::kBlockK) {
            const int64_t columns = std::min(P::kBlockN, g.n - j0), depth = std::min(P::kBlockK, g.k - l0);
            pack(g.b + l0 * b_row + j0 * b_column, b_column, b_row, columns, depth, P::kTileN, b_packed.data());
            for (int64_t i0 = 0; i0 < g.m; i0 += P::kBlockM) {
                const int64_t rows = std::min(P::kBlockM, g.m - i0);
                pack(g.a + i0 * a_row + l0 * a_column, a_row, a_column, rows, depth, P::kTileM, a_packed.data());
                for (int64_t j = 0; j < columns; j += P::kTileN)
                    for (int64_t i = 0; i < rows; i += P::kTileM) {
                        multiply_tile(depth, a_packed.data() + i * depth, b_packed.data() + j * depth, sums);
                        store_tile(sums, std::min(P::kTileM, rows - i), std::min(P::kTileN, columns - j), g.alpha,
                                   l0 == 0 ? g.beta : T{1}, g.c + (i0 + i) * g.ldc + j0 + j, g.ldc);
                    }
            }
        }
}

}  // namespace lc::kernels::packed
