// What linear attention must satisfy beyond its op cases: the chunked, the recurrent and the quadratic form are one
// function, and a sequence cut anywhere with its state carried over is the whole sequence.
#include "autograd/ops/linear_attention.h"

#include <gtest/gtest.h>

#include <cmath>

#include "autograd/engine.h"
#include "autograd/node.h"
#include "core/parallel.h"
#include "core/rng.h"
#include "kernels/hybrid_attention/hybrid_attention_naive.h"
#include "kernels/linear_attention/linear_attention_chunked.h"
#include "kernels/linear_attention/linear_attention_naive.h"

namespace {

using lc::DType;
using lc::Shape;
using lc::Tensor;
using lc::kernels::FeatureActivation;
using lc::kernels::LinearAttentionBackward;
using lc::kernels::LinearAttentionForward;

Tensor normal(const Shape& shape, uint64_t stream, double scale = 1, DType dtype = DType::f64) {
    const lc::Random random(7, stream);
    std::vector<double> values(static_cast<size_t>(lc::numel_of(shape)));
    for (size_t i = 0; i < values.size(); ++i) values[i] = scale * random.normal(i);
    return Tensor::from(values, shape).to(dtype);
}

// Largest difference relative to the largest value of `b`.
double difference(const Tensor& a, const Tensor& b) {
    EXPECT_EQ(a.shape(), b.shape());
    const auto x = a.to_vector<double>(), y = b.to_vector<double>();
    double worst = 0, scale = 1e-300;
    for (size_t i = 0; i < x.size(); ++i) {
        EXPECT_TRUE(std::isfinite(x[i])) << i;
        worst = std::max(worst, std::abs(x[i] - y[i]));
        scale = std::max(scale, std::abs(y[i]));
    }
    return worst / scale;
}

struct Problem {
    int64_t heads = 4, kv_heads = 2, states = 4, length = 130, d = 8, f = 4;
    FeatureActivation activation = FeatureActivation::softmax_dim;
    DType dtype = DType::f64;
    int64_t features() const { return lc::kernels::feature_size(activation, f); }
};

// Inputs, results and gradients of one call, in the order of the contract.
struct Tensors {
    Tensor q, k, v, wq, bq, wk, bk, s, z, y, s_out, z_out, dy, ds_out, dz_out;
    std::vector<Tensor> grads;  // dq, dk, dv, dwq, dbq, dwk, dbk, ds, dz
    FeatureActivation activation;

    explicit Tensors(const Problem& p) : activation(p.activation) {
        const Shape queries{2, p.heads, p.length, p.d}, keys{2, p.kv_heads, p.length, p.d};
        const Shape big{2, p.states, p.features(), p.d}, small{2, p.states, p.features()};
        uint64_t stream = 0;
        const auto make = [&](const Shape& shape, double scale = 1) { return normal(shape, stream++, scale, p.dtype); };
        q = make(queries), k = make(keys), v = make(keys), dy = make(queries);
        wq = make({p.heads, p.d, p.f}, 0.5), wk = make({p.states, p.d, p.f}, 0.5);
        bq = make({p.heads, p.f}), bk = make({p.states, p.f});
        s = make(big), ds_out = make(big), dz_out = make(small);
        z = Tensor::full(small, 0.5, p.dtype);
        y = Tensor::empty(queries, p.dtype), s_out = Tensor::empty(big, p.dtype), z_out = Tensor::empty(small, p.dtype);
        for (const Tensor* x : {&q, &k, &v, &wq, &bq, &wk, &bk, &s, &z})
            grads.push_back(Tensor::empty(x->shape(), p.dtype));
    }
    LinearAttentionForward forward() const {
        return {.q = q.view(),
                .k = k.view(),
                .v = v.view(),
                .wq = wq.view(),
                .bq = bq.view(),
                .wk = wk.view(),
                .bk = bk.view(),
                .s_in = s.view(),
                .z_in = z.view(),
                .y = y.view(),
                .s_out = s_out.view(),
                .z_out = z_out.view(),
                .activation = activation};
    }
    LinearAttentionBackward backward() const {
        const auto slot = [&](int i) { return lc::GradSlot{.view = grads[i].view()}; };
        return {.forward = forward(),
                .dy = dy.view(),
                .ds_out = ds_out.view(),
                .dz_out = dz_out.view(),
                .dq = slot(0),
                .dk = slot(1),
                .dv = slot(2),
                .dwq = slot(3),
                .dbq = slot(4),
                .dwk = slot(5),
                .dbk = slot(6),
                .ds_in = slot(7),
                .dz_in = slot(8)};
    }
    // All pairs of positions: the hybrid's oracle without a window.
    void run_quadratic() const {
        const lc::kernels::LinearizedSpec spec{.window = lc::kernels::WindowKind::none, .activation = activation};
        const lc::kernels::HybridAttentionForward call{.q = q.view(),
                                                       .k = k.view(),
                                                       .v = v.view(),
                                                       .wq = wq.view(),
                                                       .bq = bq.view(),
                                                       .wk = wk.view(),
                                                       .bk = bk.view(),
                                                       .s_in = s.view(),
                                                       .z_in = z.view(),
                                                       .y = y.view(),
                                                       .s_out = s_out.view(),
                                                       .z_out = z_out.view(),
                                                       .spec = spec};
        lc::kernels::hybrid_attention_forward_naive<double>(call);
        const LinearAttentionBackward b = backward();
        lc::kernels::hybrid_attention_backward_naive<double>({.forward = call,
                                                              .dy = b.dy,
                                                              .ds_out = b.ds_out,
                                                              .dz_out = b.dz_out,
                                                              .dq = b.dq,
                                                              .dk = b.dk,
                                                              .dv = b.dv,
                                                              .dwq = b.dwq,
                                                              .dbq = b.dbq,
                                                              .dwk = b.dwk,
                                                              .dbk = b.dbk,
                                                              .ds_in = b.ds_in,
                                                              .dz_in = b.dz_in});
    }
    void run_recurrent() const {
        lc::kernels::linear_attention_forward_naive<double>(forward());
        lc::kernels::linear_attention_backward_naive<double>(backward());
    }
    void run_chunked() const {
        lc::kernels::linear_attention_forward_chunked<double>(forward());
        lc::kernels::linear_attention_backward_chunked<double>(backward());
    }
};

void expect_equal(const Tensors& got, const Tensors& expected, const std::string& what) {
    const double bound = 1e-12;
    EXPECT_LT(difference(got.y, expected.y), bound) << what;
    EXPECT_LT(difference(got.s_out, expected.s_out), bound) << what;
    EXPECT_LT(difference(got.z_out, expected.z_out), bound) << what;
    for (size_t i = 0; i < got.grads.size(); ++i)
        EXPECT_LT(difference(got.grads[i], expected.grads[i]), bound) << what << ", gradient " << i;
}

TEST(LinearAttention, ChunkedEqualsRecurrentEqualsQuadratic) {
    std::vector<Problem> problems;
    for (const int64_t length : {1, 63, 64, 65, 130, 200}) problems.push_back({.length = length});
    for (const auto activation : {FeatureActivation::softmax_half, FeatureActivation::exp_dim,
                                  FeatureActivation::exp_half, FeatureActivation::relu, FeatureActivation::pos_elu})
        problems.push_back({.f = 8, .activation = activation});
    for (const int64_t kv_heads : {1, 2, 4})
        for (const int64_t states : {kv_heads, int64_t{4}})
            problems.push_back({.kv_heads = kv_heads, .states = states, .length = 97, .d = 16, .f = 16});
    for (const Problem& p : problems) {
        const std::string what = fmt::format("T={} D={} H_kv={} Hs={} {}", p.length, p.d, p.kv_heads, p.states,
                                             lc::kernels::name_of(p.activation));
        const Tensors quadratic(p), recurrent(p), chunked(p);
        quadratic.run_quadratic(), recurrent.run_recurrent(), chunked.run_chunked();
        expect_equal(recurrent, quadratic, "recurrent against quadratic, " + what);
        expect_equal(chunked, quadratic, "chunked against quadratic, " + what);
    }
}

TEST(LinearAttention, ChunkedAddsToGradientsThatAreThere) {
    const Tensors plain({}), added({});
    plain.run_chunked();
    for (Tensor grad : added.grads) grad.fill(2);
    lc::kernels::linear_attention_forward_chunked<double>(added.forward());
    LinearAttentionBackward call = added.backward();
    for (lc::GradSlot* slot :
         {&call.dq, &call.dk, &call.dv, &call.dwq, &call.dbq, &call.dwk, &call.dbk, &call.ds_in, &call.dz_in})
        slot->mode = lc::GradWrite::Accumulate;
    lc::kernels::linear_attention_backward_chunked<double>(call);
    for (size_t i = 0; i < plain.grads.size(); ++i) {
        auto expected = plain.grads[i].to_vector<double>();
        for (double& value : expected) value += 2;
        EXPECT_LT(difference(added.grads[i], Tensor::from(expected, plain.grads[i].shape())), 1e-14) << i;
    }
}

// One call of the op per piece of the sequence, the state carried from one to the next.
struct Whole {
    Tensor y, s, z;
    std::vector<Tensor> grads;
};

Whole run_in_pieces(const Tensors& t, const std::vector<int64_t>& cuts) {
    std::vector<Tensor> leaves{t.q, t.k, t.v, t.wq, t.bq, t.wk, t.bk, t.s, t.z};
    for (Tensor& leaf : leaves) leaf = leaf.clone(), lc::set_requires_grad(leaf);
    // Pieces are leaves of their own (views of the whole), so that no other op takes part.
    std::vector<Tensor> pieces, roots, cotangents;
    lc::LinearState state{leaves[7], leaves[8]};
    const lc::FeatureMaps maps{leaves[3], leaves[4], leaves[5], leaves[6]};
    const lc::kernels::LinearizedSpec spec{.window = lc::kernels::WindowKind::none, .activation = t.activation};
    const Whole whole{.y = Tensor::empty(t.q.shape(), t.q.dtype()), .s = {}, .z = {}, .grads = {}};
    Whole result = whole;
    int64_t begin = 0;
    for (const int64_t end : cuts) {
        const auto piece = [&](int i) {
            Tensor part = leaves[i].sliced(2, begin, end - begin);
            lc::set_requires_grad(part);
            pieces.push_back(part);
            return part;
        };
        const Tensor q = piece(0), k = piece(1), v = piece(2);
        const lc::AttentionResult out = lc::linear_attention(q, k, v, maps, spec, state, true);
        result.y.sliced(2, begin, end - begin).copy_from(out.y);
        roots.push_back(out.y), cotangents.push_back(t.dy.sliced(2, begin, end - begin));
        state = out.state;
        begin = end;
    }
    roots.insert(roots.end(), {state.s, state.z}), cotangents.insert(cotangents.end(), {t.ds_out, t.dz_out});
    lc::backward(roots, cotangents);
    result.s = state.s.detach(), result.z = state.z.detach();
    for (int i = 0; i < 3; ++i) {
        const Tensor grad = Tensor::empty(leaves[i].shape(), leaves[i].dtype());
        begin = 0;
        for (size_t n = 0; n < cuts.size(); begin = cuts[n++])
            grad.sliced(2, begin, cuts[n] - begin).copy_from(lc::grad_of(pieces[3 * n + i]));
        result.grads.push_back(grad);
    }
    for (size_t i = 3; i < leaves.size(); ++i) result.grads.push_back(lc::grad_of(leaves[i]));
    return result;
}

TEST(LinearAttention, ASequenceCutAnywhereEqualsTheWhole) {
    // f64 runs the recurrent form, f32 the chunked one.
    for (const auto& [dtype, bound] : {std::pair{DType::f64, 1e-12}, {DType::f32, 2e-5}}) {
        const Tensors t({.states = 2, .length = 131, .dtype = dtype});
        const Whole whole = run_in_pieces(t, {131});
        for (const std::vector<int64_t>& cuts : {std::vector<int64_t>{1, 131},
                                                 {63, 131},
                                                 {64, 131},
                                                 {65, 131},
                                                 {130, 131},
                                                 {1, 2, 3, 70, 131},
                                                 {64, 128, 131}}) {
            const Whole pieces = run_in_pieces(t, cuts);
            const std::string what = fmt::format("{} cut at {}", lc::name_of(dtype), cuts[0]);
            EXPECT_LT(difference(pieces.y, whole.y), bound) << what;
            EXPECT_LT(difference(pieces.s, whole.s), bound) << what;
            EXPECT_LT(difference(pieces.z, whole.z), bound) << what;
            for (size_t i = 0; i < whole.grads.size(); ++i)
                EXPECT_LT(difference(pieces.grads[i], whole.grads[i]), bound) << what << ", gradient " << i;
        }
    }
}

TEST(LinearAttention, LaterTokensDoNotMatter) {
    const Tensors t({.dtype = DType::f32}), other({.dtype = DType::f32});
    Tensor(other.k.sliced(2, 71, 59)).fill(3);
    Tensor(other.v.sliced(2, 71, 59)).fill(-5);
    const lc::kernels::LinearizedSpec spec{.window = lc::kernels::WindowKind::none};
    const auto first_rows = [&](const Tensors& x) {
        return lc::linear_attention(x.q, x.k, x.v, {x.wq, x.bq, x.wk, x.bk}, spec)
            .y.sliced(2, 0, 71)
            .to_vector<float>();
    };
    EXPECT_EQ(first_rows(t), first_rows(other));
}

TEST(LinearAttention, ResultsDoNotDependOnTheNumberOfThreads) {
    const Tensors t({.dtype = DType::f32});
    const int before = lc::num_threads();
    lc::set_num_threads(1);
    const Whole one = run_in_pieces(t, {130});
    lc::set_num_threads(4);
    const Whole four = run_in_pieces(t, {130});
    lc::set_num_threads(before);
    EXPECT_EQ(one.y.to_vector<float>(), four.y.to_vector<float>());
    for (size_t i = 0; i < one.grads.size(); ++i)
        EXPECT_EQ(one.grads[i].to_vector<float>(), four.grads[i].to_vector<float>()) << i;
}

TEST(LinearAttention, DeadFeaturesGiveFiniteResults) {
    // Every relu is off: all features are 1e-12 and their products 1e-24, far below eps.
    Tensors t({.activation = FeatureActivation::relu, .dtype = DType::f32});
    t.bq.fill(-1000), t.bk.fill(-1000), t.s.fill(0), t.z.fill(0);
    const Whole result = run_in_pieces(t, {130});
    for (const float value : result.y.to_vector<float>()) EXPECT_LT(std::abs(value), 1e-6f);
    for (const Tensor& grad : result.grads)
        for (const float value : grad.to_vector<float>()) ASSERT_TRUE(std::isfinite(value));
}

TEST(LinearAttention, RefusesWhatItCannotRun) {
    const Tensors t({});
    const lc::FeatureMaps maps{t.wq, {}, t.wk, {}};
    const lc::kernels::LinearizedSpec linear{.window = lc::kernels::WindowKind::none};
    EXPECT_THROW(lc::linear_attention(t.q, t.k, t.v, maps, {}), lc::Error) << "a spec with a window";
    EXPECT_THROW(lc::linear_attention(t.q, t.k, t.v.sliced(2, 0, 7), maps, linear), lc::Error) << "v shorter than k";
    EXPECT_THROW(lc::linear_attention(t.q, t.k, t.v, maps, linear, {t.s, {}}), lc::Error) << "s without z";
    EXPECT_THROW(lc::linear_attention(t.q, t.k, t.v, {t.wq, {}, t.wk.sliced(0, 0, 3), {}}, linear), lc::Error)
        << "3 k-maps";
}

}  // namespace
