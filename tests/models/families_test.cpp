// Every family through every path: logits and greedy text of transformers, gradients, decoding, files.
#include <gmock/gmock.h>

#include <cmath>
#include <numeric>

#include "autograd/engine.h"
#include "autograd/grad_mode.h"
#include "autograd/ops/linear_cross_entropy.h"
#include "autograd/ops/views.h"
#include "core/rng.h"
#include "models/export.h"
#include "models/generation/generator.h"
#include "models/model_source.h"
#include "models/run.h"
#include "tests/models/families.h"
#include "tests/models/tiny.h"

namespace lc::models {
namespace {

using test::Family;
using test::family_decoder;
using test::relative_error;

AttentionSpec spec_of(AttentionKind kind, kernels::WindowKind window) {
    AttentionSpec spec;
    spec.kind = kind, spec.window = window, spec.window_size = 4;
    return spec;
}
const std::pair<const char*, AttentionSpec> kSpecs[] = {
    {"terraced", spec_of(AttentionKind::hybrid, kernels::WindowKind::terraced)},
    {"sliding", spec_of(AttentionKind::hybrid, kernels::WindowKind::sliding)},
    {"linear", spec_of(AttentionKind::linear, kernels::WindowKind::terraced)},
};

class Families : public testing::TestWithParam<std::string> {
  protected:
    Decoder decoder(DType dtype) const { return family_decoder(family_, {.device = {}, .dtype = dtype}); }
    // With maps and LoRA pairs that are not at their start.
    Decoder linearized(DType dtype, const AttentionSpec& spec) const {
        Decoder decoder = this->decoder(dtype);
        decoder.linearize(spec, 1);
        test::disturb(decoder.feature_map_parameters(), 0.3);
        decoder.add_lora({.rank = 2, .alpha = 4}, 2);
        test::disturb(decoder.lora_parameters(), 0.1);
        return decoder;
    }
    Tensor ids() const { return ids(std::ssize(family_.ids)); }
    Tensor ids(int64_t length) const { return Tensor::from(std::span(family_.ids).first(length), {1, length}); }
    const Family family_ = test::read_family(GetParam());
};

// The reference ran in f64, but for cosines and sines, which transformers makes in f32.
TEST_P(Families, LogitsOfTransformers) {
    const NoGrad no_grad;
    for (const auto& [dtype, tolerance] : {std::pair{DType::f32, 1e-4}, {DType::f64, 2e-5}}) {
        const Tensor logits = decoder(dtype).logits(ids(), {});
        const int64_t length = logits.size(1);
        ASSERT_EQ(std::ssize(family_.norms), length);
        for (int64_t t = 0; t < length; ++t) {
            const auto row = logits.sliced(1, t, 1).to_vector<double>();
            const double norm = std::sqrt(std::inner_product(row.begin(), row.end(), row.begin(), 0.0));
            EXPECT_NEAR(norm, family_.norms[static_cast<size_t>(t)], tolerance) << t;
        }
        const auto last = logits.sliced(1, length - 1, 1).to_vector<double>();
        for (size_t v = 0; v < family_.last_logits.size(); ++v)
            EXPECT_NEAR(last[v], family_.last_logits[v], tolerance) << v;
    }
}

// Through the cache, which windows shorten.
TEST_P(Families, GreedyTextOfTransformers) {
    const Decoder decoder = this->decoder(DType::f32);
    const Generator generator(decoder, 16);
    DecodeState state(decoder, AttentionMode::Softmax);
    Tensor logits = generator.advance(state, ids());
    std::vector<int32_t> text;
    while (true) {
        const auto values = logits.to_vector<float>();
        text.push_back(static_cast<int32_t>(std::max_element(values.begin(), values.end()) - values.begin()));
        if (text.size() == family_.greedy.size()) break;
        logits = generator.advance(state, Tensor::full({1, 1}, text.back(), DType::i32));
    }
    EXPECT_EQ(text, family_.greedy);
}

TEST_P(Families, DecodingIsTheFullForward) {
    const NoGrad no_grad;
    constexpr int64_t kLength = 18;
    for (auto [name, spec] : kSpecs) {
        spec.softmax_layers = {1};  // keys and values grow beside states
        const Decoder decoder = linearized(DType::f64, spec);
        for (const AttentionMode mode : {AttentionMode::Softmax, AttentionMode::Linearized}) {
            const Tensor full = decoder.logits(ids(kLength), {.mode = mode});
            const Generator generator(decoder, 5);
            for (const int64_t prompt : {3, 11}) {
                DecodeState state(decoder, mode), other(decoder, mode);
                generator.feed(other, ids(prompt));
                generator.feed(state, ids(prompt));
                for (int64_t t = prompt; t < kLength; ++t) {
                    const Tensor wanted = full.sliced(1, t, 1).reshaped({1, full.size(2)});
                    EXPECT_LT(relative_error(generator.advance(state, ids().sliced(1, t, 1)), wanted), 1e-11)
                        << name << ", token " << t << " after " << prompt;
                    const int32_t id = family_.ids[static_cast<size_t>(t)];
                    DecodeState* const rows[] = {&other};
                    EXPECT_LT(relative_error(generator.step(rows, std::span(&id, 1), 2), wanted), 1e-11)
                        << name << ", token " << t << " after " << prompt << ", in a batch";
                }
            }
        }
    }
}

// d/ds loss(parameters + s direction) at 0, by the tape and by central differences.
void check_directional(const std::vector<NamedTensor>& parameters, const std::function<Tensor()>& loss) {
    backward(loss());
    double analytic = 0;
    std::vector<std::vector<double>> start, direction;
    uint64_t stream = 0;
    for (const NamedTensor& parameter : parameters) {
        const Random random(9, stream++);
        start.push_back(parameter.tensor.to_vector<double>());
        std::vector<double>& d = direction.emplace_back(start.back().size());
        for (size_t i = 0; i < d.size(); ++i) d[i] = random.normal(i);
        const auto gradient = grad_of(parameter.tensor).to_vector<double>();
        const double share = std::inner_product(d.begin(), d.end(), gradient.begin(), 0.0);
        EXPECT_NE(share, 0) << parameter.name;
        analytic += share;
    }
    const NoGrad no_grad;
    const auto at = [&](double s) {
        for (size_t p = 0; p < parameters.size(); ++p) {
            std::vector<double> values = start[p];
            for (size_t i = 0; i < values.size(); ++i) values[i] += s * direction[p][i];
            Tensor target = parameters[p].tensor;
            target.copy_from(Tensor::from(values, target.shape()));
        }
        return loss().item();
    };
    constexpr double kStep = 1e-6;
    const double numeric = (8 * (at(kStep) - at(-kStep)) - (at(2 * kStep) - at(-2 * kStep))) / (12 * kStep);
    EXPECT_NEAR(analytic, numeric, 1e-6 * std::abs(numeric)) << parameters[0].name;
}

TEST_P(Families, GradientsOfBothTrainings) {
    constexpr int64_t kLength = 16;
    const Tensor labels = Tensor::from(std::span(family_.ids).subspan(1, kLength), {kLength});
    const auto loss = [&](const Decoder& decoder, AttentionMode mode) {
        const Tensor rows =
            reshape(decoder.hidden(ids(kLength), {.mode = mode}), {kLength, decoder.config().hidden_size});
        return linear_cross_entropy(rows, decoder.lm_head(), labels, decoder.head_bias());
    };
    const Decoder whole = family_decoder(family_, {.device = {}, .dtype = DType::f64}, Decoder::Weights::Trainable);
    check_directional(whole.base_parameters(), [&] { return loss(whole, AttentionMode::Softmax); });
    Decoder adapted = linearized(DType::f64, kSpecs[0].second);
    auto parameters = adapted.lora_parameters();
    for (const NamedTensor& parameter : adapted.feature_map_parameters()) parameters.push_back(parameter);
    adapted.set_trainable(parameters);
    check_directional(parameters, [&] { return loss(adapted, AttentionMode::Linearized); });
}

TEST_P(Families, FilesThereAndBack) {
    const NoGrad no_grad;
    const test::TemporaryDirectory model, run, out;
    const Decoder base = decoder(DType::f32);
    save_base(base, model.path(), DType::f32);
    const DecoderConfig& config = family_.config;
    const Decoder again = Decoder::load(model.path());
    EXPECT_EQ(again.config().block, config.block);
    EXPECT_EQ(again.config().rope, config.rope);
    EXPECT_EQ(again.config().window_layers, config.window_layers);
    EXPECT_EQ(again.config().num_parameters(), config.num_parameters());
    EXPECT_EQ(again.logits(ids(), {}).to_vector<float>(), base.logits(ids(), {}).to_vector<float>());

    Decoder tuned = linearized(DType::f32, kSpecs[0].second);
    const RunInfo info{.base_model = "tiny", .base_hash = model_hash(model.path()), .step = 1, .validation_loss = {}};
    save_feature_maps(tuned, run.path(), info);
    save_adapter(tuned, run.path(), info);
    const auto logits = [&](const Decoder& d) { return d.logits(ids(), {.mode = mode_of(d)}).to_vector<float>(); };
    EXPECT_EQ(logits(load_model({.directory = model.path()}, run.path(), {})), logits(tuned));
    export_merged(model.path(), run.path(), out.path() / "merged");
    tuned.merge_lora();
    EXPECT_EQ(logits(load_model({.directory = out.path() / "merged"}, {})), logits(tuned));
}

INSTANTIATE_TEST_SUITE_P(All, Families, testing::ValuesIn(test::family_names()), [](const auto& p) { return p.param; });

// A window of 20 hides keys from the 21st position on.
TEST(SlidingWindow, IsIgnoredOnDemand) {
    const NoGrad no_grad;
    Family family = test::read_family("mistral_v01");
    const Tensor ids = Tensor::from(family.ids, {1, std::ssize(family.ids)});
    const Placement place{.device = {}, .dtype = DType::f64};
    const Tensor windowed = family_decoder(family, place).logits(ids, {});
    family.config.ignore_sliding_window = true;
    const Tensor ignored = family_decoder(family, place).logits(ids, {});
    family.config.ignore_sliding_window = false, family.config.sliding_window = 0, family.config.window_layers = {};
    EXPECT_EQ(ignored.to_vector<double>(), family_decoder(family, place).logits(ids, {}).to_vector<double>());
    const auto same = [&](int64_t t) {
        return windowed.sliced(1, t, 1).to_vector<double>() == ignored.sliced(1, t, 1).to_vector<double>();
    };
    EXPECT_TRUE(same(19));
    EXPECT_FALSE(same(20));

    const test::TemporaryDirectory model;
    family = test::read_family("mistral_v01");
    save_base(family_decoder(family, {}), model.path(), DType::f32);
    const auto loaded = [&](bool ignore) {
        return load_model({.directory = model.path(), .ignore_sliding_window = ignore}, {}).window_of(0);
    };
    EXPECT_EQ(loaded(false), 20);
    EXPECT_EQ(loaded(true), 0);
}

TEST(PhiNames, AdaptersSpeakOfDense) {
    const Family family = test::read_family("phi15");
    Decoder decoder = family_decoder(family, {});
    decoder.add_lora({.rank = 2, .targets = {"q_proj", "dense"}}, 1);
    EXPECT_EQ(decoder.lora_parameters()[2].name, "base_model.model.model.layers.0.self_attn.dense.lora_A.weight");
    const test::TemporaryDirectory run;
    save_adapter(decoder, run.path(), {});
    const io::PeftAdapter adapter = io::read_peft_adapter(run.path());
    EXPECT_EQ(adapter.target_modules, (std::vector<std::string>{"q_proj", "dense"}));
    EXPECT_TRUE(adapter.modules.contains("layers.2.self_attn.dense"));
    Decoder llama = family_decoder(test::read_family("llama2"), {});
    EXPECT_THAT(test::error_of(ErrorKind::BadInput, [&] { apply_run(llama, run.path(), ""); }),
                testing::HasSubstr("'dense'; only q_proj, k_proj, v_proj, o_proj"));
}

}  // namespace
}  // namespace lc::models
