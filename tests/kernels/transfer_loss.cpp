// The fused stage-1 op against attention, squared error and tape, one after the other.
#include "autograd/ops/transfer_loss.h"

#include <gtest/gtest.h>

#include "autograd/engine.h"
#include "autograd/node.h"
#include "autograd/ops/hybrid_attention.h"
#include "core/rng.h"
#include "kernels/transfer_loss/transfer_loss.h"

namespace {

using lc::DType;
using lc::Tensor;
using lc::kernels::LinearizedSpec;
using lc::kernels::WindowKind;

Tensor normal(const lc::Shape& shape, uint64_t stream, DType dtype, double scale = 1) {
    const lc::Random random(13, stream);
    std::vector<float> values(static_cast<size_t>(lc::numel_of(shape)));
    for (size_t i = 0; i < values.size(); ++i) values[i] = static_cast<float>(scale * random.normal(i));
    return Tensor::from(values, shape).to(dtype);
}

double difference(const Tensor& a, const Tensor& b) {
    EXPECT_EQ(a.shape(), b.shape());
    const auto x = a.to_vector<double>(), y = b.to_vector<double>();
    double worst = 0;
    for (size_t i = 0; i < x.size(); ++i)
        worst = std::max(worst, std::isnan(x[i] - y[i]) ? 1e300 : std::abs(x[i] - y[i]));
    return worst;
}

struct Problem {
    Tensor q, k, v, target, mix_logit;
    lc::FeatureMaps maps;

    Problem(int64_t length, DType dtype, bool maps_per_kv_head)
        : q(normal({2, 4, length, 6}, 0, dtype)),
          k(normal({2, 2, length, 6}, 1, dtype)),
          v(normal({2, 2, length, 6}, 2, dtype)),
          target(normal({2, 4, length, 6}, 3, dtype)),
          mix_logit(normal({4}, 4, dtype)),
          maps{.wq = normal({4, 6, 5}, 5, dtype, 0.6),
               .bq = normal({4, 5}, 6, dtype),
               .wk = normal({maps_per_kv_head ? 2 : 4, 6, 5}, 7, dtype, 0.6),
               .bk = normal({maps_per_kv_head ? 2 : 4, 5}, 8, dtype)} {
        for (Tensor* x : parameters()) lc::set_requires_grad(*x);
    }
    std::vector<Tensor*> parameters() { return {&maps.wq, &maps.bq, &maps.wk, &maps.bk, &mix_logit}; }
};

struct Result {
    double loss = 0;
    std::vector<Tensor> gradients;
};

Result composite(Problem p, const LinearizedSpec& spec, double factor) {
    const Tensor y = lc::hybrid_attention(p.q, p.k, p.v, p.maps, p.mix_logit, spec).y;
    auto values = y.to_vector<double>();
    const auto target = p.target.to_vector<double>();
    Result result;
    const double n = static_cast<double>(values.size());
    for (size_t i = 0; i < values.size(); ++i) {
        values[i] -= target[i];
        result.loss += factor * values[i] * values[i] / n;
        values[i] *= 2 * factor / n;
    }
    lc::backward(y, Tensor::from(values, y.shape()).to(y.dtype()));
    for (Tensor* x : p.parameters()) result.gradients.push_back(lc::grad_of(*x));
    return result;
}

Result fused(Problem p, const LinearizedSpec& spec, double factor) {
    const Tensor loss = lc::transfer_loss(p.q, p.k, p.v, p.target, p.maps, p.mix_logit, spec, factor);
    lc::backward(loss);
    Result result{loss.item(), {}};
    for (Tensor* x : p.parameters()) result.gradients.push_back(lc::grad_of(*x));
    return result;
}

// The block form in f64.
Result fused_blocks(Problem p, const LinearizedSpec& spec, double factor) {
    Tensor loss = Tensor::empty({}, DType::f64);
    Result result;
    lc::GradSlot slots[5];
    const bool windowed = spec.window != WindowKind::none;
    for (Tensor* x : p.parameters()) {
        const size_t i = result.gradients.size();
        result.gradients.push_back(Tensor::empty(x->shape(), DType::f64));
        if (i < 4 || windowed) slots[i] = {result.gradients[i].view(), lc::GradWrite::Overwrite};
    }
    lc::kernels::transfer_loss_blocks({.q = p.q.view(),
                                       .k = p.k.view(),
                                       .v = p.v.view(),
                                       .target = p.target.view(),
                                       .wq = p.maps.wq.view(),
                                       .bq = p.maps.bq.view(),
                                       .wk = p.maps.wk.view(),
                                       .bk = p.maps.bk.view(),
                                       .mix_logit = windowed ? p.mix_logit.view() : lc::TensorView{},
                                       .loss = loss.view(),
                                       .gradients = {slots[0], slots[1], slots[2], slots[3], slots[4]},
                                       .factor = factor,
                                       .spec = spec});
    if (!windowed) result.gradients.pop_back();
    result.loss = loss.item();
    return result;
}

double difference(const Result& a, const Result& b) {
    EXPECT_EQ(a.gradients.size(), b.gradients.size());
    double worst = std::abs(a.loss - b.loss);
    for (size_t i = 0; i < a.gradients.size(); ++i) worst = std::max(worst, difference(a.gradients[i], b.gradients[i]));
    return worst;
}

std::vector<LinearizedSpec> specs() {
    std::vector<LinearizedSpec> result;
    for (const WindowKind kind : {WindowKind::terraced, WindowKind::sliding})
        for (const int64_t w : {4, 16})
            for (const bool affine : {false, true})
                result.push_back({.window = kind, .window_size = w, .affine = affine});
    return result;
}

TEST(TransferLoss, GradientsAreThoseOfAttentionAndMse) {
    for (const bool per_kv : {false, true})
        for (const LinearizedSpec& spec : specs())
            for (const int64_t length : {1, 8, 37, 90}) {
                const Result exact = composite(Problem(length, DType::f64, per_kv), spec, 50);
                EXPECT_LT(difference(fused(Problem(length, DType::f64, per_kv), spec, 50), exact), 1e-12);
                EXPECT_LT(difference(fused_blocks(Problem(length, DType::f64, per_kv), spec, 50), exact), 1e-11);
                // f32 runs the block form; loss and gradients are of size 1 to 100 here.
                EXPECT_LT(difference(fused(Problem(length, DType::f32, per_kv), spec, 50), exact), 5e-4);
            }
}

// Pure linear attention from its recurrence: S and z grow token by token.
double linear_loss(const Problem& p, double factor) {
    const auto q = p.q.as<const double, 4>(), k = p.k.as<const double, 4>(), v = p.v.as<const double, 4>(),
               target = p.target.as<const double, 4>();
    const auto map = [](const Tensor& w, const Tensor& b, const auto& x, int64_t batch, int64_t hx, int64_t h,
                        int64_t t) {
        std::vector<double> phi(5);
        for (int64_t f = 0; f < 5; ++f) {
            double u = b.as<const double, 2>()(h, f);
            for (int64_t i = 0; i < 6; ++i) u += x(batch, hx, t, i) * w.as<const double, 3>()(h, i, f);
            phi[f] = u > 0 ? 1 + u : std::exp(u);
        }
        return phi;
    };
    double sum = 0;
    for (int64_t b = 0; b < 2; ++b)
        for (int64_t h = 0; h < 4; ++h) {
            double s[5][6] = {}, z[5] = {};
            for (int64_t t = 0; t < q.size(2); ++t) {
                const auto phi_k = map(p.maps.wk, p.maps.bk, k, b, h / 2, h, t),
                           phi_q = map(p.maps.wq, p.maps.bq, q, b, h, h, t);
                double n[6] = {}, total = 1e-12;
                for (int64_t f = 0; f < 5; ++f) {
                    z[f] += phi_k[f], total += phi_q[f] * z[f];
                    for (int64_t x = 0; x < 6; ++x) s[f][x] += phi_k[f] * v(b, h / 2, t, x), n[x] += phi_q[f] * s[f][x];
                }
                for (int64_t x = 0; x < 6; ++x) sum += std::pow(n[x] / total - target(b, h, t, x), 2);
            }
        }
    return factor * sum / static_cast<double>(p.q.numel());
}

TEST(TransferLoss, WithoutAWindowItIsPureLinearAttention) {
    const LinearizedSpec spec{.window = WindowKind::none, .activation = lc::kernels::FeatureActivation::pos_elu};
    for (const int64_t length : {1, 9, 70, 140}) {
        Problem p(length, DType::f64, false);
        p.mix_logit = Tensor();
        EXPECT_NEAR(lc::transfer_loss(p.q, p.k, p.v, p.target, p.maps, {}, spec, 50).item(), linear_loss(p, 50), 1e-11);
        EXPECT_NEAR(fused_blocks(p, spec, 50).loss, linear_loss(p, 50), 1e-11);
    }
}

TEST(TransferLoss, QueriesKeysAndTargetsAreConstants) {
    Problem p(5, DType::f32, false);
    const LinearizedSpec spec{.window_size = 4};
    for (Tensor* x : {&p.q, &p.k, &p.v, &p.target}) {
        lc::set_requires_grad(*x);
        EXPECT_THROW(lc::transfer_loss(p.q, p.k, p.v, p.target, p.maps, p.mix_logit, spec), lc::Error);
        lc::set_requires_grad(*x, false);
    }
    const lc::NoGrad no_grad;
    EXPECT_FALSE(lc::requires_grad(lc::transfer_loss(p.q, p.k, p.v, p.target, p.maps, p.mix_logit, spec)));
}

}  // namespace
