// Gradients of softmax attention on a busy GPU: the bits of one call are those of the next. A copy that overtook the reads of what it
// overwrites made one call in twenty differ in a few rows of dq.
#include "kernels/softmax_attention/softmax_attention.h"

#include <cstring>

#include "core/random_tensor.h"
#include "tests/gpu/gpu.h"

namespace lc {
namespace {

using test::kGpu;

class SoftmaxAttentionOnGpu : public test::OnGpu {};

struct Gradients {
    std::vector<float> dq, dk, dv;
};

Gradients backward_of(const kernels::SoftmaxAttentionForward& forward, const Tensor& dy) {
    const auto like = [](const TensorView& view) { return Tensor::empty(view.shape(), DType::f32, kGpu); };
    const Tensor dq = like(forward.q), dk = like(forward.k), dv = like(forward.v);
    kernels::softmax_attention_backward({.forward = forward,
                                         .dy = dy.view(),
                                         .dq = {dq.view(), GradWrite::Overwrite},
                                         .dk = {dk.view(), GradWrite::Overwrite},
                                         .dv = {dv.view(), GradWrite::Overwrite}},
                                        current_stream(kGpu));
    return {dq.to_vector<float>(), dk.to_vector<float>(), dv.to_vector<float>()};
}

bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
    return std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

void expect_calls_alike(int64_t batch, int64_t heads, int64_t kv_heads, int64_t length, int64_t head_dim, int calls,
                        int64_t window = 0) {
    const auto random = [&](int64_t count, uint64_t seed) {
        return normal_tensor({batch, count, length, head_dim}, 1, Random(seed, 0), DType::bf16, kGpu);
    };
    const Tensor q = random(heads, 1), k = random(kv_heads, 2), v = random(kv_heads, 3), dy = random(heads, 4);
    const Tensor y = Tensor::empty(q.shape(), DType::bf16, kGpu);
    const Tensor lse = Tensor::empty({batch, heads, length}, DType::f32, kGpu);
    const kernels::SoftmaxAttentionForward forward{
        .q = q.view(), .k = k.view(), .v = v.view(), .y = y.view(), .lse = lse.view(), .window = window};
    kernels::softmax_attention_forward(forward, current_stream(kGpu));
    const Gradients first = backward_of(forward, dy);
    int dq = 0, dk = 0, dv = 0;
    for (int call = 1; call < calls; ++call) {
        const Gradients next = backward_of(forward, dy);
        dq += !same_bits(next.dq, first.dq), dk += !same_bits(next.dk, first.dk), dv += !same_bits(next.dv, first.dv);
    }
    EXPECT_EQ(dq + dk + dv, 0) << "of " << calls - 1 << " calls differ in dq " << dq << ", dk " << dk << ", dv " << dv
                               << " (length " << length << ", heads of " << head_dim << ", window " << window << ")";
}

TEST_F(SoftmaxAttentionOnGpu, GradientsOfManyCallsAreBitwiseEqual) {
    expect_calls_alike(8, 16, 4, 1024, 128, 100);
    expect_calls_alike(8, 16, 4, 1024, 64, 30);
    expect_calls_alike(1, 8, 2, 4160, 128, 30);
    expect_calls_alike(2, 16, 4, 2048, 128, 30, 300);
}

}  // namespace
}  // namespace lc
