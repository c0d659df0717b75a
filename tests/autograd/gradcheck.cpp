#include "autograd/gradcheck.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "autograd/ops/mul.h"
#include "autograd/ops/scale.h"

namespace lc {
namespace {

using Tensors = std::vector<Tensor>;

// y = x^2 with a gradient of factor * 2x, at one element or at all of them.
struct SquareNode final : Node {
    SavedTensor x{this, "x"};
    double factor = 1;
    int64_t only = -1;  // -1: all elements
    std::string_view name() const override { return "square"; }
    void backward(std::span<const Tensor> dout, GradSink& din) override {
        const GradSlot dx = din.slot(0);
        for (int64_t i = 0; i < dx.view.numel(); ++i) {
            const double wrong = only < 0 || only == i ? factor : 1.0;
            dx.view.data<double>()[i] = wrong * 2 * x.get().data<double>()[i] * dout[0].data<double>()[i];
        }
    }
};

Tensor square(const Tensor& x, double factor, int64_t only = -1) {
    Tensor y = Tensor::empty(x.shape(), x.dtype());
    for (int64_t i = 0; i < x.numel(); ++i) y.data<double>()[i] = x.data<double>()[i] * x.data<double>()[i];
    if (should_record({&x})) {
        auto node = std::make_shared<SquareNode>();
        node->x.save(x);
        node->factor = factor, node->only = only;
        record(node, {&x}, {&y});
    }
    return y;
}

Tensor leaf(const std::vector<double>& values) {
    Tensor tensor = Tensor::from(values, {static_cast<int64_t>(values.size())});
    set_requires_grad(tensor);
    return tensor;
}

TEST(Gradcheck, PassesARightGradient) {
    const GradcheckReport report =
        gradcheck([](const Tensors& in) -> Tensors { return {square(in[0], 1)}; }, {leaf({0.5, -2, 3})});
    EXPECT_TRUE(report.ok) << report.detail;
    EXPECT_EQ(report.elements, 3);
    EXPECT_LT(report.worst, 1e-9);
}

TEST(Gradcheck, FailsAWrongGradient) {
    for (const double factor : {-1.0, 0.0, 0.5, 1.0001, 2.0}) {
        const GradcheckReport report =
            gradcheck([&](const Tensors& in) -> Tensors { return {square(in[0], factor)}; }, {leaf({0.5, -2, 3})});
        EXPECT_FALSE(report.ok) << factor;
        EXPECT_NE(report.detail.find("input 0 element"), std::string::npos);
    }
}

TEST(Gradcheck, FailsWhenOneElementIsWrong) {
    const GradcheckReport report =
        gradcheck([](const Tensors& in) -> Tensors { return {square(in[0], 1.01, 2)}; }, {leaf({0.5, -2, 3, 1})});
    EXPECT_FALSE(report.ok);
    EXPECT_NE(report.detail.find("input 0 element 2"), std::string::npos) << report.detail;
}

TEST(Gradcheck, FailsNaN) {
    const GradcheckReport report = gradcheck(
        [](const Tensors& in) -> Tensors { return {square(in[0], std::numeric_limits<double>::quiet_NaN())}; },
        {leaf({1})});
    EXPECT_FALSE(report.ok);
}

TEST(Gradcheck, FailsAGradientThatIsMissing) {
    // The graph is cut by a detach: the analytic gradient is 0, the numeric one is not.
    const GradcheckReport report =
        gradcheck([](const Tensors& in) -> Tensors { return {mul(scale(in[0], 2), in[1].detach())}; },
                  {leaf({1, 2}), leaf({3, 4})});
    EXPECT_FALSE(report.ok);
}

TEST(Gradcheck, AcceptsKinksBetweenPoints) {
    // |x| crosses its kink within the first step of x = 1e-4; smaller steps do not.
    struct AbsNode final : Node {
        SavedTensor x{this, "x"};
        std::string_view name() const override { return "abs"; }
        void backward(std::span<const Tensor> dout, GradSink& din) override {
            *din.slot(0).view.data<double>() = (x.get().item() > 0 ? 1 : -1) * dout[0].item();
        }
    };
    const auto abs = [](const Tensors& in) -> Tensors {
        Tensor y = Tensor::full({1}, std::abs(in[0].item()), DType::f64);
        if (should_record({&in[0]})) {
            auto node = std::make_shared<AbsNode>();
            node->x.save(in[0]);
            record(node, {&in[0]}, {&y});
        }
        return {y};
    };
    EXPECT_TRUE(gradcheck(abs, {leaf({1e-4})}).ok);
    EXPECT_TRUE(gradcheck(abs, {leaf({-2})}).ok);
}

TEST(Gradcheck, RefusesWhatItCannotCheck) {
    Tensor single = Tensor::zeros({1}, DType::f32);
    set_requires_grad(single);
    const auto twice = [](const Tensors& in) -> Tensors { return {scale(in[0], 2)}; };
    EXPECT_THROW(gradcheck(twice, {single}), Error);
    EXPECT_THROW(gradcheck(twice, {Tensor::zeros({1}, DType::f64)}), Error);
}

}  // namespace
}  // namespace lc
