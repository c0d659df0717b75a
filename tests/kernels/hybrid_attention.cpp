// The quadratic, the block and the recurrent form of hybrid attention are one function, and cuts are free.
#include "core/parallel.h"
#include "kernels/hybrid_attention/hybrid_fused.h"
#include "tests/kernels/hybrid_problem.h"

namespace lc::testing {
namespace {

TEST(HybridForms, QuadraticBlockAndRecurrentAgreeForEveryLength) {
    const int64_t longest = 200;
    const Problem p(longest);
    for (const LinearizedSpec& spec : windows({4, 16, 64})) {
        const Outputs whole = quadratic(p, spec);
        Decoder decoder(p, spec, {}, 0);
        for (int64_t n = 1; n <= longest; ++n) {
            const Outputs exact = quadratic(p.first(n), spec), chunked = blocks(p.first(n), spec);
            const Tensor token = decoder.step(p);
            ASSERT_LT(difference(chunked.y, exact.y), 1e-12) << name_of(spec) << " length " << n;
            ASSERT_LT(difference(token, exact.y.sliced(2, n - 1, 1)), 1e-12) << name_of(spec) << " length " << n;
            ASSERT_LT(difference(exact.y, whole.y.sliced(2, 0, n)), 1e-12) << "later tokens are not seen";
            ASSERT_LT(difference(chunked.s, exact.s), 1e-12) << name_of(spec) << " length " << n;
            ASSERT_LT(difference(decoder.s, exact.s), 1e-12) << name_of(spec) << " length " << n;
            ASSERT_LT(difference(chunked.z, exact.z) + difference(decoder.z, exact.z), 1e-12) << name_of(spec);
        }
    }
}

// The GPU's fused form: B x H = items thread blocks where they fill the device, segments of four blocks or more where they do not.
TEST(HybridFused, CutsSequencesOnlyWhereMultiprocessorsAreIdle) {
    struct {
        int64_t items, blocks, segments;
    } const cases[] = {{256, 16, 1}, {133, 256, 1},  {132, 256, 1}, {67, 256, 1}, {66, 256, 2},
                       {32, 512, 4}, {32, 16, 4},    {32, 15, 3},   {32, 8, 2},   {32, 7, 1},
                       {2, 13, 3},   {1, 4096, 132}, {1, 1, 1}};
    for (const auto& c : cases)
        EXPECT_EQ(kernels::hybrid_fused_segments(c.items, c.blocks, 132), c.segments) << c.items << " x " << c.blocks;
    for (int64_t items = 1; items < 200; ++items)
        for (int64_t blocks = 1; blocks < 300; ++blocks) {
            const int64_t segments = kernels::hybrid_fused_segments(items, blocks, 108);
            ASSERT_GE(segments, 1);
            if (segments == 1) continue;
            ASSERT_LE(items * segments, 108) << "all segments run at once";
            ASSERT_GE(blocks / segments, 4) << items << " x " << blocks;
        }
}

TEST(HybridForms, QuadraticAndBlockGradientsAgree) {
    const Problem p(200);
    for (const LinearizedSpec& spec : windows({4, 16, 64, 100}))
        for (int64_t n = 1; n <= 200; n += n < 20 ? 1 : 13)
            ASSERT_LT(difference(gradients_of(p.first(n), spec, true), gradients_of(p.first(n), spec, false)), 1e-12)
                << name_of(spec) << " length " << n;
}

TEST(HybridForms, PrefillThenDecodeEqualsTheWholeForEveryRemainder) {
    const int64_t length = 52;
    const Problem p(length);
    for (const LinearizedSpec& spec : windows({4, 16})) {
        const Outputs whole = quadratic(p, spec);
        for (int64_t n = 1; n < length; ++n) {
            Decoder decoder(p, spec, blocks(p.first(n), spec), n);
            for (int64_t t = n; t < length; ++t)
                ASSERT_LT(difference(decoder.step(p), whole.y.sliced(2, t, 1)), 1e-12)
                    << name_of(spec) << " prefill " << n << " token " << t;
        }
    }
}

TEST(HybridForms, ChunksWithCarriedStateEqualTheWholeAtEveryCut) {
    const int64_t length = 45;
    const Problem p(length);
    for (const LinearizedSpec& spec : windows({4, 16})) {
        const Outputs whole = quadratic(p, spec);
        for (int64_t n = 1; n < length; ++n) {
            const int64_t kept = state_end(spec, n);
            const Outputs first = blocks(p.first(n), spec);
            for (const auto& form : {&quadratic, &blocks}) {
                const Outputs second = form(p.part(n, length - n, kept), spec, first, kept);
                ASSERT_LT(difference(second.y, whole.y.sliced(2, n, length - n)), 1e-12)
                    << name_of(spec) << " cut " << n;
                ASSERT_LT(difference(second.s, whole.s) + difference(second.z, whole.z), 1e-12) << name_of(spec);
            }
        }
    }
}

// Gradients of the whole, from two chunks on one tape: the state carries those of the past.
Gradients gradients_of_chunks(const Problem& p, const LinearizedSpec& spec, int64_t cut) {
    const int64_t length = p.q.size(2), kept = state_end(spec, cut);
    Problem a = p.first(cut);
    require_grads(a);
    Problem b = p.part(cut, length - cut, kept);
    b.wq = a.wq, b.wk = a.wk, b.mix_logit = a.mix_logit;
    for (Tensor* x : {&b.q, &b.k, &b.v}) lc::set_requires_grad(*x);
    const lc::AttentionResult first = attend(a, spec, {}, true);
    const lc::AttentionResult second = attend(b, spec, {.state = first.state, .first_key = kept}, false);
    const Tensor roots[] = {first.y, second.y}, cotangents[] = {a.dy, b.dy};
    lc::backward(roots, cotangents);
    Gradients g;
    for (const auto& [whole, x, y, offset] :
         {std::tuple{&p.q, &a.q, &b.q, cut}, {&p.k, &a.k, &b.k, kept}, {&p.v, &a.v, &b.v, kept}}) {
        std::vector<double> sum(static_cast<size_t>(whole->numel()));
        for (const auto& [grad, at] : {std::pair{lc::grad_of(*x), int64_t{0}}, {lc::grad_of(*y), offset}}) {
            const auto values = grad.contiguous().to_vector<double>();
            const int64_t heads = grad.size(1), rows = grad.size(2), d = grad.size(3);
            for (int64_t i = 0; i < grad.numel(); ++i) {
                const int64_t h = i / d / rows, row = i / d % rows;
                EXPECT_LT(h, heads);
                sum[(h * length + at + row) * d + i % d] += values[i];
            }
        }
        g.push_back(Tensor::from(sum, whole->shape()));
    }
    for (const Tensor* x : {&a.wq, &a.wk, &a.mix_logit}) g.push_back(lc::grad_of(*x).to(DType::f64));
    return g;
}

TEST(HybridForms, GradientsOfChunksEqualThoseOfTheWholeAtEveryCut) {
    const int64_t length = 29;
    const Problem p(length), p32(length, DType::f32);
    for (const LinearizedSpec& spec : windows({4, 9})) {
        const Gradients whole = gradients_of(p, spec, false);
        for (int64_t cut = 1; cut < length; ++cut) {
            ASSERT_LT(difference(gradients_of_chunks(p, spec, cut), whole), 1e-12) << name_of(spec) << " cut " << cut;
            // In f32 the block form runs; gradients here are of size 1 to 30.
            ASSERT_LT(difference(gradients_of_chunks(p32, spec, cut), whole), 1e-4) << name_of(spec) << " cut " << cut;
        }
    }
}

TEST(HybridDecode, TerracedStateIsWrittenOnceABlock) {
    const int64_t length = 150, w = 16;
    for (const DType dtype : {DType::f32, DType::f64}) {
        const Problem p(length, dtype);
        const LinearizedSpec spec{.window = WindowKind::terraced, .window_size = w};
        Decoder decoder(p, spec, {}, 0);
        int64_t writes = 0;
        for (int64_t t = 0; t < length; ++t) {
            const auto before = decoder.s.to_vector<double>();
            decoder.step(p);
            const bool written = decoder.s.to_vector<double>() != before;
            EXPECT_EQ(written, t % w == 0 && t >= 2 * w) << "token " << t;
            writes += written;
        }
        EXPECT_EQ(writes, (length - 1) / w - 1);
    }
}

TEST(HybridDecode, LongFastDecodeStaysWithTheExactForm) {
    const int64_t length = 700;
    const Problem p(length), p32(length, DType::f32);
    for (const LinearizedSpec& spec : windows({16, 64})) {
        const Outputs whole = quadratic(p, spec);
        Decoder decoder(p32, spec, {}, 0);
        double worst = 0;
        for (int64_t t = 0; t < length; ++t)
            worst = std::max(worst, difference(decoder.step(p32), whole.y.sliced(2, t, 1)));
        EXPECT_LT(worst, 1e-5) << name_of(spec);
    }
}

TEST(HybridAttention, ResultsDoNotDependOnTheNumberOfThreads) {
    const int before = lc::num_threads();
    for (const LinearizedSpec& spec : windows({16})) {
        std::vector<Gradients> runs;
        for (const int threads : {1, 4}) {
            lc::set_num_threads(threads);
            Problem p(300, DType::f32, 16, 16);
            p.q = normal({2, 2, 300, 16}, 0, DType::f32), p.dy = normal({2, 2, 300, 16}, 6, DType::f32);
            p.k = normal({2, 1, 300, 16}, 1, DType::f32), p.v = normal({2, 1, 300, 16}, 2, DType::f32);
            require_grads(p);
            lc::backward(attend(p, spec, {}, false).y, p.dy);
            runs.emplace_back();
            for (const Tensor* x : {&p.q, &p.k, &p.v, &p.wq, &p.wk, &p.mix_logit})
                runs.back().push_back(lc::grad_of(*x));
        }
        EXPECT_EQ(difference(runs[0], runs[1]), 0.0) << name_of(spec);
    }
    lc::set_num_threads(before);
}

TEST(HybridAttention, RefusesWhatItCannotCompute) {
    const Problem p(20);
    const LinearizedSpec terraced{.window = WindowKind::terraced, .window_size = 4};
    const Outputs state = blocks(p, terraced);
    const lc::LinearState given{state.s, state.z};
    // Query at position 19 needs keys from 12 on; these begin at 16.
    EXPECT_THROW(attend(p.part(19, 1, 16), terraced, {.state = given, .first_key = 16}, false), lc::Error);
    EXPECT_THROW(attend(p.part(19, 1, 10), terraced, {.state = given, .first_key = 10}, false), lc::Error)
        << "not a multiple";
    EXPECT_THROW(attend(p.part(19, 1, 12), terraced, {.first_key = 12}, false), lc::Error) << "no state";
    EXPECT_THROW(attend(p, {.window = WindowKind::none}, {}, false), lc::Error);
    EXPECT_THROW(attend(p, {.window = WindowKind::sliding, .window_size = 0}, {}, false), lc::Error);
    Problem skip = p;
    EXPECT_THROW(attend(skip, {.window_size = 4, .skip = true}, {}, false), lc::Error) << "skip needs F = D";
    EXPECT_NO_THROW(attend(p.part(19, 1, 12), terraced, {.state = given, .first_key = 12}, false));
}

}  // namespace
}  // namespace lc::testing
