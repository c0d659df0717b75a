#include "kernels/common/gemm.h"

#include <algorithm>

#include "core/parallel.h"
#include "core/profile.h"
#include "kernels/common/gemm_packed.h"

#ifdef LOLCATS_HAVE_OPENBLAS
#include <cblas.h>
#endif

namespace lc::kernels {
namespace {

template <class T>
void scale_c(const Gemm<T>& g) {  // what is left of the product when K = 0
    for (int64_t i = 0; i < g.m; ++i)
        for (int64_t j = 0; j < g.n; ++j) g.c[i * g.ldc + j] = g.beta == T{0} ? T{0} : g.beta * g.c[i * g.ldc + j];
}

// A few rows of A, as in decoding: packing B would cost more than the product. Reads B once in the order of memory.
template <class T>
void gemm_few_rows(const Gemm<T>& g) {
    constexpr int64_t kColumns = 2048, kLanes = 16;
    const auto a = [&](int64_t i, int64_t l) { return g.op_a == Op::None ? g.a[i * g.lda + l] : g.a[l * g.lda + i]; };
    for (int64_t i = 0; i < g.m; ++i)
        for (int64_t j0 = 0; j0 < g.n; j0 += kColumns) {
            const int64_t width = std::min(kColumns, g.n - j0);
            T row[kColumns] = {};
            if (g.op_b == Op::None) {
                for (int64_t l = 0; l < g.k; ++l) {
                    const T scale = a(i, l);
                    const T* b = g.b + l * g.ldb + j0;
                    for (int64_t j = 0; j < width; ++j) row[j] += scale * b[j];
                }
            } else {
                for (int64_t j = 0; j < width; ++j) {
                    const T* b = g.b + (j0 + j) * g.ldb;
                    T lane[kLanes] = {};
                    int64_t l = 0;
                    for (; l + kLanes <= g.k; l += kLanes)
                        for (int64_t n = 0; n < kLanes; ++n) lane[n] += a(i, l + n) * b[l + n];
                    for (; l < g.k; ++l) row[j] += a(i, l) * b[l];
                    for (const T partial : lane) row[j] += partial;
                }
            }
            packed::store_tile(row, 1, width, g.alpha, g.beta, g.c + i * g.ldc + j0, g.ldc);
        }
}

template <class T>
void gemm_loops(const Gemm<T>& g) {
    constexpr int64_t kFewRows = 3;
    if (g.k == 0) return scale_c(g);
    return g.m <= kFewRows ? gemm_few_rows(g) : packed::gemm(g);
}

#ifdef LOLCATS_HAVE_OPENBLAS
// OpenBLAS keeps to one thread: our pool does the splitting, so nested calls and thread counts stay under one rule.
void gemm_openblas(const Gemm<float>& g) {
    static const bool once = [] {
        openblas_set_num_threads(1);
        return true;
    }();
    (void)once;
    if (g.k == 0) return scale_c(g);
    const auto order = [](Op op) { return op == Op::None ? CblasNoTrans : CblasTrans; };
    const int m = static_cast<int>(g.m), n = static_cast<int>(g.n), k = static_cast<int>(g.k);
    const int lda = static_cast<int>(g.lda), ldb = static_cast<int>(g.ldb), ldc = static_cast<int>(g.ldc);
    if (g.m == 1) {                                       // y = op(B)^T a: one pass over B, as in decoding
        if (g.beta == 0.0f) std::fill_n(g.c, g.n, 0.0f);  // gemv may scale what is there, NaN included
        const int rows = g.op_b == Op::None ? k : n, columns = g.op_b == Op::None ? n : k;
        return cblas_sgemv(CblasRowMajor, g.op_b == Op::None ? CblasTrans : CblasNoTrans, rows, columns, g.alpha, g.b,
                           ldb, g.a, g.op_a == Op::None ? 1 : lda, g.beta == 0.0f ? 1.0f : g.beta, g.c, 1);
    }
    cblas_sgemm(CblasRowMajor, order(g.op_a), order(g.op_b), m, n, k, g.alpha, g.a, lda, g.b, ldb, g.beta, g.c, ldc);
}
#endif

template <class T>
Gemm<T> rows_of(Gemm<T> g, int64_t begin, int64_t end) {
    g.a += g.op_a == Op::None ? begin * g.lda : begin;
    g.c += begin * g.ldc;
    g.m = end - begin;
    return g;
}

template <class T>
Gemm<T> columns_of(Gemm<T> g, int64_t begin, int64_t end) {
    g.b += g.op_b == Op::None ? begin : begin * g.ldb;
    g.c += begin;
    g.n = end - begin;
    return g;
}

// Cuts the longer side of C into pieces for the pool; small products stay whole. The pieces depend on the shape alone, not
// on the number of threads or on who calls: a product has the same bits everywhere.
template <class T, class Serial>
void gemm_split(const Gemm<T>& g, Serial serial) {
    if (g.m <= 0 || g.n <= 0) return;
    const ProfileZone zone("gemm", 2.0 * g.m * g.n * g.k);
    constexpr double kWorthSplitting = 1 << 20;  // multiply-adds: about 30 us on a core, three hand-outs of the pool
    if (static_cast<double>(g.m) * g.n * g.k < kWorthSplitting) return serial(g);
    const bool by_rows = g.m >= g.n;
    const int64_t side = by_rows ? g.m : g.n;
    const int64_t piece = side >= 1536 ? 384 : 96;  // multiples of the micro-tiles' sides; each piece packs the other matrix
    parallel_for((side + piece - 1) / piece, 1, [&](int64_t first, int64_t last) {
        for (int64_t p = first; p < last; ++p) {
            const int64_t begin = p * piece, end = std::min(side, begin + piece);
            serial(by_rows ? rows_of(g, begin, end) : columns_of(g, begin, end));
        }
    });
}

}  // namespace

void gemm(const Gemm<float>& args) {
#ifdef LOLCATS_HAVE_OPENBLAS
    gemm_split(args, gemm_openblas);
#else
    gemm_split(args, gemm_loops<float>);
#endif
}
void gemm(const Gemm<double>& args) {
    gemm_split(args, gemm_loops<double>);
}
void gemm_portable(const Gemm<float>& args) {
    gemm_split(args, gemm_loops<float>);
}

const char* gemm_backend() {
#ifdef LOLCATS_HAVE_OPENBLAS
    return "openblas";
#else
    return "portable";
#endif
}

}  // namespace lc::kernels
