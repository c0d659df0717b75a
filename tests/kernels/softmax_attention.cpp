// What softmax attention must satisfy beyond its op cases: a cache in front changes nothing, layouts change nothing.
#include "autograd/ops/softmax_attention.h"

#include <gtest/gtest.h>

#include "autograd/engine.h"
#include "autograd/node.h"
#include "core/parallel.h"
#include "core/profile.h"
#include "core/rng.h"

namespace {

using lc::Tensor;

Tensor normal(const lc::Shape& shape, uint64_t stream, lc::DType dtype = lc::DType::f32) {
    const lc::Random random(5, stream);
    std::vector<float> values(static_cast<size_t>(lc::numel_of(shape)));
    for (size_t i = 0; i < values.size(); ++i) values[i] = static_cast<float>(random.normal(i));
    return Tensor::from(values, shape).to(dtype);
}

double difference(const Tensor& a, const Tensor& b) {
    EXPECT_EQ(a.shape(), b.shape());
    const auto x = a.to_vector<double>(), y = b.to_vector<double>();
    double worst = 0;
    for (size_t i = 0; i < x.size(); ++i) worst = std::max(worst, std::abs(x[i] - y[i]));
    return worst;
}

struct Gradients {
    Tensor y, dq, dk, dv;
};

Gradients differentiate(Tensor q, Tensor k, Tensor v, const Tensor& dy) {
    for (Tensor* x : {&q, &k, &v}) lc::set_requires_grad(*x);
    const Tensor y = lc::softmax_attention(q, k, v);
    lc::backward(y, dy);
    return {y.detach(), lc::grad_of(q), lc::grad_of(k), lc::grad_of(v)};
}

TEST(SoftmaxAttention, RowsBehindACacheEqualTheTailOfTheWholeResult) {
    const int64_t length = 200;
    for (const auto& [dtype, tolerance] : {std::pair{lc::DType::f32, 3e-6}, {lc::DType::f64, 1e-14}}) {
        const Tensor q = normal({2, 4, length, 16}, 0, dtype), k = normal({2, 2, length, 16}, 1, dtype),
                     v = normal({2, 2, length, 16}, 2, dtype);
        const Tensor whole = lc::softmax_attention(q, k, v);
        for (const int64_t t : {1, 2, 64, 131, 199}) {
            const Tensor tail = lc::softmax_attention(q.sliced(2, length - t, t), k, v);
            EXPECT_LT(difference(tail, whole.sliced(2, length - t, t)), tolerance) << t;
        }
        const Tensor first = lc::softmax_attention(q.sliced(2, 0, 70), k.sliced(2, 0, 70), v.sliced(2, 0, 70));
        EXPECT_LT(difference(first, whole.sliced(2, 0, 70)), tolerance) << "later keys are not seen";
    }
}

TEST(SoftmaxAttention, TheGradientOfATailFlowsIntoTheCache) {
    const Tensor q = normal({1, 4, 150, 8}, 0), k = normal({1, 2, 150, 8}, 1), v = normal({1, 2, 150, 8}, 2);
    Tensor dy = normal({1, 4, 150, 8}, 3);
    dy.sliced(2, 0, 80).fill(0);  // nothing flows through the first 80 rows
    const Gradients whole = differentiate(q, k, v, dy);
    const Gradients tail = differentiate(q.sliced(2, 80, 70), k, v, dy.sliced(2, 80, 70));
    EXPECT_LT(difference(tail.dq, whole.dq.sliced(2, 80, 70)), 1e-5);
    EXPECT_LT(difference(tail.dk, whole.dk), 1e-5);
    EXPECT_LT(difference(tail.dv, whole.dv), 1e-5);
}

TEST(SoftmaxAttention, HeadsMayLieInsideTokens) {
    const auto by_token = [](const Tensor& x) { return x.permuted({0, 2, 1, 3}).contiguous().permuted({0, 2, 1, 3}); };
    const Tensor q = normal({2, 4, 130, 16}, 0), k = normal({2, 2, 130, 16}, 1), v = normal({2, 2, 130, 16}, 2),
                 dy = normal({2, 4, 130, 16}, 3);
    const Gradients a = differentiate(q, k, v, dy),
                    b = differentiate(by_token(q), by_token(k), by_token(v), by_token(dy));
    EXPECT_EQ(a.y.layout().strides, (lc::Dims{130 * 4 * 16, 16, 4 * 16, 1})) << "y is stored [B,T,H,D]";
    EXPECT_LT(difference(a.y, b.y), 1e-6);
    EXPECT_LT(difference(a.dq, b.dq), 1e-5);
    EXPECT_LT(difference(a.dk, b.dk), 1e-5);
    EXPECT_LT(difference(a.dv, b.dv), 1e-5);
}

TEST(SoftmaxAttention, ResultsDoNotDependOnTheNumberOfThreads) {
    const Tensor q = normal({1, 8, 200, 16}, 0), k = normal({1, 4, 200, 16}, 1), v = normal({1, 4, 200, 16}, 2),
                 dy = normal({1, 8, 200, 16}, 3);
    const int before = lc::num_threads();
    lc::set_num_threads(1);
    const Gradients one = differentiate(q, k, v, dy);
    lc::set_num_threads(4);
    const Gradients four = differentiate(q, k, v, dy);
    lc::set_num_threads(before);
    EXPECT_EQ(one.y.to_vector<float>(), four.y.to_vector<float>());
    EXPECT_EQ(one.dq.to_vector<float>(), four.dq.to_vector<float>());
    EXPECT_EQ(one.dk.to_vector<float>(), four.dk.to_vector<float>());
    EXPECT_EQ(one.dv.to_vector<float>(), four.dv.to_vector<float>());
}

TEST(SoftmaxAttention, KeysWithGapsBetweenNumbersTakeTheSlowPathAndAreCounted) {
    const Tensor q = normal({1, 2, 9, 8}, 0), v = normal({1, 2, 9, 8}, 2), wide = normal({1, 2, 9, 16}, 1);
    lc::Layout gaps = wide.layout();
    gaps.shape[-1] = 8, gaps.strides[-1] = 2;
    const Tensor k = wide.with_layout(gaps);
    lc::profile_reset();
    lc::profile_enable(true);
    const Tensor y = lc::softmax_attention(q, k, v);
    const Tensor dense = lc::softmax_attention(q, k.contiguous(), v);
    lc::profile_enable(false);
    int64_t fallbacks = 0;
    for (const lc::ProfileEntry& entry : lc::profile_entries())
        if (entry.name == "fallback softmax_attention") fallbacks = entry.calls;
    EXPECT_EQ(fallbacks, 1);
    EXPECT_LT(difference(y, dense), 1e-6);
}

TEST(SoftmaxAttention, RefusesShapesThatDoNotFit) {
    const Tensor q = normal({1, 4, 3, 8}, 0);
    const auto message = [&](const Tensor& k, const Tensor& v) -> std::string {
        try {
            lc::softmax_attention(q, k, v);
        } catch (const lc::Error& error) {
            return error.what();
        }
        return {};
    };
    EXPECT_NE(message(normal({1, 3, 3, 8}, 1), normal({1, 3, 3, 8}, 2)).find("[1,3,3,8]"), std::string::npos);
    EXPECT_NE(message(normal({1, 2, 2, 8}, 1), normal({1, 2, 2, 8}, 2)).find("Tk >= 3"), std::string::npos);
    EXPECT_NE(message(normal({1, 2, 3, 8}, 1), normal({1, 2, 4, 8}, 2)).find("[1,2,4,8]"), std::string::npos);
}

}  // namespace
