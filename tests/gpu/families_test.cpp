// Every family on the GPU: logits of transformers in f32, the CPU's within bf16's rounding, gradients, generation.
#include "tests/models/families.h"
#include "autograd/engine.h"
#include "autograd/grad_mode.h"
#include "autograd/ops/linear_cross_entropy.h"
#include "autograd/ops/views.h"
#include "models/generation/generator.h"
#include "tests/gpu/gpu.h"
#include "tests/models/tiny.h"

namespace lc::models {
namespace {

using lc::test::kGpuBf16;
using lc::test::kGpuF32;
using test::family_decoder;
using test::relative_error;

// As in decoder_test.cpp: sums in another order; some thirty roundings to eight bits. Gradients and sums over more terms: tenfold.
constexpr double kF32 = 2e-4, kBf16 = 0.06;

class FamiliesOnGpu : public lc::test::OnGpu, public testing::WithParamInterface<std::string> {
  protected:
    Tensor ids() const { return Tensor::from(family_.ids, {1, std::ssize(family_.ids)}); }
    Decoder linearized(const Placement& placement, AttentionKind kind) const {
        Decoder decoder = family_decoder(family_, placement);
        AttentionSpec spec;
        spec.kind = kind, spec.window_size = 4;
        decoder.linearize(spec, 1);
        test::disturb(decoder.feature_map_parameters(), 0.3);
        decoder.add_lora({.rank = 2, .alpha = 4}, 2);
        test::disturb(decoder.lora_parameters(), 0.1);
        return decoder;
    }
    // How far rounding the weights to bf16 moves the logits, computed in f32: a model whose features or attention are sharp turns that
    // into more than the roundings of its activations would.
    double moved_by_rounding(AttentionKind kind, const AttentionMode mode, const Tensor& expected) const {
        const Decoder rounded = linearized({}, kind);
        for (const auto& parameters :
             {rounded.base_parameters(), rounded.feature_map_parameters(), rounded.lora_parameters()})
            for (const NamedTensor& parameter : parameters)
                Tensor(parameter.tensor).copy_from(parameter.tensor.to(DType::bf16).to(DType::f32));
        return relative_error(rounded.logits(ids(), {.mode = mode}), expected);
    }
    const test::Family family_ = test::read_family(GetParam());
};

TEST_P(FamiliesOnGpu, LogitsOfTransformers) {
    const NoGrad no_grad;
    const Tensor logits = family_decoder(family_, kGpuF32).logits(ids(), {});
    const auto last = logits.sliced(1, logits.size(1) - 1, 1).to_vector<double>();
    for (size_t v = 0; v < family_.last_logits.size(); ++v) EXPECT_NEAR(last[v], family_.last_logits[v], 1e-3) << v;
}

TEST_P(FamiliesOnGpu, LogitsAreTheCpus) {
    const NoGrad no_grad;
    for (const AttentionKind kind : {AttentionKind::hybrid, AttentionKind::linear}) {
        const Decoder cpu = linearized({}, kind), f32 = linearized(kGpuF32, kind), bf16 = linearized(kGpuBf16, kind);
        for (const AttentionMode mode : {AttentionMode::Softmax, AttentionMode::Linearized}) {
            const Tensor expected = cpu.logits(ids(), {.mode = mode});
            EXPECT_LT(relative_error(f32.logits(ids(), {.mode = mode}), expected), kF32);
            EXPECT_LT(relative_error(bf16.logits(ids(), {.mode = mode}), expected),
                      kBf16 + 2 * moved_by_rounding(kind, mode, expected));
        }
    }
}

TEST_P(FamiliesOnGpu, GradientsAreTheCpus) {
    constexpr int64_t kLength = 24;
    const Tensor labels = Tensor::from(std::span(family_.ids).subspan(1, kLength), {kLength});
    const auto gradients = [&](const Decoder& decoder, const std::vector<NamedTensor>& parameters, AttentionMode mode) {
        const Tensor hidden = decoder.hidden(ids().sliced(1, 0, kLength), {.mode = mode});
        backward(linear_cross_entropy(reshape(hidden, {kLength, hidden.size(2)}), decoder.lm_head(),
                                      labels.to(decoder.device()), decoder.head_bias()));
        std::vector<Tensor> result;
        for (const NamedTensor& parameter : parameters) result.push_back(grad_of(parameter.tensor));
        return result;
    };
    const auto compare = [&](const Decoder& cpu, const std::vector<NamedTensor>& of_cpu, const Decoder& gpu,
                             const std::vector<NamedTensor>& of_gpu, AttentionMode mode) {
        const auto expected = gradients(cpu, of_cpu, mode), actual = gradients(gpu, of_gpu, mode);
        for (size_t i = 0; i < expected.size(); ++i)
            EXPECT_LT(relative_error(actual[i], expected[i]), 10 * kF32) << of_cpu[i].name;
    };
    Decoder cpu = linearized({}, AttentionKind::hybrid), gpu = linearized(kGpuF32, AttentionKind::hybrid);
    for (Decoder* decoder : {&cpu, &gpu}) decoder->set_trainable(decoder->lora_parameters());
    compare(cpu, cpu.lora_parameters(), gpu, gpu.lora_parameters(), AttentionMode::Linearized);
    const auto trainable = [&](const Placement& place) {
        return family_decoder(family_, place, Decoder::Weights::Trainable);
    };
    const Decoder whole = trainable({}), whole_gpu = trainable(kGpuF32);
    compare(whole, whole.base_parameters(), whole_gpu, whole_gpu.base_parameters(), AttentionMode::Softmax);
}

TEST_P(FamiliesOnGpu, GenerationIsTheFullForward) {
    const NoGrad no_grad;
    for (const AttentionMode mode : {AttentionMode::Softmax, AttentionMode::Linearized}) {
        const Decoder gpu = linearized(kGpuF32, AttentionKind::hybrid);
        const Tensor full = gpu.logits(ids(), {.mode = mode});
        const Generator generator(gpu, 8);
        DecodeState state(gpu, mode);
        constexpr int64_t kPrompt = 11;
        generator.feed(state, ids().sliced(1, 0, kPrompt));
        for (int64_t t = kPrompt; t < full.size(1); ++t) {
            const Tensor logits = generator.advance(state, ids().sliced(1, t, 1));
            EXPECT_LT(relative_error(logits, full.sliced(1, t, 1).reshaped(logits.shape())), kF32) << t;
        }
    }
}

INSTANTIATE_TEST_SUITE_P(All, FamiliesOnGpu, testing::ValuesIn(test::family_names()),
                         [](const auto& p) { return p.param; });

}  // namespace
}  // namespace lc::models
