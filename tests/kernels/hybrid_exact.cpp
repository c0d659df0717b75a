// Exact statements that follow from the formulas of kernels/hybrid_attention/hybrid_attention.h.
#include "autograd/ops/softmax_attention.h"
#include "kernels/transfer_loss/transfer_loss.h"
#include "tests/kernels/hybrid_problem.h"

namespace lc::testing {
namespace {

TEST(HybridExact, TheRowScalarIsMinusTheLinearShare) {
    const int64_t length = 27;
    for (const LinearizedSpec& spec : windows({4, 5}))
        for (int64_t row = 0; row < length; ++row) {
            Problem p(length);
            Tensor only = Tensor::zeros(p.dy.shape(), DType::f64);
            only.sliced(2, row, 1).copy_from(p.dy.sliced(2, row, 1));
            p.dy = only;
            // d(mix_logit) = (1-gamma) D_row: by definition in attention, by the identity in the fused loss. With factor
            // numel/2 and target y - dy that loss has exactly this dy.
            const Gradients exact = gradients_of(p, spec, false), chunked = gradients_of(p, spec, true);
            auto target = quadratic(p, spec).y.to_vector<double>();
            const auto dy = p.dy.to_vector<double>();
            for (size_t i = 0; i < dy.size(); ++i) target[i] -= dy[i];
            const Tensor wanted = Tensor::from(target, p.q.shape()), loss = Tensor::empty({}, DType::f64),
                         identity = Tensor::empty({2}, DType::f64);
            kernels::transfer_loss_blocks({.q = p.q.view(),
                                           .k = p.k.view(),
                                           .v = p.v.view(),
                                           .target = wanted.view(),
                                           .wq = p.wq.view(),
                                           .bq = {},
                                           .wk = p.wk.view(),
                                           .bk = {},
                                           .mix_logit = p.mix_logit.view(),
                                           .loss = loss.view(),
                                           .gradients = {.dmix_logit = {identity.view(), GradWrite::Overwrite}},
                                           .factor = 0.5 * static_cast<double>(p.q.numel()),
                                           .spec = spec});
            ASSERT_LT(difference(exact[5], identity), 1e-13) << name_of(spec) << " row " << row;
            ASSERT_LT(difference(exact[5], chunked[5]), 1e-13) << name_of(spec) << " row " << row;
            // Window keys get gradient through scores only, and those of a row add up to zero.
            for (const Gradients* g : {&exact, &chunked}) {
                const Tensor& dk = (*g)[1];
                const int64_t begin = state_end(spec, row + 1);
                double sum[4] = {};
                for (int64_t j = begin; j <= row; ++j)
                    for (int64_t x = 0; x < 4; ++x) sum[x] += dk.as<const double, 4>()(0, 0, j, x);
                for (double x : sum) ASSERT_LT(std::abs(x), 1e-13) << name_of(spec) << " row " << row;
            }
        }
}

TEST(HybridExact, RowsWithoutFarKeysAreSoftmaxAndTeachNothing) {
    for (const LinearizedSpec& spec : windows({8}))
        for (const auto& [dtype, tolerance] : {std::pair{DType::f64, 1e-13}, {DType::f32, 2e-6}}) {
            const int64_t rows = spec.window == WindowKind::terraced ? 16 : 8;
            Problem p(rows, dtype);
            require_grads(p);
            const Tensor y = attend(p, spec, {}, false).y;
            EXPECT_LT(difference(y.detach(), lc::softmax_attention(p.q.detach(), p.k.detach(), p.v.detach())),
                      tolerance);
            lc::backward(y, p.dy);
            for (const Tensor* x : {&p.wq, &p.wk, &p.mix_logit}) {
                const Tensor grad = lc::grad_of(*x), zero = Tensor::zeros(grad.shape(), grad.dtype());
                // The block form (f32) makes exact zeros; the oracle sums p dc and is left with its rounding.
                EXPECT_LE(difference(grad, zero), dtype == DType::f32 ? 0.0 : 1e-14) << name_of(spec);
            }
        }
}

TEST(HybridExact, AConstantOnAllScoresOfARowChangesNothing) {
    Problem p(40);
    for (int64_t h = 0; h < 2; ++h)
        for (int64_t f = 0; f < 3; ++f) p.wk.as<double, 3>()(h, 0, f) = 0;  // the k-maps do not see channel 0
    Problem moved = p;
    moved.k = p.k.clone();
    for (int64_t j = 0; j < 40; ++j)
        moved.k.as<double, 4>()(0, 0, j, 0) += 3.5;  // every score of row i by 3.5 q_i0 / 2
    for (const LinearizedSpec& spec : windows({4, 16}))
        for (const auto& form : {&quadratic, &blocks})
            EXPECT_LT(difference(form(moved, spec, {}, 0).y, form(p, spec, {}, 0).y), 1e-13) << name_of(spec);
}

// Two equal keys with equal values hold the maximum of several rows: moved together (or the query alone) the tie stays, so
// differences are meaningful.
TEST(HybridExact, ATieOfTheMaximumIsSharedEvenly) {
    const int64_t length = 24, a = 13, b = 14;
    for (const LinearizedSpec& spec : windows({6})) {
        Problem p(length);
        for (Tensor* x : {&p.k, &p.v}) x->sliced(2, b, 1).copy_from(x->sliced(2, a, 1));
        for (int64_t i = b; i < b + 3; ++i)  // these rows look along the tied key
            for (int64_t h = 0; h < 2; ++h) {
                Tensor row = p.q.sliced(2, i, 1).sliced(1, h, 1);
                row.copy_from(p.k.sliced(2, a, 1));
                for (int64_t x = 0; x < 4; ++x) row.as<double, 4>()(0, 0, 0, x) *= 3 + h;
            }
        const auto objective = [&](const Problem& moved) {
            const auto y = quadratic(moved, spec).y.to_vector<double>(), dy = p.dy.to_vector<double>();
            double sum = 0;
            for (size_t i = 0; i < y.size(); ++i) sum += y[i] * dy[i];
            return sum;
        };
        const auto slope = [&](auto&& move) {  // fourth-order central difference
            const auto at = [&](double step) {
                Problem moved = p;
                moved.q = p.q.clone(), moved.k = p.k.clone();
                move(moved, step);
                return objective(moved);
            };
            const double h = 1e-3;
            return (8 * (at(h) - at(-h)) - (at(2 * h) - at(-2 * h))) / (12 * h);
        };
        for (const bool in_blocks : {false, true}) {
            const Gradients g = gradients_of(p, spec, in_blocks);
            const auto dq = g[0].as<const double, 4>(), dk = g[1].as<const double, 4>();
            for (int64_t x = 0; x < 4; ++x) {
                EXPECT_NEAR(dk(0, 0, a, x) + dk(0, 0, b, x), slope([&](Problem& moved, double step) {
                                for (const int64_t j : {a, b}) moved.k.as<double, 4>()(0, 0, j, x) += step;
                            }),
                            1e-8)
                    << name_of(spec);
                EXPECT_NEAR(dq(0, 1, b, x),
                            slope([&](Problem& moved, double step) { moved.q.as<double, 4>()(0, 1, b, x) += step; }),
                            1e-8)
                    << name_of(spec);
            }
        }
        // Row a sees only the first of the two. Without it they are interchangeable.
        p.dy.sliced(2, a, 1).fill(0);
        for (int64_t i = b + 3; i < length; ++i) p.dy.sliced(2, i, 1).fill(0);
        for (const bool in_blocks : {false, true}) {
            const Gradients g = gradients_of(p, spec, in_blocks);
            EXPECT_LT(difference(g[1].sliced(2, a, 1), g[1].sliced(2, b, 1)), 1e-13) << name_of(spec);
        }
    }
}

}  // namespace
}  // namespace lc::testing
