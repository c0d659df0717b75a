// States in bf16: the same arithmetic as on wide ones, rounded where a block of keys joins.
#pragma once
#include <gtest/gtest.h>

#include "core/random_tensor.h"
#include "kernels/hybrid_decode/hybrid_decode.h"

namespace lc::test {

struct NarrowStateCase {
    kernels::WindowKind window = kernels::WindowKind::terraced;
    int64_t w = 4, d = 8, f = 4, heads = 4, kv_heads = 2, maps = 4;
    std::vector<int64_t> positions = {-1, 0, 3, 8, 9, 20, 24};
};

// Three steps of every sequence on states of bf16, and each of them on wide copies of these: the same states, once rounded, and the
// same y where nothing was folded.
inline void expect_wide_arithmetic(const NarrowStateCase& o, Device device, DType dtype) {
    const int64_t batch = std::ssize(o.positions);
    const kernels::LinearizedSpec spec{.window = o.window, .window_size = o.w};
    const int64_t features = kernels::feature_size(spec.activation, o.f);
    const int64_t slots = o.window == kernels::WindowKind::terraced ? 2 * o.w : o.w;
    uint64_t stream = 0;
    const auto random = [&](const Shape& shape, DType type, double deviation = 1) {
        return normal_tensor(shape, deviation, Random(3, stream++), DType::f32).to(type).to(device);
    };
    const Tensor wq = random({o.heads, o.d, o.f}, DType::f32, 0.3), wk = random({o.maps, o.d, o.f}, DType::f32, 0.3),
                 mix = random({o.heads}, DType::f32);
    Tensor s = random({batch, o.maps, features, o.d}, DType::bf16),
           z = Tensor::full({batch, o.maps, features}, 3, DType::bf16, device);
    Tensor ring_k = random({batch, o.kv_heads, slots, o.d}, dtype),
           ring_v = random({batch, o.kv_heads, slots, o.d}, dtype);
    std::vector<int64_t> positions = o.positions;
    for (int step = 0; step < 3; ++step) {
        const Tensor q = random({batch, o.heads, 1, o.d}, dtype), k = random({batch, o.kv_heads, 1, o.d}, dtype),
                     v = random({batch, o.kv_heads, 1, o.d}, dtype), at = Tensor::from(positions, {batch}).to(device);
        const auto run = [&](const Tensor& s_, const Tensor& z_, const Tensor& rk, const Tensor& rv) {
            const Tensor y = Tensor::empty(q.shape(), dtype, device);
            kernels::hybrid_decode({.q = q.view(),
                                    .k = k.view(),
                                    .v = v.view(),
                                    .wq = wq.view(),
                                    .wk = wk.view(),
                                    .mix_logit = mix.view(),
                                    .ring_k = rk.view(),
                                    .ring_v = rv.view(),
                                    .s = s_.view(),
                                    .z = z_.view(),
                                    .y = y.view(),
                                    .positions = at.view(),
                                    .spec = spec},
                                   current_stream(device));
            return y.to_vector<float>();
        };
        const Tensor wide_s = s.to(DType::f32), wide_z = z.to(DType::f32), before = s.clone();
        const std::vector<float> expected = run(wide_s, wide_z, ring_k.clone(), ring_v.clone());
        const std::vector<float> y = run(s, z, ring_k, ring_v);
        for (size_t i = 0; i < y.size(); ++i) {
            const int64_t position = positions[i / static_cast<size_t>(o.heads * o.d)];
            const bool folds = kernels::state_end(spec, position) != kernels::state_end(spec, position + 1);
            ASSERT_NEAR(y[i], expected[i], position >= 0 && folds ? 0.02 : 0) << "step " << step << " at " << position;
        }
        EXPECT_EQ(s.to_vector<float>(), wide_s.to(DType::bf16).to_vector<float>());
        EXPECT_EQ(z.to_vector<float>(), wide_z.to(DType::bf16).to_vector<float>());
        EXPECT_EQ(s.sliced(0, 0, 1).to_vector<float>(), before.sliced(0, 0, 1).to_vector<float>()) << "an idle one";
        if (step == 0) {
            EXPECT_NE(s.to_vector<float>(), before.to_vector<float>()) << "some fold";
        }
        for (int64_t& position : positions) position += position >= 0;
    }
}

}  // namespace lc::test
