#include "autograd/checkpoint.h"

#include <gtest/gtest.h>

#include "autograd/engine.h"
#include "autograd/ops/add.h"
#include "autograd/ops/dropout.h"
#include "autograd/ops/linear.h"
#include "autograd/ops/rms_norm.h"
#include "autograd/ops/swiglu.h"
#include "core/rng.h"

namespace lc {
namespace {

Tensor random_leaf(const Shape& shape, uint64_t stream) {
    std::vector<float> values(static_cast<size_t>(numel_of(shape)));
    for (size_t i = 0; i < values.size(); ++i) values[i] = static_cast<float>(Random(9, stream).normal(i));
    Tensor tensor = Tensor::from(values, shape);
    set_requires_grad(tensor);
    return tensor;
}

struct Outcome {
    std::vector<float> output;
    std::vector<std::vector<float>> grads;
    int64_t saved_bytes = 0;
    bool operator==(const Outcome& other) const { return output == other.output && grads == other.grads; }
};

// Blocks with captured parameters, dropout and two outputs, in the middle of a larger tape.
Outcome train_step(bool checkpointed) {
    Tensor x = random_leaf({6, 16}, 0), gate = random_leaf({24, 16}, 1), up = random_leaf({24, 16}, 2);
    Tensor down = random_leaf({16, 24}, 3), norm = random_leaf({16}, 4), mix = random_leaf({16, 16}, 5);
    const BlockFn block = [=](const std::vector<Tensor>& in) -> std::vector<Tensor> {
        const Tensor h = dropout(swiglu(linear(in[0], gate), linear(in[0], up)), 0.3, 11, 2);
        const auto [y, sum] = add_rms_norm(linear(h, down), in[1], norm, 1e-5);
        return {y, sum};
    };
    const Tensor start = linear(x, mix);
    std::vector<Tensor> h{start, x};
    for (int layer = 0; layer < 3; ++layer) h = checkpointed ? checkpoint(block, h) : block(h);
    const Tensor y = add(linear(h[0], mix), h[1]);
    Outcome outcome;
    outcome.output = y.to_vector<float>();
    outcome.saved_bytes = dump_tape(y).saved_bytes;
    backward(y, random_leaf({6, 16}, 6).detach());
    for (const Tensor& leaf : {x, gate, up, down, norm, mix}) outcome.grads.push_back(grad_of(leaf).to_vector<float>());
    return outcome;
}

TEST(Checkpoint, GradientsAreBitwiseEqual) {
    const Outcome plain = train_step(false), checkpointed = train_step(true);
    EXPECT_EQ(plain.output, checkpointed.output);
    ASSERT_EQ(plain.grads.size(), checkpointed.grads.size());
    for (size_t i = 0; i < plain.grads.size(); ++i) {
        EXPECT_FALSE(plain.grads[i].empty()) << i;
        EXPECT_EQ(plain.grads[i], checkpointed.grads[i]) << i;
    }
    EXPECT_LT(checkpointed.saved_bytes, plain.saved_bytes / 2);
}

TEST(Checkpoint, KeepsOnlyItsInputs) {
    Tensor w = random_leaf({8, 8}, 0);
    const Tensor x = random_leaf({2, 8}, 1);
    const auto y = checkpoint(
        [w](const std::vector<Tensor>& in) -> std::vector<Tensor> { return {linear(linear(in[0], w), w)}; }, {x});
    const TapeSummary tape = dump_tape(y[0]);
    EXPECT_EQ(tape.nodes, 1);
    EXPECT_EQ(tape.saved_bytes, 2 * 8 * 4);
}

TEST(Checkpoint, WithoutGradModeItIsAPlainCall) {
    const NoGrad no_grad;
    Tensor w = random_leaf({8, 8}, 0);
    const auto y = checkpoint([w](const std::vector<Tensor>& in) -> std::vector<Tensor> { return {linear(in[0], w)}; },
                              {random_leaf({2, 8}, 1)});
    EXPECT_FALSE(requires_grad(y[0]));
}

TEST(Checkpoint, InputsWithoutGradientStayWithout) {
    Tensor w = random_leaf({8, 8}, 0);
    const Tensor x = random_leaf({2, 8}, 1).detach();
    const auto y =
        checkpoint([w](const std::vector<Tensor>& in) -> std::vector<Tensor> { return {linear(in[0], w)}; }, {x});
    ASSERT_TRUE(requires_grad(y[0])) << "captured parameters alone must keep the block on the tape";
    backward(y[0], Tensor::full({2, 8}, 1, DType::f32));
    EXPECT_TRUE(grad_of(w).defined());
    EXPECT_FALSE(grad_of(x).defined());
}

}  // namespace
}  // namespace lc
