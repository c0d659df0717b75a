// What the op cases do not say of the dense ops: errors in words, edge cases with known answers, thread counts.
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <limits>
#include <string>

#include "autograd/engine.h"
#include "autograd/ops/add.h"
#include "autograd/ops/dropout.h"
#include "autograd/ops/embedding.h"
#include "autograd/ops/linear.h"
#include "autograd/ops/linear_cross_entropy.h"
#include "autograd/ops/lora_linear.h"
#include "autograd/ops/mse.h"
#include "autograd/ops/rms_norm.h"
#include "autograd/ops/rope.h"
#include "autograd/ops/sum.h"
#include "core/parallel.h"
#include "core/rng.h"
#include "kernels/grad_norm/grad_norm.h"

namespace lc {
namespace {

Tensor random_tensor(const Shape& shape, uint64_t stream = 0) {
    std::vector<float> values(static_cast<size_t>(numel_of(shape)));
    for (size_t i = 0; i < values.size(); ++i) values[i] = static_cast<float>(Random(4, stream).normal(i));
    return Tensor::from(values, shape);
}
Tensor leaf(Tensor tensor) {
    set_requires_grad(tensor);
    return tensor;
}
Tensor ids(const std::vector<int64_t>& values) {
    return Tensor::from(values, {static_cast<int64_t>(values.size())});
}

std::string error_of(const std::function<void()>& fn) {
    try {
        fn();
    } catch (const Error& error) {
        return error.what();
    }
    return "no error";
}
void expect_error(const std::function<void()>& fn, const std::string& part) {
    const std::string message = error_of(fn);
    EXPECT_NE(message.find(part), std::string::npos) << message;
}

TEST(DenseErrors, NameOpExpectedAndActual) {
    const Tensor x = random_tensor({2, 3});
    expect_error(
        [&] {
            linear(x, random_tensor({4, 5}));
        },
        "linear: x must be [...,In] and w [Out,In], got [2,3] and [4,5]");
    expect_error([&] { linear(x, random_tensor({4, 3}), random_tensor({3})); }, "linear: b must be [4], got [3]");
    expect_error([&] { linear(x, random_tensor({4, 3}).to(DType::f64)); }, "linear: dtypes differ, f32 and f64");
    expect_error(
        [&] {
            linear(x.to(DType::bf16), random_tensor({4, 3}).to(DType::bf16));
        },
        "linear: the CPU computes in f32 and f64");
    expect_error(
        [&] {
            lora_linear(x, random_tensor({4, 3}), random_tensor({2, 3}), random_tensor({4, 1}), 1);
        },
        "do not fit");
    const std::vector<LoraProjection> five(5, {random_tensor({4, 3}), random_tensor({2, 3}), random_tensor({4, 2}), 1});
    expect_error([&] { lora_linear(x, five); }, "lora_linear: 1 to 4 projections, got 5");
    expect_error([&] { lora_linear(x, {}); }, "lora_linear: no projections");
    expect_error([&] { add(x, random_tensor({3, 2})); }, "add: shapes and dtypes must agree");
    expect_error([&] { rms_norm(x, random_tensor({2}), 1e-5); }, "weight [D], got [2,3] and [2]");
    expect_error(
        [&] {
            rope(random_tensor({1, 1, 4, 2}), random_tensor({5, 1}), random_tensor({5, 1}), 2);
        },
        "positions [2,6) are outside tables of 5 positions");
    expect_error([&] { dropout(x, 1.0, 0, 0); }, "p must be in [0,1)");
    expect_error([&] { mse(random_tensor({0}), random_tensor({0})); }, "mse");
}

TEST(DenseErrors, IdsAndLabelsAreChecked) {
    const Tensor weight = random_tensor({4, 3}), hidden = random_tensor({2, 3});
    expect_error([&] { embedding(weight, ids({1, 4})); }, "embedding: id 4 at position 1 is outside [0,4)");
    expect_error([&] { embedding(weight, ids({-100})); }, "embedding: id -100 at position 0");
    expect_error([&] { embedding(weight, random_tensor({1})); }, "ids must be i32 or i64, got f32");
    expect_error(
        [&] {
            linear_cross_entropy(hidden, weight, ids({0, -1}));
        },
        "linear_cross_entropy: id -1 at position 1 is outside [0,4) and not -100");
    expect_error([&] { linear_cross_entropy(hidden, weight, ids({0})); }, "labels must be [2], got [1]");
    expect_error([&] { token_nll(hidden, random_tensor({4, 5}), ids({0, 1})); }, "hidden must be [N,D]");
}

TEST(LinearCrossEntropy, UniformLogitsCostLogV) {
    const Tensor zero = Tensor::zeros({3, 5}, DType::f32), weight = random_tensor({7, 5});
    EXPECT_NEAR(linear_cross_entropy(zero, weight, ids({0, 6, -100})).item(), std::log(7.0), 1e-6);
    const std::vector<double> nll = token_nll(zero, weight, ids({0, -100, 3})).to_vector<double>();
    EXPECT_NEAR(nll[0], std::log(7.0), 1e-6);
    EXPECT_EQ(nll[1], 0.0);
}

TEST(LinearCrossEntropy, NothingToLearnGivesZeroNotNan) {
    const Tensor hidden = leaf(random_tensor({2, 5})), weight = leaf(random_tensor({7, 5}, 1));
    const Tensor loss = linear_cross_entropy(hidden, weight, ids({-100, -100}));
    EXPECT_EQ(loss.item(), 0.0);
    backward(loss);
    for (const double g : grad_of(hidden).to_vector<double>()) EXPECT_EQ(g, 0.0);
    for (const double g : grad_of(weight).to_vector<double>()) EXPECT_EQ(g, 0.0);
}

TEST(LinearCrossEntropy, HugeLogitsStayFinite) {
    const Tensor hidden = Tensor::full({1, 1}, 1e4, DType::f32);
    const Tensor weight = Tensor::from(std::vector<float>{1, -1, 0}, {3, 1});
    EXPECT_EQ(linear_cross_entropy(hidden, weight, ids({0})).item(), 0.0);
    EXPECT_NEAR(linear_cross_entropy(hidden, weight, ids({1})).item(), 2e4, 1e-2);
}

TEST(LinearCrossEntropy, FrozenWeightSavesNoGradientOfIt) {
    const Tensor hidden = leaf(random_tensor({2, 5})), weight = random_tensor({7, 5}, 1);
    EXPECT_EQ(dump_tape(linear_cross_entropy(hidden, weight, ids({0, 1}))).saved_bytes, 2 * 5 * 4);
}

TEST(Dropout, KeepsTheShareItSaysAndTheMeanOfTheInput) {
    const Tensor x = Tensor::full({100, 100}, 1, DType::f32);
    const std::vector<double> y = dropout(x, 0.25, 1, 2).to_vector<double>();
    int kept = 0;
    for (const double value : y) {
        EXPECT_TRUE(value == 0 || std::abs(value - 1 / 0.75) < 1e-6);
        kept += value != 0;
    }
    EXPECT_NEAR(kept, 7500, 217);  // 5 sigma
    EXPECT_EQ(dropout(x, 0, 1, 2).storage(), x.storage());
    EXPECT_NE(dropout(x, 0.25, 1, 3).to_vector<double>(), y) << "another stream is another mask";
    // The mask belongs to the index, not to the place in memory.
    const Tensor turned = random_tensor({7, 5}).permuted({1, 0});
    EXPECT_EQ(dropout(turned, 0.5, 1, 2).to_vector<float>(),
              dropout(turned.contiguous(), 0.5, 1, 2).to_vector<float>());
}

TEST(GradNorm, SeesEveryNonFiniteValue) {
    for (const float bad : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()})
        for (const int64_t at : {0, 77, 9999}) {
            std::vector<float> values(10000, 1.0f);
            EXPECT_EQ(kernels::grad_norm({std::vector{Tensor::from(values, {10000}).view()}}, {}), 100.0);
            values[at] = bad;
            const Tensor x = Tensor::from(values, {100, 100});
            EXPECT_FALSE(std::isfinite(kernels::grad_norm({std::vector{x.view()}}, {})));
        }
}

// The bits must not depend on how many threads shared the work, products included.
// Of layers that share an input each may go unused: it counts as one whose gradient is 0.
TEST(Dense, AdaptedLayerThatNobodyUses) {
    const Tensor w = random_tensor({4, 3}, 1), b = random_tensor({4, 2}, 3);
    const auto run = [&](bool together) {
        Tensor x = leaf(random_tensor({5, 3})), a = leaf(random_tensor({2, 3}, 2)), unused = leaf(a.clone());
        std::vector<LoraProjection> projections{{w, a, b, 0.5}};
        if (together) projections.push_back({w, unused, b, 2.0});
        backward(sum(lora_linear(x, projections)[0]));
        if (together) {
            EXPECT_EQ(grad_of(unused).to_vector<float>(), std::vector<float>(6, 0.0f));
        }
        return std::pair{grad_of(x).to_vector<float>(), grad_of(a).to_vector<float>()};
    };
    EXPECT_EQ(run(true), run(false));
}

TEST(Dense, BitsDoNotDependOnTheNumberOfThreads) {
    const auto compute = [](int threads) {
        set_num_threads(threads);
        std::vector<float> all;
        const auto keep = [&](const Tensor& tensor) {
            for (const float value : tensor.to_vector<float>()) all.push_back(value);
        };
        const Tensor x = leaf(random_tensor({301, 130})), y = random_tensor({301, 130}, 1),
                     w = leaf(random_tensor({130}, 2));
        const Tensor table = leaf(random_tensor({11, 130}, 3)), b = leaf(random_tensor({130}, 4));
        const Tensor token_ids = Tensor::full({301}, 7, DType::i64);
        const Tensor normed = rms_norm(add(x, embedding(table, token_ids)), w, 1e-5);
        const Tensor loss = mse(dropout(normed, 0.1, 1, 1), y);
        keep(loss), keep(sum(x)), keep(normed);
        backward(loss);
        backward(linear(y, random_tensor({130, 130}, 6), b), random_tensor({301, 130}, 5));
        keep(linear(random_tensor({700, 130}, 7), random_tensor({310, 130}, 8)));
        for (const Tensor& tensor : {x, w, table, b}) keep(grad_of(tensor));
        return all;
    };
    const int before = num_threads();
    const std::vector<float> one = compute(1), two = compute(2), five = compute(5);
    set_num_threads(before);
    EXPECT_EQ(one, two);
    EXPECT_EQ(one, five);
}

}  // namespace
}  // namespace lc
