// One small problem of hybrid attention in all its forms, for tests that compare them.
#pragma once
#include <gtest/gtest.h>

#include "autograd/engine.h"
#include "autograd/node.h"
#include "autograd/ops/hybrid_attention.h"
#include "core/rng.h"
#include "kernels/common/dispatch.h"
#include "kernels/hybrid_attention/hybrid_attention.h"
#include "kernels/hybrid_decode/hybrid_decode.h"

namespace lc::testing {

using kernels::LinearizedSpec;
using kernels::state_end;
using kernels::WindowKind;

inline Tensor normal(const lc::Shape& shape, uint64_t stream, DType dtype, double scale = 1) {
    const lc::Random random(11, stream);
    std::vector<float> values(static_cast<size_t>(lc::numel_of(shape)));
    for (size_t i = 0; i < values.size(); ++i) values[i] = static_cast<float>(scale * random.normal(i));
    return Tensor::from(values, shape).to(dtype);
}

inline double difference(const Tensor& a, const Tensor& b) {
    EXPECT_EQ(a.shape(), b.shape());
    const auto x = a.to_vector<double>(), y = b.to_vector<double>();
    double worst = 0;
    for (size_t i = 0; i < x.size(); ++i)
        worst = std::max(worst, std::isnan(x[i] - y[i]) ? 1e300 : std::abs(x[i] - y[i]));
    return worst;
}

inline std::vector<LinearizedSpec> windows(std::initializer_list<int64_t> sizes) {
    std::vector<LinearizedSpec> specs;
    for (const WindowKind kind : {WindowKind::terraced, WindowKind::sliding})
        for (const int64_t w : sizes) specs.push_back({.window = kind, .window_size = w});
    return specs;
}

inline std::string name_of(const LinearizedSpec& spec) {
    return fmt::format("{} w={}", spec.window == WindowKind::terraced ? "terraced" : "sliding", spec.window_size);
}

// Two query heads over one KV head, a map each.
struct Problem {
    Tensor q, k, v, wq, wk, mix_logit, dy;

    explicit Problem(int64_t length, DType dtype = DType::f64, int64_t d = 4, int64_t f = 3)
        : q(normal({1, 2, length, d}, 0, dtype)),
          k(normal({1, 1, length, d}, 1, dtype)),
          v(normal({1, 1, length, d}, 2, dtype)),
          wq(normal({2, d, f}, 3, dtype, 0.7)),
          wk(normal({2, d, f}, 4, dtype, 0.7)),
          mix_logit(normal({2}, 5, dtype)),
          dy(normal({1, 2, length, d}, 6, dtype)) {}

    Problem part(int64_t begin, int64_t length, int64_t key_begin) const {
        Problem p = *this;
        p.q = q.sliced(2, begin, length), p.dy = dy.sliced(2, begin, length);
        p.k = k.sliced(2, key_begin, begin + length - key_begin),
        p.v = v.sliced(2, key_begin, begin + length - key_begin);
        return p;
    }
    Problem first(int64_t length) const { return part(0, length, 0); }
    int64_t features() const { return 2 * wq.size(2); }
};

struct Outputs {
    Tensor y, s, z;
};

inline lc::kernels::HybridAttentionForward arguments(const Problem& p, const LinearizedSpec& spec, const Outputs& out,
                                                     const Outputs& past = {}, int64_t first_key = 0) {
    return {.q = p.q.view(),
            .k = p.k.view(),
            .v = p.v.view(),
            .wq = p.wq.view(),
            .bq = {},
            .wk = p.wk.view(),
            .bk = {},
            .mix_logit = p.mix_logit.view(),
            .s_in = past.s.view(),
            .z_in = past.z.view(),
            .y = out.y.view(),
            .s_out = out.s.view(),
            .z_out = out.z.view(),
            .first_key = first_key,
            .spec = spec};
}

inline Outputs empty_outputs(const Problem& p) {
    return {Tensor::empty(p.q.shape(), p.q.dtype()), Tensor::empty({1, 2, p.features(), p.q.size(3)}, p.q.dtype()),
            Tensor::empty({1, 2, p.features()}, p.q.dtype())};
}

inline Outputs quadratic(const Problem& p, const LinearizedSpec& spec, const Outputs& past = {},
                         int64_t first_key = 0) {
    const lc::kernels::ScopedNaive naive;
    const Outputs out = empty_outputs(p);
    lc::kernels::hybrid_attention_forward(arguments(p, spec, out, past, first_key), lc::current_stream(lc::Device{}));
    return out;
}

inline Outputs blocks(const Problem& p, const LinearizedSpec& spec, const Outputs& past = {}, int64_t first_key = 0) {
    const Outputs out = empty_outputs(p);
    lc::kernels::hybrid_attention_forward_blocks(arguments(p, spec, out, past, first_key));
    return out;
}

// Decoding with what a prefill of `length` tokens left behind.
struct Decoder {
    LinearizedSpec spec;
    Tensor ring_k, ring_v, s, z;
    int64_t position;

    Decoder(const Problem& p, const LinearizedSpec& window, const Outputs& prefill, int64_t length)
        : spec(window), position(length) {
        const int64_t slots = spec.window == WindowKind::terraced ? 2 * spec.window_size : spec.window_size;
        ring_k = Tensor::zeros({1, 1, slots, p.k.size(3)}, p.k.dtype()), ring_v = ring_k.clone();
        s = prefill.s ? prefill.s.clone() : Tensor::zeros({1, 2, p.features(), p.k.size(3)}, p.k.dtype());
        z = prefill.z ? prefill.z.clone() : Tensor::zeros({1, 2, p.features()}, p.k.dtype());
        for (int64_t t = state_end(spec, length); t < length; ++t) {
            ring_k.sliced(2, t % slots, 1).copy_from(p.k.sliced(2, t, 1));
            ring_v.sliced(2, t % slots, 1).copy_from(p.v.sliced(2, t, 1));
        }
    }
    // y [1,2,1,D] of the token at `position`.
    Tensor step(const Problem& p) {
        const Tensor y = Tensor::empty({1, 2, 1, p.q.size(3)}, p.q.dtype());
        const Tensor positions = Tensor::full({1}, static_cast<double>(position), lc::DType::i64);
        lc::kernels::hybrid_decode({.q = p.q.sliced(2, position, 1).view(),
                                    .k = p.k.sliced(2, position, 1).view(),
                                    .v = p.v.sliced(2, position, 1).view(),
                                    .wq = p.wq.view(),
                                    .bq = {},
                                    .wk = p.wk.view(),
                                    .bk = {},
                                    .mix_logit = p.mix_logit.view(),
                                    .ring_k = ring_k.view(),
                                    .ring_v = ring_v.view(),
                                    .s = s.view(),
                                    .z = z.view(),
                                    .y = y.view(),
                                    .positions = positions.view(),
                                    .spec = spec},
                                   lc::current_stream(lc::Device{}));
        ++position;
        return y;
    }
};

using Gradients = std::vector<Tensor>;  // dq dk dv dwq dwk dmix_logit

inline Gradients gradients_of(const Problem& p, const LinearizedSpec& spec, bool in_blocks) {
    const Outputs out = quadratic(p, spec);
    Gradients g;
    for (const Tensor* x : {&p.q, &p.k, &p.v, &p.wq, &p.wk, &p.mix_logit})
        g.push_back(Tensor::empty(x->shape(), x->dtype()));
    const auto slot = [&g](int i) { return lc::GradSlot{g[i].view(), lc::GradWrite::Overwrite}; };
    const lc::kernels::HybridAttentionBackward args{.forward = arguments(p, spec, out),
                                                    .dy = p.dy.view(),
                                                    .ds_out = {},
                                                    .dz_out = {},
                                                    .dq = slot(0),
                                                    .dk = slot(1),
                                                    .dv = slot(2),
                                                    .dwq = slot(3),
                                                    .dwk = slot(4),
                                                    .dmix_logit = slot(5)};
    const lc::kernels::ScopedNaive naive;
    if (in_blocks)
        lc::kernels::hybrid_attention_backward_blocks(args);
    else
        lc::kernels::hybrid_attention_backward(args, lc::current_stream(lc::Device{}));
    return g;
}

inline double difference(const Gradients& a, const Gradients& b) {
    double worst = 0;
    for (size_t i = 0; i < a.size(); ++i) worst = std::max(worst, difference(a[i], b[i]));
    return worst;
}

inline void require_grads(Problem& p) {
    for (Tensor* x : {&p.q, &p.k, &p.v, &p.wq, &p.wk, &p.mix_logit}) lc::set_requires_grad(*x);
}

inline lc::AttentionResult attend(const Problem& p, const LinearizedSpec& spec, const lc::HybridPast& past,
                                  bool want_state) {
    return lc::hybrid_attention(p.q, p.k, p.v, {.wq = p.wq, .bq = {}, .wk = p.wk, .bk = {}}, p.mix_logit, spec, past,
                                want_state);
}

}  // namespace lc::testing
