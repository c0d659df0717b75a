#include "kernels/common/gemm.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "core/check.h"
#include "core/parallel.h"
#include "core/rng.h"

namespace lc::kernels {
namespace {

struct Problem {
    Op op_a, op_b;
    int64_t m, n, k;
    double alpha = 1, beta = 0;
    int64_t pad = 0;        // leading dimensions exceed the rows by this
    bool nan_in_c = false;  // must not matter when beta is 0
    std::string str() const {
        return fmt::format("op_a={} op_b={} m={} n={} k={} alpha={} beta={} pad={}", op_a == Op::Transpose,
                           op_b == Op::Transpose, m, n, k, alpha, beta, pad);
    }
};

std::vector<float> random_values(int64_t count, uint64_t stream) {
    const Random random(3, stream);
    std::vector<float> values(static_cast<size_t>(count));
    for (size_t i = 0; i < values.size(); ++i) values[i] = static_cast<float>(random.normal(i));
    return values;
}

template <class T>
using Product = void (*)(const Gemm<T>&);

// C as `product` leaves it, padding included.
template <class T>
std::vector<T> run(const Problem& p, Product<T> product) {
    const int64_t lda = (p.op_a == Op::None ? p.k : p.m) + p.pad, ldb = (p.op_b == Op::None ? p.n : p.k) + p.pad;
    const int64_t ldc = p.n + p.pad;
    const auto as = [](const std::vector<float>& x) { return std::vector<T>(x.begin(), x.end()); };
    const std::vector<T> a = as(random_values((p.op_a == Op::None ? p.m : p.k) * lda, 1));
    const std::vector<T> b = as(random_values((p.op_b == Op::None ? p.k : p.n) * ldb, 2));
    std::vector<T> c = as(random_values(p.m * ldc, 3));
    if (p.nan_in_c)
        for (int64_t i = 0; i < p.m; ++i)
            for (int64_t j = 0; j < p.n; ++j) c[i * ldc + j] = std::numeric_limits<T>::quiet_NaN();
    product(Gemm<T>{.op_a = p.op_a,
                    .op_b = p.op_b,
                    .m = p.m,
                    .n = p.n,
                    .k = p.k,
                    .alpha = static_cast<T>(p.alpha),
                    .a = a.data(),
                    .lda = lda,
                    .b = b.data(),
                    .ldb = ldb,
                    .beta = static_cast<T>(p.beta),
                    .c = c.data(),
                    .ldc = ldc});
    return c;
}

// The definition, one element at a time.
void by_definition(const Gemm<double>& g) {
    for (int64_t i = 0; i < g.m; ++i)
        for (int64_t j = 0; j < g.n; ++j) {
            double sum = 0;
            for (int64_t l = 0; l < g.k; ++l)
                sum += (g.op_a == Op::None ? g.a[i * g.lda + l] : g.a[l * g.lda + i]) *
                       (g.op_b == Op::None ? g.b[l * g.ldb + j] : g.b[j * g.ldb + l]);
            double& c = g.c[i * g.ldc + j];
            c = g.alpha * sum + (g.beta == 0 ? 0 : g.beta * c);
        }
}

// Products of N(0,1) numbers: a sum of k has size sqrt(k), its rounding error at most k eps times the terms.
template <class T>
void expect_product(const Problem& p, Product<T> product, double epsilon, const std::vector<double>& exact) {
    const std::vector<T> got = run<T>(p, product);
    const double bound = 8 * epsilon * (std::abs(p.alpha) * (static_cast<double>(p.k) + 4) + std::abs(p.beta) * 4 + 1);
    double worst = 0;
    for (size_t i = 0; i < exact.size(); ++i) {
        const double error = std::abs(static_cast<double>(got[i]) - exact[i]);
        if (!(error <= worst)) worst = error;
        if (std::isnan(error)) break;
    }
    EXPECT_LE(worst, bound) << p.str();
}

void expect_all_backends(const Problem& p) {
    const std::vector<double> exact = run<double>(p, by_definition);
    expect_product<float>(p, static_cast<Product<float>>(gemm), 0x1p-23, exact);
    expect_product<float>(p, gemm_portable, 0x1p-23, exact);
    expect_product<double>(p, static_cast<Product<double>>(gemm), 0x1p-52, exact);
}

constexpr Op kOps[] = {Op::None, Op::Transpose};

TEST(Gemm, AllTransposesAndOddSizes) {
    for (const Op op_a : kOps)
        for (const Op op_b : kOps)
            for (const int64_t m : {1, 2, 3, 4, 5, 7, 17, 100})
                for (const int64_t n : {1, 3, 8, 15, 33})
                    for (const int64_t k : {1, 2, 16, 31, 257}) expect_all_backends({op_a, op_b, m, n, k});
}

TEST(Gemm, SeveralBlocksInEveryDimension) {
    for (const Op op_a : kOps)
        for (const Op op_b : kOps) expect_all_backends({op_a, op_b, 101, 1031, 263});
}

TEST(Gemm, AlphaAndBeta) {
    for (const double alpha : {0.0, 1.0, -0.5})
        for (const double beta : {0.0, 1.0, 0.25})
            for (const int64_t m : {1, 9})
                for (const Op op_b : kOps) expect_all_backends({Op::None, op_b, m, 21, 300, alpha, beta});
}

TEST(Gemm, BetaZeroNeverReadsC) {
    for (const int64_t m : {1, 2, 40})
        for (const int64_t k : {0, 1, 300})
            for (const Op op_a : kOps)
                for (const Op op_b : kOps)
                    expect_all_backends({.op_a = op_a, .op_b = op_b, .m = m, .n = 19, .k = k, .nan_in_c = true});
}

TEST(Gemm, EmptyInnerDimensionScalesC) {
    expect_all_backends({Op::None, Op::None, 5, 6, 0, 1.0, 0.5});
}

TEST(Gemm, LeadingDimensionsAndWhatLiesBetweenRowsStays) {
    for (const Op op_a : kOps)
        for (const Op op_b : kOps)
            for (const int64_t m : {1, 3, 37})
                expect_all_backends({.op_a = op_a, .op_b = op_b, .m = m, .n = 29, .k = 41, .beta = 1.0, .pad = 5});
}

TEST(Gemm, BitsDoNotDependOnTheNumberOfThreads) {
    const int before = num_threads();
    const Problem p{Op::None, Op::Transpose, 411, 230, 300};
    for (const Product<float> product : {static_cast<Product<float>>(gemm), gemm_portable}) {
        set_num_threads(1);
        const std::vector<float> one = run<float>(p, product);
        set_num_threads(3);
        const std::vector<float> three = run<float>(p, product);
        std::vector<float> nested;
        parallel_for(2, 1, [&](int64_t begin, int64_t) {
            if (begin == 0) nested = run<float>(p, product);
        });
        EXPECT_EQ(one, three);
        EXPECT_EQ(one, nested);
    }
    set_num_threads(before);
}

TEST(Gemm, RunsInPlaceInsideParallelWork) {
    const Problem p{Op::None, Op::None, 33, 40, 50};
    const std::vector<double> exact = run<double>(p, by_definition);
    std::vector<std::vector<float>> got(8);
    parallel_for(8, 1, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) got[i] = run<float>(p, static_cast<Product<float>>(gemm));
    });
    for (const auto& c : got)
        for (size_t i = 0; i < exact.size(); ++i) ASSERT_NEAR(c[i], exact[i], 1e-4);
}

}  // namespace
}  // namespace lc::kernels
