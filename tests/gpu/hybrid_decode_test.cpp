// Decode steps as models run them, of many sequences: the form for Hopper against the one for any GPU.
#include "kernels/hybrid_decode/hybrid_decode.h"

#include "core/random_tensor.h"
#include "kernels/common/cuda/hopper.h"
#include "tests/gpu/gpu.h"

namespace lc::test {
namespace {

constexpr int64_t kHeads = 32, kKvHeads = 8, kMap = 64, kWindow = 64;

struct Step {
    Tensor q, k, v, wq, wk, mix_logit, ring_k, ring_v, s, z, y, positions;

    Step(const std::vector<int64_t>& at, int64_t d, DType state, DType weights) {
        const int64_t batch = std::ssize(at);
        uint64_t stream = 0;
        const auto random = [&](const Shape& shape, DType dtype, double deviation = 1) {
            return normal_tensor(shape, deviation, Random(11, stream++), DType::f32).to(dtype).to(kGpu);
        };
        // As a projection leaves them: rows of all heads side by side.
        const Tensor qkv = random({batch, 1, kHeads + 2 * kKvHeads, d}, DType::bf16).permuted({0, 2, 1, 3});
        q = qkv.sliced(1, 0, kHeads), k = qkv.sliced(1, kHeads, kKvHeads),
        v = qkv.sliced(1, kHeads + kKvHeads, kKvHeads);
        wq = random({kHeads, d, kMap}, weights, 0.1), wk = random({kHeads, d, kMap}, weights, 0.1);
        mix_logit = random({kHeads}, DType::f32);
        ring_k = random({batch, kKvHeads, 2 * kWindow, d}, DType::bf16);
        ring_v = random({batch, kKvHeads, 2 * kWindow, d}, DType::bf16);
        s = random({batch, kHeads, 2 * kMap, d}, state), z = Tensor::full({batch, kHeads, 2 * kMap}, 3, state, kGpu);
        y = Tensor::full({batch, kHeads, 1, d}, NAN, DType::bf16, kGpu);
        positions = Tensor::from(at, {batch}).to(kGpu);
    }
    kernels::HybridDecode args() const {
        return {.q = q.view(),
                .k = k.view(),
                .v = v.view(),
                .wq = wq.view(),
                .wk = wk.view(),
                .mix_logit = mix_logit.view(),
                .ring_k = ring_k.view(),
                .ring_v = ring_v.view(),
                .s = s.view(),
                .z = z.view(),
                .y = y.view(),
                .positions = positions.view(),
                .spec = {.window_size = kWindow}};
    }
};

void expect_near(const Tensor& x, const Tensor& expected, double tolerance, const char* what) {
    const std::vector<float> a = x.to_vector<float>(), b = expected.to_vector<float>();
    ASSERT_EQ(a.size(), b.size());
    for (size_t i = 0; i < a.size(); ++i) ASSERT_NEAR(a[i], b[i], tolerance) << what << " at " << i;
}

class HybridDecodeOnGpu : public OnGpu {};

// From few sequences, a query head a block at a time, to many, where blocks go from one sequence to the next and the heads of a group
// go together. What folds, does so alike.
TEST_F(HybridDecodeOnGpu, HopperAgreesWithTheFormForAnyDevice) {
    const Step probe({0}, 128, DType::f32, DType::f32);
    if (!kernels::hopper_applies({probe.q.view()})) GTEST_SKIP() << "no code for sm_90a";
    for (const int64_t batch : {3, 9, 17, 70}) {
        std::vector<int64_t> at;  // idle ones, beginners, some at the start of a block, where keys join the state
        for (int64_t i = 0; i < batch; ++i) at.push_back(i % 7 == 2 ? -1 : i % 5 == 0 ? 64 * i : 37 * i - 20);
        for (const int64_t d : {64, 128})
            for (const DType state : {DType::f32, DType::bf16})
                for (const DType weights : {DType::f32, DType::bf16}) {
                    const Step expected(at, d, state, weights), step(at, d, state, weights);
                    const Stream stream = current_stream(kGpu);
                    ASSERT_TRUE(kernels::hybrid_decode_packed(expected.args(), stream));
                    ASSERT_TRUE(kernels::hybrid_decode_sm90(step.args(), stream));
                    expect_near(step.y, expected.y, 0.008, "y");  // an ulp of numbers up to 2
                    for (const auto& [x, same] : {std::pair{step.s, expected.s},
                                                  {step.z, expected.z},
                                                  {step.ring_k, expected.ring_k},
                                                  {step.ring_v, expected.ring_v}})
                        expect_near(x, same, 0, "what the step leaves");
                }
    }
}

}  // namespace
}  // namespace lc::test
