#include "autograd/ops/views.h"

#include <gtest/gtest.h>

#include "autograd/engine.h"
#include "autograd/gradcheck.h"
#include "autograd/ops/add.h"
#include "autograd/ops/mul.h"
#include "core/rng.h"

namespace lc {
namespace {

Tensor random_tensor(const Shape& shape, DType dtype, uint64_t stream = 0) {
    std::vector<double> values(static_cast<size_t>(numel_of(shape)));
    for (size_t i = 0; i < values.size(); ++i) values[i] = Random(5, stream).normal(i);
    return Tensor::from(values, shape).to(dtype);
}

Tensor leaf(const Shape& shape, DType dtype) {
    Tensor tensor = random_tensor(shape, dtype);
    set_requires_grad(tensor);
    return tensor;
}

void expect_gradients(const std::function<Tensor(const Tensor&)>& fn, const Shape& shape) {
    const GradcheckReport report = gradcheck(
        [&](const std::vector<Tensor>& in) -> std::vector<Tensor> { return {fn(in[0])}; }, {leaf(shape, DType::f64)});
    EXPECT_TRUE(report.ok) << report.detail;
    EXPECT_EQ(report.elements, numel_of(shape));
}

TEST(Views, Gradients) {
    expect_gradients([](const Tensor& x) { return reshape(x, {6, -1}); }, {2, 3, 4});
    expect_gradients([](const Tensor& x) { return permute(x, {2, 0, 1}); }, {2, 3, 4});
    expect_gradients([](const Tensor& x) { return reshape(permute(x, {1, 0, 2}), {3, 8}); }, {2, 3, 4});  // has to copy
    expect_gradients([](const Tensor& x) { return slice(x, 1, 1, 2); }, {2, 4, 3});
    expect_gradients([](const Tensor& x) { return slice(x, -1, 0, 0); }, {2, 3});
    // Two slices of one tensor: the second gradient is added to the zeros and values of the first.
    expect_gradients([](const Tensor& x) { return mul(slice(x, 0, 0, 3), slice(x, 0, 1, 3)); }, {4, 3});
    expect_gradients(
        [](const Tensor& x) {
            return add(permute(x, {1, 0}), permute(slice(x, 0, 0, 3), {1, 0}));
        },
        {3, 3});
}

TEST(Views, ReshapeAndPermuteMoveNoData) {
    Tensor x = leaf({2, 3, 4}, DType::f32);
    const Tensor y = reshape(permute(x, {0, 2, 1}), {2, 2, 2, 3});
    EXPECT_EQ(y.storage(), x.storage());

    // Nor backward: the gradient of the permuted product is a view of the gradient of what was made from it.
    const Tensor a = mul(x, x);
    const Tensor b = permute(a, {2, 0, 1});
    struct Probe final : Node {  // sees the gradient's storage on its way down
        std::shared_ptr<Storage> seen;
        std::string_view name() const override { return "probe"; }
        void backward(std::span<const Tensor> dout, GradSink& din) override {
            seen = dout[0].storage();
            din.pass(0, dout[0]);
        }
    };
    auto below = std::make_shared<Probe>(), above = std::make_shared<Probe>();
    Tensor c = a.detach();
    record(below, {&a}, {&c});
    Tensor d = reshape(permute(c, {2, 0, 1}), {8, 3});
    Tensor e = d.detach();
    record(above, {&d}, {&e});
    backward(e, Tensor::full(e.shape(), 1.0, DType::f32));
    EXPECT_NE(above->seen, nullptr);
    EXPECT_EQ(above->seen, below->seen);
}

TEST(Views, LeafGradientHasTheLeafsOrderInMemory) {
    Tensor x = leaf({3, 4}, DType::f32);
    backward(permute(x, {1, 0}), random_tensor({4, 3}, DType::f32));
    EXPECT_EQ(grad_of(x).layout(), x.layout());
}

TEST(Views, SliceRefusesWhatIsOutside) {
    const Tensor x = random_tensor({2, 3}, DType::f32);
    EXPECT_THROW(slice(x, 1, 2, 2), Error);
    EXPECT_THROW(slice(x, 2, 0, 1), Error);
    EXPECT_THROW(reshape(x, {4, 2}), Error);
    EXPECT_THROW(permute(x, {0, 0}), Error);
}

}  // namespace
}  // namespace lc
