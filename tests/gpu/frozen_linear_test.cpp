// Products that stream their weights: the bits of a row do not depend on how many there are, and models whose weights are codes compute on
// a GPU what they compute on the CPU.
#include "kernels/frozen_linear/frozen_linear.h"
#include "autograd/grad_mode.h"
#include "core/random_tensor.h"
#include "models/generation/generator.h"
#include "tests/gpu/gpu.h"
#include "tests/models/tiny.h"

namespace lc::models {
namespace {

using test::kGpu;
using test::kGpuBf16;

class FrozenLinearOnGpu : public test::OnGpu {};

constexpr WeightCode kCodes[] = {WeightCode::none, WeightCode::int8, WeightCode::fp8};

struct Held {
    Tensor w, scale;
    Held(int64_t out, int64_t in, WeightCode code, uint64_t seed)
        : w(normal_tensor({out, in}, 0.1, Random(seed, 0), DType::bf16, kGpu)) {
        if (code == WeightCode::none) return;
        const Tensor codes = Tensor::empty(w.shape(), DType::u8, kGpu);
        scale = Tensor::empty({out}, DType::f32, kGpu);
        kernels::encode_weights({.w = w.view(), .codes = codes.view(), .scale = scale.view(), .code = code},
                                current_stream(kGpu));
        w = codes;
    }
    kernels::FrozenMatrix matrix() const { return {.w = w.view(), .scale = scale.view(), .b = {}}; }
};

using Kernel = bool (*)(const kernels::FrozenLinear&, Stream);

// Row 0 of x in products with each of these numbers of rows.
void expect_same_bits(Kernel kernel, WeightCode code, bool gated, const std::vector<int64_t>& numbers) {
    constexpr int64_t kIn = 1152, kOut = 200;
    const Tensor x = normal_tensor({numbers.back(), kIn}, 1, Random(1, 0), DType::bf16, kGpu);
    const Tensor norm = normal_tensor({kIn}, 1, Random(2, 0), DType::bf16, kGpu);
    const Held first(kOut, kIn, code, 3), second(kOut, kIn, code, 4);
    const std::vector<kernels::FrozenMatrix> matrices = {first.matrix(), second.matrix()};
    std::vector<float> alone;
    for (const int64_t rows : numbers) {
        std::vector<Tensor> y(gated ? 1 : 2);
        std::vector<TensorView> views;
        for (Tensor& result : y) {
            result = Tensor::empty({rows, kOut}, DType::bf16, kGpu);
            views.push_back(result.view());
        }
        const Tensor input = x.sliced(0, 0, rows);
        const kernels::FrozenLinear args{.x = input.view(),
                                         .norm_weight = norm.view(),
                                         .matrices = matrices,
                                         .residual = {},
                                         .y = views,
                                         .code = code,
                                         .gated = gated};
        if (!kernel(args, current_stream(kGpu))) GTEST_SKIP() << "the kernel is for compute capability 9.0";
        const std::vector<float> row = y.back().sliced(0, 0, 1).contiguous().to_vector<float>();
        if (alone.empty()) alone = row;
        EXPECT_EQ(row, alone) << rows << " rows, " << name_of(code);
    }
}

TEST_F(FrozenLinearOnGpu, ARowHasTheSameBitsAmongAnyNumber) {
    for (const bool gated : {false, true}) {
        for (const WeightCode code : kCodes)
            expect_same_bits(kernels::frozen_linear_stream, code, gated, {1, 2, 8, 9, kernels::streamed_rows(code)});
        expect_same_bits(kernels::frozen_linear_wide, WeightCode::none, gated, {1, 17, 40, kernels::kWideRows});
    }
}

// Wide enough for the streaming kernel, which takes whole panels.
DecoderConfig config() {
    DecoderConfig c = test::tiny_config(false);
    c.hidden_size = 128, c.intermediate_size = 256, c.head_dim = 32;
    return c;
}

TEST_F(FrozenLinearOnGpu, CodedModelsStepAsOnTheCpu) {
    const NoGrad no_grad;
    for (const WeightCode code : kCodes) {
        Decoder cpu = test::tiny_decoder(config(), DType::f32);
        Decoder gpu = Decoder::random(config(), 1, kGpuBf16, Decoder::Weights::Frozen);
        const std::vector<NamedTensor> from = cpu.base_parameters();
        std::vector<NamedTensor> to = gpu.base_parameters();
        for (size_t i = 0; i < to.size(); ++i) {  // both begin from the rounded numbers
            to[i].tensor.copy_from(from[i].tensor);
            Tensor(from[i].tensor).copy_from(to[i].tensor.to(Device{}).to(DType::f32));
        }
        cpu.encode_projections(code), gpu.encode_projections(code);
        const Tensor ids = test::tiny_ids(3, 7);
        DecodeState on_cpu(cpu, AttentionMode::Softmax, 3), on_gpu(gpu, AttentionMode::Softmax, 3);
        const Generator cpu_generator(cpu), gpu_generator(gpu);
        for (int64_t t = 0; t < 7; ++t) {
            const Tensor expected = cpu_generator.advance(on_cpu, ids.sliced(1, t, 1));
            // bf16 keeps 8 bits: a dozen roundings on the way to a logit
            EXPECT_LT(test::relative_error(gpu_generator.advance(on_gpu, ids.sliced(1, t, 1)), expected), 0.06)
                << name_of(code) << ", token " << t;
        }
    }
}

}  // namespace
}  // namespace lc::models
