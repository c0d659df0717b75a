#include "train/optimizer.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>

#include "autograd/node.h"

namespace lc::train {
namespace {

using models::NamedTensor;

NamedTensor parameter(const std::string& name, const Shape& shape, double value, DType dtype = DType::f64) {
    Tensor tensor = Tensor::full(shape, value, dtype);
    set_requires_grad(tensor);
    return {name, tensor};
}

void give(const NamedTensor& parameter, double grad) {
    Tensor tensor = parameter.tensor;
    set_grad(tensor, Tensor::full(tensor.shape(), grad, tensor.dtype()));
}

std::string bytes_of(const Tensor& tensor) {
    std::string bytes(static_cast<size_t>(tensor.nbytes()), '\0');
    std::memcpy(bytes.data(), tensor.storage()->data.get(), bytes.size());
    return bytes;
}

std::string bytes_of(const Optimizer& optimizer) {
    std::string bytes;
    for (const auto& [name, tensor] : optimizer.state()) bytes += bytes_of(tensor);
    return bytes;
}

// The formula of arXiv 1711.05101, written down again for one number.
struct Reference {
    double p, m = 0, v = 0;
    int t = 0;
    void step(double g, double lr, double decay) {
        ++t;
        m = 0.9 * m + 0.1 * g;
        v = 0.999 * v + 0.001 * g * g;
        p -= lr * (m / (1 - std::pow(0.9, t)) / (std::sqrt(v / (1 - std::pow(0.999, t))) + 1e-8) + decay * p);
    }
};

TEST(Optimizer, FollowsAdamW) {
    const NamedTensor matrix = parameter("model.layers.0.w", {2, 3}, 0.5),
                      vector = parameter("model.layers.0.n", {4}, -2);
    Optimizer optimizer(group_by_layer({matrix, vector}), {.weight_decay = 0.1});
    Reference m{.p = 0.5}, n{.p = -2};
    const double grads[] = {0.3, -1.5, 1e-3, 0.0, 7.0, -0.2};
    for (int i = 0; i < 6; ++i) {
        give(matrix, grads[i]), give(vector, -2 * grads[i]);
        const double lr = 0.01 * (i + 1);
        EXPECT_FALSE(optimizer.step(std::vector{lr}).skipped);
        m.step(grads[i], lr, 0.1);
        n.step(-2 * grads[i], lr, 0);  // no decay on vectors
        for (double p : matrix.tensor.to_vector<double>()) EXPECT_NEAR(p, m.p, 1e-14);
        for (double p : vector.tensor.to_vector<double>()) EXPECT_NEAR(p, n.p, 1e-14);
    }
    EXPECT_EQ(optimizer.updates(), 6);
}

// Against the first steps by hand: |update| is lr whatever the gradient, since m/sqrt(v) is +-1 at t = 1.
TEST(Optimizer, FirstStepHasTheLengthOfTheRate) {
    const NamedTensor p = parameter("p", {1}, 1.0);
    Optimizer optimizer(group_by_layer({p}), {});
    give(p, 123.0);
    optimizer.step(std::vector{0.25});
    EXPECT_NEAR(p.tensor.item(), 0.75, 1e-9);
}

TEST(Optimizer, EachGroupHasItsRate) {
    const NamedTensor a = parameter("layers.0.a", {1}, 0.0), b = parameter("layers.1.a", {1}, 0.0);
    Optimizer optimizer(group_by_layer({a, b}), {});
    give(a, 1), give(b, 1);
    optimizer.step(std::vector{0.5, 0.0});
    EXPECT_NEAR(a.tensor.item(), -0.5, 1e-7);
    EXPECT_EQ(b.tensor.item(), 0.0);
}

// One call updates all groups: each with the bits that it gets alone.
TEST(Optimizer, AStepOfManyGroupsIsThatOfEach) {
    const auto make = [](int layer) {
        const std::string prefix = fmt::format("layers.{}.", layer);
        return std::vector{parameter(prefix + "w", {3, 5}, 0.5 + layer, DType::f32),
                           parameter(prefix + "n", {4}, -layer, DType::f32)};
    };
    const OptimizerOptions options{.weight_decay = 0.1, .clip = ClipScope::layer, .max_norm = 1};
    const auto run = [&](const std::vector<int>& layers) {
        std::vector<NamedTensor> list;
        for (int layer : layers)
            for (const NamedTensor& p : make(layer)) list.push_back(p);
        Optimizer optimizer(group_by_layer(list), options);
        std::vector<double> rates;
        for (int layer : layers) rates.push_back(0.01 * (layer + 1));
        for (int step = 0; step < 3; ++step) {
            for (const NamedTensor& p : list) give(p, 0.3 * p.tensor.to_vector<double>()[0] + step);
            optimizer.step(rates);
        }
        return bytes_of(optimizer);
    };
    EXPECT_TRUE(run({0, 1, 2, 3}) == run({0}) + run({1}) + run({2}) + run({3}));
}

TEST(Optimizer, GroupsFollowTheLayersInTheNames) {
    std::vector<NamedTensor> list;
    for (const char* name : {"model.embed_tokens.weight", "model.layers.0.a", "model.layers.0.b", "model.layers.11.a",
                             "model.norm.weight"})
        list.push_back(parameter(name, {1}, 0));
    const auto groups = group_by_layer(list);
    ASSERT_EQ(groups.size(), 4u);
    EXPECT_EQ(groups[0].name, "model.embed_tokens.weight");
    EXPECT_EQ(groups[1].name, "layers.0");
    EXPECT_EQ(groups[1].parameters.size(), 2u);
    EXPECT_EQ(groups[2].name, "layers.11");
}

// Adam cancels the size of gradients, so scopes are told apart by the second moment after one step: v = 0.001 (c g)^2.
class ClipScopes : public ::testing::Test {
  protected:
    std::vector<double> factors(ClipScope scope, const std::vector<double>& grads, int64_t block = 2) {
        std::vector<NamedTensor> list;
        for (size_t i = 0; i < grads.size(); ++i) list.push_back(parameter(fmt::format("layers.{}.a", i), {1}, 0));
        Optimizer optimizer(group_by_layer(list), {.clip = scope, .max_norm = 1, .block_layers = block});
        for (size_t i = 0; i < grads.size(); ++i) give(list[i], grads[i]);
        report_ = optimizer.step(std::vector<double>(grads.size(), 0.1));
        std::vector<double> result;
        for (const auto& [name, tensor] : optimizer.state())
            if (name.starts_with("v.")) result.push_back(std::sqrt(tensor.item() / 0.001) / grads[result.size()]);
        return result;
    }
    static void expect(const std::vector<double>& actual, const std::vector<double>& wanted) {
        ASSERT_EQ(actual.size(), wanted.size());
        for (size_t i = 0; i < wanted.size(); ++i) EXPECT_NEAR(actual[i], wanted[i], 1e-5) << i;
    }
    StepReport report_;
};

TEST_F(ClipScopes, OffChangesNothing) {
    expect(factors(ClipScope::off, {3, 4, 12, 0.5}), {1, 1, 1, 1});
    EXPECT_NEAR(report_.grad_norm, std::sqrt(9 + 16 + 144 + 0.25), 1e-12);
}
TEST_F(ClipScopes, LayerClipsEachAlone) {
    expect(factors(ClipScope::layer, {3, 4, 0.1, 0.5}), {1 / 3., 1 / 4., 1, 1});
}
TEST_F(ClipScopes, BlockClipsNeighboursTogether) {
    expect(factors(ClipScope::block, {3, 4, 0.1, 0.5, 8}), {1 / 5., 1 / 5., 1, 1, 1 / 8.});
}
TEST_F(ClipScopes, GlobalClipsAllTogether) {
    expect(factors(ClipScope::global, {3, 4, 12}), {1 / 13., 1 / 13., 1 / 13.});
}
TEST_F(ClipScopes, SmallGradientsAreNotMadeLarger) {
    expect(factors(ClipScope::global, {0.1, 0.1}), {1, 1});
}

TEST(Optimizer, NonFiniteStepLeavesEveryByte) {
    constexpr double kNan = std::numeric_limits<double>::quiet_NaN(), kInf = std::numeric_limits<double>::infinity();
    for (DType dtype : {DType::f32, DType::f64})
        for (double bad : {kNan, kInf, -kInf}) {
            const NamedTensor a = parameter("layers.0.a", {3, 2}, 0.5, dtype),
                              b = parameter("layers.1.a", {5}, 1.5, dtype);
            Optimizer optimizer(group_by_layer({a, b}), {.weight_decay = 0.1, .clip = ClipScope::global});
            give(a, 0.1), give(b, 0.2);
            optimizer.step(std::vector{0.1, 0.1});
            const std::string before = bytes_of(optimizer);
            give(a, 0.3), give(b, 0.4);
            Tensor grad = grad_of(b.tensor);  // one bad element in the last group
            grad.sliced(0, 4, 1).fill(bad);
            const StepReport report = optimizer.step(std::vector{0.1, 0.1});
            EXPECT_TRUE(report.skipped);
            EXPECT_TRUE(bytes_of(optimizer) == before) << bad;
            EXPECT_EQ(optimizer.updates(), 1);
            give(b, 0.4);
            EXPECT_TRUE(optimizer.step(std::vector{0.1, 0.1}, false).skipped) << "a non-finite loss skips, too";
            EXPECT_TRUE(bytes_of(optimizer) == before);
            EXPECT_FALSE(optimizer.step(std::vector{0.1, 0.1}).skipped);
            EXPECT_FALSE(bytes_of(optimizer) == before);
        }
}

TEST(Optimizer, RefusesMisuse) {
    const NamedTensor p = parameter("layers.0.a", {1}, 0);
    EXPECT_THROW(Optimizer(group_by_layer({p}), {.clip = ClipScope::layer, .max_norm = 0}), Error);
    EXPECT_THROW(Optimizer(group_by_layer({p}), {.block_layers = 0}), Error);
    Optimizer optimizer(group_by_layer({p}), {});
    EXPECT_THROW(optimizer.step(std::vector{0.1}), Error) << "no gradient";
    give(p, 1);
    EXPECT_THROW(optimizer.step(std::vector{0.1, 0.1}), Error) << "two rates for one group";
    EXPECT_THROW(clip_scope_from("model"), Error);
    EXPECT_THROW(Optimizer(group_by_layer({p, parameter("layers.1.a", {1}, 0, DType::f32)}), {}), Error)
        << "a step is one call: one dtype";
}

}  // namespace
}  // namespace lc::train
