// A decoder on the GPU is the decoder on the CPU: logits, gradients, generation.
#include <cmath>

#include "autograd/engine.h"
#include "autograd/grad_mode.h"
#include "autograd/ops/linear_cross_entropy.h"
#include "autograd/ops/views.h"
#include "core/allocator.h"
#include "core/random_tensor.h"
#include "models/generation/generator.h"
#include "tests/gpu/gpu.h"
#include "tests/models/tiny.h"

namespace lc::models {
namespace {

using kernels::WindowKind;
using lc::test::kGpu;
using lc::test::kGpuBf16;
using lc::test::kGpuF32;
using lc::test::OnGpu;
using test::relative_error;
using test::tiny_ids;

// The same numbers on another device and in another dtype.
Decoder copy_to(const Decoder& from, const Placement& placement) {
    Decoder decoder = Decoder::random(from.config(), 1, placement, Decoder::Weights::Frozen);
    if (from.attention()) decoder.linearize(*from.attention(), 1);
    if (from.lora()) decoder.add_lora(*from.lora(), 1);
    const auto copy = [](std::vector<NamedTensor> to, const std::vector<NamedTensor>& numbers) {
        ASSERT_EQ(to.size(), numbers.size());
        for (size_t i = 0; i < to.size(); ++i) to[i].tensor.copy_from(numbers[i].tensor);
    };
    copy(decoder.base_parameters(), from.base_parameters());
    copy(decoder.feature_map_parameters(), from.feature_map_parameters());
    copy(decoder.lora_parameters(), from.lora_parameters());
    return decoder;
}

AttentionSpec spec_of(WindowKind window, AttentionKind kind = AttentionKind::hybrid) {
    AttentionSpec spec;
    spec.kind = kind, spec.window = window, spec.window_size = 4;
    return spec;
}

const std::pair<const char*, AttentionSpec> kSpecs[] = {
    {"terraced", spec_of(WindowKind::terraced)},
    {"sliding", spec_of(WindowKind::sliding)},
    {"linear", spec_of(WindowKind::terraced, AttentionKind::linear)},
};

Decoder on_cpu(const AttentionSpec& spec) {
    Decoder decoder = test::tiny_decoder(test::tiny_config(true, 3), DType::f32);
    decoder.linearize(spec, 1);
    test::disturb(decoder.feature_map_parameters(), 0.3);
    decoder.add_lora({.rank = 2}, 1);
    test::disturb(decoder.lora_parameters(), 0.1, 12);
    return decoder;
}

class DecoderOnGpu : public OnGpu {};

// f32 against f32: sums of a few hundred terms through three layers in another order.
constexpr double kF32 = 2e-4;
// bf16 keeps 8 bits: 2^-8 relative a rounding, some thirty of them on the way to a logit, random signs.
constexpr double kBf16 = 0.06;

TEST_F(DecoderOnGpu, LogitsAreTheCpus) {
    const NoGrad no_grad;
    const Tensor ids = tiny_ids(2, 23);
    for (const auto& [name, spec] : kSpecs) {
        const Decoder cpu = on_cpu(spec);
        for (const AttentionMode mode : {AttentionMode::Softmax, AttentionMode::Linearized}) {
            const Tensor expected = cpu.logits(ids, {.mode = mode});
            EXPECT_LT(relative_error(copy_to(cpu, kGpuF32).logits(ids, {.mode = mode}), expected), kF32) << name;
            EXPECT_LT(relative_error(copy_to(cpu, kGpuBf16).logits(ids, {.mode = mode}), expected), kBf16) << name;
        }
    }
}

// With a short first block, and with one block only.
TEST_F(DecoderOnGpu, TheAuthorsWindowIsTheCpus) {
    const NoGrad no_grad;
    AttentionSpec spec = spec_of(WindowKind::sliding);
    spec.reference = true;
    const Decoder cpu = on_cpu(spec);
    for (const int64_t length : {int64_t{23}, spec.window_size}) {
        const Tensor ids = tiny_ids(2, length), expected = cpu.logits(ids, {.mode = AttentionMode::Linearized});
        for (const auto& [placement, tolerance] : {std::pair(kGpuF32, kF32), std::pair(kGpuBf16, kBf16)})
            EXPECT_LT(
                relative_error(copy_to(cpu, placement).logits(ids, {.mode = AttentionMode::Linearized}), expected),
                tolerance)
                << length;
    }
}

std::vector<Tensor> lora_gradients(Decoder& decoder, const Decoder::ForwardOptions& options) {
    decoder.set_trainable(decoder.lora_parameters());
    const Tensor ids = tiny_ids(2, 23), labels = tiny_ids(1, 46, 40, 6).reshaped({46}).to(decoder.device());
    const Tensor hidden = decoder.hidden(ids, options);
    backward(linear_cross_entropy(reshape(hidden, {46, hidden.size(2)}), decoder.lm_head(), labels));
    std::vector<Tensor> gradients;
    for (NamedTensor parameter : decoder.lora_parameters()) {
        gradients.push_back(grad_of(parameter.tensor));
        set_grad(parameter.tensor, {});
    }
    return gradients;
}

TEST_F(DecoderOnGpu, GradientsAreTheCpus) {
    for (const auto& [name, spec] : kSpecs) {
        Decoder cpu = on_cpu(spec), gpu = copy_to(cpu, kGpuF32);
        const auto expected = lora_gradients(cpu, {.mode = AttentionMode::Linearized});
        const auto actual = lora_gradients(gpu, {.mode = AttentionMode::Linearized});
        for (size_t i = 0; i < expected.size(); ++i)
            EXPECT_LT(relative_error(actual[i], expected[i]), 10 * kF32) << name << " " << i;
    }
}

TEST_F(DecoderOnGpu, RecomputedLayersGiveTheSameBits) {
    for (const Placement& placement : {kGpuF32, kGpuBf16}) {
        Decoder gpu = copy_to(on_cpu(kSpecs[0].second), placement);
        const auto kept = lora_gradients(gpu, {.mode = AttentionMode::Linearized});
        const auto again = lora_gradients(gpu, {.mode = AttentionMode::Linearized, .checkpoint_layers = true});
        for (size_t i = 0; i < kept.size(); ++i)
            EXPECT_EQ(kept[i].to_vector<float>(), again[i].to_vector<float>()) << i;
    }
}

TEST_F(DecoderOnGpu, GenerationIsTheFullForward) {
    const NoGrad no_grad;
    constexpr int64_t kBatch = 2, kLength = 23;
    const Tensor ids = tiny_ids(kBatch, kLength);
    for (const auto& [name, spec] : kSpecs)
        for (const AttentionMode mode : {AttentionMode::Softmax, AttentionMode::Linearized}) {
            const Decoder gpu = copy_to(on_cpu(spec), kGpuF32);
            const Tensor full = gpu.logits(ids, {.mode = mode});
            const Generator generator(gpu, 5);
            for (int64_t prompt = 1; prompt < kLength; prompt += 3) {
                DecodeState state(gpu, mode, kBatch);
                for (int64_t t = prompt; t <= kLength; ++t) {
                    const Tensor next = t == prompt ? ids.sliced(1, 0, prompt) : ids.sliced(1, t - 1, 1);
                    const Tensor logits = generator.advance(state, next);
                    EXPECT_LT(relative_error(logits, full.sliced(1, t - 1, 1).reshaped(logits.shape())), kF32)
                        << name << " prompt " << prompt << " token " << t;
                }
            }
        }
}

TEST_F(DecoderOnGpu, MergedAdaptersChangeNothing) {
    const NoGrad no_grad;
    const Tensor ids = tiny_ids(2, 23);
    Decoder gpu = copy_to(on_cpu(kSpecs[0].second), kGpuF32);
    const Tensor before = gpu.logits(ids, {.mode = AttentionMode::Linearized}).clone();
    gpu.merge_lora();
    EXPECT_LT(relative_error(gpu.logits(ids, {.mode = AttentionMode::Linearized}), before), kF32);
}

// Views make no kernel calls of their own forward; backward, a slice fills and adds.
TEST_F(DecoderOnGpu, SlicesGiveTheirGradientsBack) {
    for (const DType dtype : {DType::f32, DType::bf16}) {
        Tensor x = normal_tensor({4, 6, 5}, 1, Random(3), dtype, kGpu);
        set_requires_grad(x);
        const Tensor first = slice(x, 1, 1, 3), second = slice(x, 1, 2, 4);  // rows 2 and 3 in both
        const Tensor roots[] = {first, second};
        const Tensor grads[] = {Tensor::full(first.shape(), 2, dtype, kGpu),
                                Tensor::full(second.shape(), 3, dtype, kGpu)};
        backward(roots, grads);
        const auto values = grad_of(x).to_vector<float>();
        constexpr float kExpected[] = {0, 2, 5, 5, 3, 3};
        for (size_t i = 0; i < values.size(); ++i) EXPECT_EQ(values[i], kExpected[i / 5 % 6]) << i;
    }
}

// Whatever the position: folding blocks, wrapping rings.
TEST_F(DecoderOnGpu, AWarmDecodeStepAsksTheDriverForNoMemory) {
    const Decoder gpu = copy_to(on_cpu(kSpecs[0].second), kGpuBf16);
    const Generator generator(gpu, 8);
    DecodeState state(gpu, AttentionMode::Linearized, 2);
    generator.advance(state, tiny_ids(2, 13));
    int64_t warm = 0;
    for (int64_t t = 0; t < 40; ++t) {
        if (t == 8) warm = allocator(kGpu).stats().system_allocations;  // two blocks of the window have passed
        generator.advance(state, tiny_ids(2, 1));
    }
    EXPECT_EQ(allocator(kGpu).stats().system_allocations, warm);
}

// log and cos may round differently; a float holds 24 bits of the 53.
TEST_F(DecoderOnGpu, RandomWeightsAreTheCpus) {
    const DecoderConfig config = test::tiny_config(true, 3);
    const auto cpu = Decoder::random(config, 7).base_parameters();
    const auto gpu = Decoder::random(config, 7, kGpuF32).base_parameters();
    for (size_t i = 0; i < cpu.size(); ++i)
        EXPECT_LT(relative_error(gpu[i].tensor, cpu[i].tensor), 1e-6) << cpu[i].name;
    const Decoder narrow = Decoder::random(config, 7, kGpuBf16, Decoder::Weights::Frozen);
    EXPECT_EQ(narrow.base_parameters()[0].tensor.dtype(), DType::bf16);
    EXPECT_EQ(Decoder::random(config, 7, kGpuBf16).base_parameters()[0].tensor.dtype(), DType::f32);
}

}  // namespace
}  // namespace lc::models
