#include "autograd/engine.h"

#include <gtest/gtest.h>

#include <string>

#include "autograd/ops/add.h"
#include "autograd/ops/linear.h"
#include "autograd/ops/mul.h"
#include "autograd/ops/scale.h"
#include "autograd/ops/sum.h"
#include "core/profile.h"
#include "kernels/accumulate/accumulate.h"

namespace lc {
namespace {

Tensor values(const std::vector<double>& numbers, DType dtype = DType::f64) {
    return Tensor::from(numbers, {static_cast<int64_t>(numbers.size())}).to(dtype);
}
Tensor leaf(const std::vector<double>& numbers, DType dtype = DType::f64) {
    Tensor tensor = values(numbers, dtype);
    set_requires_grad(tensor);
    return tensor;
}
std::vector<double> grad_values(const Tensor& tensor) {
    return grad_of(tensor).to_vector<double>();
}
using Numbers = std::vector<double>;

std::string error_of(const std::function<void()>& fn) {
    try {
        fn();
    } catch (const Error& error) {
        return error.what();
    }
    return "no error";
}

TEST(Engine, SharedInputsAddUp) {
    Tensor x = leaf({2, 3});
    backward(sum(add(mul(x, x), scale(x, 5))));
    EXPECT_EQ(grad_values(x), (Numbers{2 * 2 + 5, 2 * 3 + 5}));
}

TEST(Engine, OneTensorAsTwoInputsOfOneNode) {
    Tensor x = leaf({2, -3});
    backward(sum(mul(x, x)));
    EXPECT_EQ(grad_values(x), (Numbers{4, -6}));
    Tensor y = leaf({1, 1});
    const Tensor middle = scale(y, 3);  // the same, where the shared input is no leaf
    backward(sum(mul(middle, middle)));
    EXPECT_EQ(grad_values(y), (Numbers{18, 18}));
    Tensor z = leaf({1, 2});
    backward(add(z, z), values({1, 10}));
    EXPECT_EQ(grad_values(z), (Numbers{2, 20}));
}

// c = a + b whose inputs share their gradient where the tape lets them.
struct SharingAdd final : Node {
    bool shared = false;
    std::string_view name() const override { return "sharing_add"; }
    void backward(std::span<const Tensor> dout, GradSink& din) override {
        const GradSlot slot = din.shared_slot(0, 1);
        shared = static_cast<bool>(slot);
        if (shared) return copy_strided(dout[0].view(), slot.view);
        for (const int input : {0, 1})
            kernels::accumulate({.source = dout[0].view(), .target = zeroed(din.slot(input))}, current_stream({}));
    }
    static TensorView zeroed(const GradSlot& slot) {
        if (!slot.accumulate()) copy_strided(Tensor::zeros(slot.view.shape(), slot.view.dtype).view(), slot.view);
        return slot.view;
    }
};

TEST(Engine, TwoInputsShareOneGradientUntilSomethingIsAddedToIt) {
    Tensor x = leaf({1, 2}), y = leaf({3, 4});
    const auto add_shared = [](const Tensor& a, const Tensor& b) {
        const auto node = std::make_shared<SharingAdd>();
        Tensor c = add(a, b).detach();
        record(node, {&a, &b}, {&c});
        return std::pair{c, node};
    };
    const Tensor a = scale(x, 2), b = scale(y, 3);
    const Tensor square = mul(b, b);  // runs backward between c's node and those of a and b
    const auto [c, node] = add_shared(a, b);
    backward(sum(add(c, square)));
    EXPECT_TRUE(node->shared);
    EXPECT_EQ(grad_values(x), (Numbers{2, 2}));
    EXPECT_EQ(grad_values(y), (Numbers{3 * (1 + 2 * 9), 3 * (1 + 2 * 12)}));

    set_grad(x, {}), set_grad(y, {});
    const auto [d, late] = add_shared(a, b);
    backward(sum(add(d, mul(b, b))));  // b has a gradient already
    EXPECT_FALSE(late->shared);
    EXPECT_EQ(grad_values(y), (Numbers{3 * (1 + 2 * 9), 3 * (1 + 2 * 12)}));

    set_grad(x, {}), set_grad(y, {});
    const auto [e, of_leaves] = add_shared(x, y);
    backward(sum(e));
    EXPECT_FALSE(of_leaves->shared);
    EXPECT_EQ(grad_values(x), (Numbers{1, 1}));
    const auto [f, of_one] = add_shared(a, a);
    set_grad(x, {});
    backward(sum(f));
    EXPECT_FALSE(of_one->shared);
    EXPECT_EQ(grad_values(x), (Numbers{4, 4}));
}

TEST(Engine, DiamondOfAdditionsDoesNotAliasBuffers) {
    // add gives its gradient away without a copy; both arms then go on writing.
    Tensor x = leaf({1, 2}), y = leaf({3, 4});
    const Tensor a = scale(x, 2), b = scale(y, 3);
    const Tensor c = add(a, b), d = mul(a, b);
    backward(sum(add(c, d)));
    EXPECT_EQ(grad_values(x), (Numbers{2 * (1 + 9), 2 * (1 + 12)}));
    EXPECT_EQ(grad_values(y), (Numbers{3 * (1 + 2), 3 * (1 + 4)}));
}

TEST(Engine, GradientsOfSeveralBackwardsAddUp) {
    Tensor x = leaf({1, 2});
    backward(sum(mul(x, x)));
    backward(sum(mul(x, x)));
    EXPECT_EQ(grad_values(x), (Numbers{4, 8}));
    set_grad(x, {});
    EXPECT_FALSE(grad_of(x).defined());
}

TEST(Engine, SeveralRootsAtOnce) {
    Tensor x = leaf({1, 2});
    const std::vector<Tensor> roots{scale(x, 2), mul(x, x)}, grads{values({1, 1}), values({10, 10})};
    backward(roots, grads);
    EXPECT_EQ(grad_values(x), (Numbers{2 + 20, 2 + 40}));
}

TEST(Engine, RootThatIsALeaf) {
    Tensor x = leaf({1, 2});
    backward(x, values({3, 4}));
    EXPECT_EQ(grad_values(x), (Numbers{3, 4}));
}

TEST(Engine, RetainGraphAllowsASecondBackward) {
    Tensor x = leaf({3});
    const Tensor y = sum(mul(x, x));
    backward(y, {}, {.retain_graph = true});
    backward(y);
    EXPECT_EQ(grad_values(x), (Numbers{12}));
    const std::string message = error_of([&] { backward(y); });
    EXPECT_NE(message.find("mul"), std::string::npos) << message;
    EXPECT_NE(message.find("retain_graph"), std::string::npos) << message;
}

TEST(Engine, ModificationInPlaceIsNoticed) {
    Tensor x = leaf({3});
    Tensor other = values({4});
    const Tensor y = sum(mul(x, other));
    other.fill(5);
    const std::string message = error_of([&] { backward(y); });
    EXPECT_NE(message.find("mul: saved tensor 'b' was modified in place"), std::string::npos) << message;
}

TEST(Engine, MisuseIsNamed) {
    Tensor x = leaf({1, 2});
    const Tensor constant = values({1, 2});
    EXPECT_NE(error_of([&] { backward(constant); }).find("does not depend on anything"), std::string::npos);
    EXPECT_NE(error_of([&] { backward(scale(x, 2)); }).find("needs a gradient of that shape"), std::string::npos);
    EXPECT_NE(error_of([&] { backward(scale(x, 2), values({1})); }).find("gradient [1] for a root [2]"),
              std::string::npos);
    Tensor result = scale(x, 2);
    EXPECT_NE(error_of([&] { set_requires_grad(result); }).find("'scale'"), std::string::npos);
    Tensor ids = Tensor::zeros({2}, DType::i64);
    EXPECT_NE(error_of([&] { set_requires_grad(ids); }).find("i64"), std::string::npos);
}

TEST(Engine, LongChainNeedsNoStack) {
    Tensor x = leaf({1});
    {
        Tensor y = x;
        for (int i = 0; i < 100000; ++i) y = scale(y, i % 2 ? 2.0 : 0.5);
        backward(y);
    }  // frees 100k nodes
    EXPECT_EQ(grad_values(x), (Numbers{1}));
    Tensor z = x;
    for (int i = 0; i < 100000; ++i) z = add(z, x);  // dropped without a backward
}

// Watches which gradients a node is asked for.
struct Watch final : Node {
    std::vector<bool> wanted;
    std::string_view name() const override { return "watch"; }
    void backward(std::span<const Tensor>, GradSink& din) override {
        for (size_t i = 0; i < inputs().size(); ++i) {
            wanted.push_back(din.wants(static_cast<int>(i)));
            EXPECT_EQ(static_cast<bool>(din.slot(static_cast<int>(i))), wanted.back());
        }
    }
};

TEST(Engine, FrozenInputsGetNoSlot) {
    Tensor x = leaf({1}), frozen = values({2});
    auto node = std::make_shared<Watch>();
    Tensor y = values({0});
    const Tensor undefined;
    record(node, {&x, &frozen, &undefined}, {&y});
    backward(y);
    EXPECT_EQ(node->wanted, (std::vector<bool>{true, false, false}));
}

TEST(Engine, FrozenWeightCostsNoProduct) {
    const auto gemm_calls = [](bool train_weight) {
        Tensor x = Tensor::full({8, 4}, 1, DType::f32), w = Tensor::full({5, 4}, 1, DType::f32);
        set_requires_grad(x);
        if (train_weight) set_requires_grad(w);
        const Tensor y = linear(x, w);
        profile_reset();
        profile_enable(true);
        backward(y, Tensor::full({8, 5}, 1, DType::f32));
        profile_enable(false);
        EXPECT_EQ(grad_of(w).defined(), train_weight);
        for (const ProfileEntry& entry : profile_entries())
            if (entry.name == "gemm") return entry.calls;
        return int64_t{0};
    };
    EXPECT_EQ(gemm_calls(false), 1);
    EXPECT_EQ(gemm_calls(true), 2);
}

TEST(Engine, NoGradRecordsNothing) {
    Tensor x = leaf({1});
    {
        const NoGrad no_grad;
        EXPECT_FALSE(grad_enabled());
        EXPECT_FALSE(requires_grad(scale(x, 2)));
        {
            const GradModeGuard again(true);
            EXPECT_TRUE(requires_grad(scale(x, 2)));
        }
        EXPECT_FALSE(grad_enabled());
    }
    EXPECT_TRUE(requires_grad(scale(x, 2)));
    EXPECT_FALSE(requires_grad(scale(values({1}), 2)));
}

TEST(Engine, LeafGradientsAreF32OrF64) {
    Tensor single = leaf({1, 2}, DType::f32), exact = leaf({1, 2}, DType::f64), stored = leaf({1, 2}, DType::bf16);
    backward(sum(scale(single, 2)));
    backward(sum(scale(exact, 2)));
    struct Cast final : Node {
        std::string_view name() const override { return "cast"; }
        void backward(std::span<const Tensor> dout, GradSink& din) override { din.pass(0, dout[0]); }
    };
    Tensor widened = stored.to(DType::f32);
    record(std::make_shared<Cast>(), {&stored}, {&widened});
    backward(sum(widened));
    EXPECT_EQ(grad_of(single).dtype(), DType::f32);
    EXPECT_EQ(grad_of(exact).dtype(), DType::f64);
    EXPECT_EQ(grad_of(stored).dtype(), DType::f32);
}

TEST(Engine, TapeDumpCountsBytes) {
    Tensor x = leaf({1, 2, 3}, DType::f32);
    const Tensor y = sum(mul(x, x));
    const TapeSummary before = dump_tape(y);
    EXPECT_EQ(before.nodes, 2);
    EXPECT_EQ(before.saved_bytes, 2 * 3 * 4);  // mul keeps both of its inputs
    EXPECT_NE(before.text.find("mul 24 B: a[3]:f32 b[3]:f32"), std::string::npos) << before.text;
    backward(y);
    EXPECT_EQ(dump_tape(y).saved_bytes, 0);
    EXPECT_EQ(dump_tape(x).nodes, 0);
}

TEST(Engine, OutputsThatNobodyUsedHaveNoGradient) {
    struct Two final : Node {
        std::vector<bool> reached;
        std::string_view name() const override { return "two"; }
        void backward(std::span<const Tensor> dout, GradSink& din) override {
            for (const Tensor& d : dout) reached.push_back(d.defined());
            din.pass(0, dout[1]);
        }
    };
    Tensor x = leaf({1});
    auto node = std::make_shared<Two>();
    Tensor a = values({1}), b = values({2});
    record(node, {&x}, {&a, &b});
    backward(b);
    EXPECT_EQ(node->reached, (std::vector<bool>{false, true}));
    EXPECT_EQ(grad_values(x), (Numbers{1}));
}

}  // namespace
}  // namespace lc
