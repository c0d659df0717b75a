// The window of the authors' code: against its masks, weight by weight; and in generation.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "autograd/grad_mode.h"
#include "autograd/ops/feature_map.h"
#include "io/json.h"
#include "models/attention/reference_attention.h"
#include "models/generation/generator.h"
#include "tests/models/tiny.h"

namespace lc::models {
namespace {

using kernels::LinearizedSpec;
using kernels::WindowKind;
using test::error_of;
using test::relative_error;
using test::tiny_ids;

constexpr int64_t kHeads = 2, kDim = 4, kFeatures = 3;

Tensor random(const Shape& shape, uint64_t stream) {
    const Random values(7, stream);
    std::vector<double> data(static_cast<size_t>(numel_of(shape)));
    for (size_t i = 0; i < data.size(); ++i) data[i] = values.normal(i);
    return Tensor::from(data, shape);
}

// Their masks, of side ceil(L/w) w and cropped at the front: 1 in the two newest blocks of a row for softmax, 1 in all older ones
// for the linear part; when there is one block only, the latter holds every key.
struct Masks {
    int64_t length, w, cut = (length + w - 1) / w * w - length;
    bool window(int64_t i, int64_t j) const { return j <= i && (j + cut) / w >= (i + cut) / w - 1; }
    bool linear(int64_t i, int64_t j) const { return length <= w ? j <= i : (j + cut) / w <= (i + cut) / w - 2; }
};

// y of one head by the formula; everything [L,*] in row-major order.
std::vector<double> expected(const Masks& masks, const std::vector<double>& q, const std::vector<double>& k,
                             const std::vector<double>& v, const std::vector<double>& phi_q,
                             const std::vector<double>& phi_k, double gamma, double lambda) {
    const auto dot = [](const std::vector<double>& a, int64_t i, const std::vector<double>& b, int64_t j, int64_t n) {
        double sum = 0;
        for (int64_t x = 0; x < n; ++x) sum += a[static_cast<size_t>(i * n + x)] * b[static_cast<size_t>(j * n + x)];
        return sum;
    };
    const int64_t features = std::ssize(phi_q) / masks.length;
    std::vector<double> y(v.size());
    for (int64_t i = 0; i < masks.length; ++i) {
        double highest = -1e300, z = 0;
        for (int64_t j = 0; j <= i; ++j)
            if (masks.window(i, j)) highest = std::max(highest, dot(q, i, k, j, kDim) / std::sqrt(1.0 * kDim));
        for (int64_t j = 0; j <= i; ++j) {
            double weight = 0;
            if (masks.window(i, j)) weight += gamma * std::exp(dot(q, i, k, j, kDim) / std::sqrt(1.0 * kDim) - highest);
            if (masks.linear(i, j)) weight += lambda * dot(phi_q, i, phi_k, j, features);
            z += weight;
            for (int64_t x = 0; x < kDim; ++x)
                y[static_cast<size_t>(i * kDim + x)] += weight * v[static_cast<size_t>(j * kDim + x)];
        }
        for (int64_t x = 0; x < kDim; ++x) y[static_cast<size_t>(i * kDim + x)] /= z;
    }
    return y;
}

TEST(ReferenceWindow, IsTheirMasksAtEveryLength) {
    const NoGrad no_grad;
    const Tensor wq = random({kHeads, kDim, kFeatures}, 1), wk = random({kHeads, kDim, kFeatures}, 2);
    const std::vector<double> logits{-1, 0.5};
    for (const bool affine : {false, true})
        for (const int64_t w : {1, 3, 4, 8})
            for (int64_t length = 1; length <= 27; ++length) {
                const Shape shape{1, kHeads, length, kDim};
                const Tensor q = random(shape, 3), k = random({1, 1, length, kDim}, 4),
                             v = random({1, 1, length, kDim}, 5);
                const LinearizedSpec spec{.window = WindowKind::sliding, .window_size = w, .affine = affine};
                const Tensor y = reference_attention(q, k, v, {wq, {}, wk, {}}, Tensor::from(logits, {kHeads}), spec);
                ASSERT_EQ(y.shape(), shape);
                const Tensor phi_q = feature_map(q, wq, {}, spec.activation, false);
                const Tensor phi_k = feature_map(k, wk, {}, spec.activation, false);
                for (int64_t h = 0; h < kHeads; ++h) {
                    const double gamma = 1 / (1 + std::exp(-logits[static_cast<size_t>(h)]));
                    const auto head = [&](const Tensor& x) { return x.sliced(1, h, 1).to_vector<double>(); };
                    const auto wanted = expected({length, w}, head(q), k.to_vector<double>(), v.to_vector<double>(),
                                                 head(phi_q), head(phi_k), gamma, affine ? 1 - gamma : 1);
                    EXPECT_THAT(head(y), testing::Pointwise(testing::DoubleNear(1e-12), wanted))
                        << "L=" << length << " w=" << w << " head " << h;
                }
            }
}

Decoder decoder_of(const AttentionSpec& spec) {
    Decoder decoder = test::tiny_decoder(test::tiny_config(true, 1), DType::f64);
    decoder.linearize(spec, 1);
    test::disturb(decoder.feature_map_parameters(), 0.3);
    return decoder;
}

// Of one layer, whose keys do not depend on its attention: the prompt's last logits are those of the whole sequence, and each
// further token's those of a sliding window.
TEST(ReferenceWindow, GeneratesAsTheAuthorsDo) {
    const NoGrad no_grad;
    const AttentionSpec sliding{.window = WindowKind::sliding, .window_size = 4};
    AttentionSpec reference = sliding;
    reference.reference = true;
    const Decoder theirs = decoder_of(reference), slides = decoder_of(sliding);
    const Decoder::ForwardOptions linearized{.mode = AttentionMode::Linearized};
    constexpr int64_t kLength = 17;
    const Tensor ids = tiny_ids(2, kLength);
    const Tensor rows = slides.logits(ids, linearized);
    for (int64_t prompt = 1; prompt < kLength; ++prompt) {
        const Generator generator(theirs, 64);
        DecodeState state(theirs, AttentionMode::Linearized, 2);
        const Tensor first = ids.sliced(1, 0, prompt), whole = theirs.logits(first, linearized);
        EXPECT_LT(relative_error(generator.advance(state, first), whole.sliced(1, prompt - 1, 1)), 1e-12) << prompt;
        for (int64_t t = prompt; t < kLength; ++t)
            EXPECT_LT(relative_error(generator.advance(state, ids.sliced(1, t, 1)), rows.sliced(1, t, 1)), 1e-12)
                << prompt << " and " << t;
    }
    EXPECT_GT(relative_error(theirs.logits(ids, linearized), rows), 1e-6) << "the two windows are different models";
}

TEST(ReferenceWindow, InFiles) {
    AttentionSpec spec{.window = WindowKind::sliding, .window_size = 5};
    spec.reference = true;
    EXPECT_EQ(spec.to_json()["window"], "reference");
    EXPECT_EQ(AttentionSpec::from_json(spec.to_json(), "file"), spec);
    spec.window = WindowKind::terraced;
    EXPECT_THAT(error_of(ErrorKind::Usage, [&] { validate(spec, 6, 2); }), testing::HasSubstr("reference"));
}

}  // namespace
}  // namespace lc::models
