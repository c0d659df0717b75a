// The stages on a tiny model: weighting of micro-batches and chunks, learning, and what the loop does with bad steps.
#include <gtest/gtest.h>

#include <cmath>
#include <numeric>

#include "autograd/node.h"
#include "autograd/ops/linear_cross_entropy.h"
#include "tests/train/tiny.h"
#include "train/attention_transfer.h"
#include "train/next_token.h"

namespace lc::train {
namespace {

using models::AttentionMode;
using models::NamedTensor;
using test::ScratchDir;
using test::TinyWorld;

std::vector<std::vector<float>> gradients(const std::vector<ParameterGroup>& groups) {
    std::vector<std::vector<float>> result;
    for (const ParameterGroup& group : groups)
        for (const NamedTensor& parameter : group.parameters)
            result.push_back(grad_of(parameter.tensor).to_vector<float>());
    return result;
}

// The same sums in another order: relative to the largest gradient, a few roundings of f32 through a handful of ops.
void expect_close(const std::vector<std::vector<float>>& a, const std::vector<std::vector<float>>& b) {
    ASSERT_EQ(a.size(), b.size());
    for (size_t p = 0; p < a.size(); ++p) {
        float largest = 0;
        for (float value : b[p]) largest = std::max(largest, std::abs(value));
        for (size_t i = 0; i < a[p].size(); ++i)
            ASSERT_NEAR(a[p][i], b[p][i], 2e-5f * largest + 1e-9f) << p << " " << i;
    }
}

class Stages : public ::testing::Test {
  protected:
    void SetUp() override {
        const io::Tokenizer tokenizer = io::Tokenizer::load(TinyWorld::get().tokenizer());
        text_ = load_training_data({.file = TinyWorld::get().text(), .seq_len = 32}, tokenizer, 300);
        alpaca_ = load_training_data({.file = TinyWorld::get().alpaca(), .seq_len = 64}, tokenizer, 300);
        decoder_.linearize({.window_size = 4}, 1);
        decoder_.add_lora({.rank = 2}, 1);
    }
    static std::vector<Batch> batches(const PackedChunks& data, int64_t count, int64_t size) {
        ChunkStream stream(data, 1, true);
        std::vector<Batch> result;
        for (int64_t i = 0; i < count; ++i) result.push_back(stream.next(size));
        return result;
    }
    // Gradients and loss of the stage for 6 chunks, cut into micro-batches in different ways.
    void expect_same_however_cut(Stage& stage, const PackedChunks& data) {
        const auto groups = stage.groups();
        std::vector<std::vector<std::vector<float>>> all;
        std::vector<double> losses;
        for (int64_t size : {6, 3, 1}) {
            for (const ParameterGroup& group : groups)
                for (NamedTensor parameter : group.parameters) set_grad(parameter.tensor, {});
            losses.push_back(stage.accumulate(batches(data, 6 / size, size)).loss);
            all.push_back(gradients(groups));
        }
        for (size_t i = 1; i < all.size(); ++i) {
            expect_close(all[i], all[0]);
            EXPECT_NEAR(losses[i], losses[0], 1e-5 * std::abs(losses[0]));
        }
    }

    TrainingData text_, alpaca_;
    models::Decoder decoder_ = models::Decoder::load(TinyWorld::get().model());
};

TEST_F(Stages, TransferAccumulatesLikeOneBatch) {
    AttentionTransfer stage(decoder_, text_.validation, 2);
    expect_same_however_cut(stage, text_.train);
}

// What three bits of fraction do to a teacher of two layers, to what its maps learn, and to its weights: a little, a little, nothing.
TEST_F(Stages, TransferInFp8IsNearlyTransfer) {
    decoder_.linearize({.window_size = 4}, 1);  // drops the adapters
    std::vector<std::vector<float>> weights;
    for (const NamedTensor& parameter : decoder_.base_parameters())
        weights.push_back(parameter.tensor.to_vector<float>());
    const auto batch = batches(text_.train, 1, 6);
    std::vector<StepLoss> losses;
    std::vector<std::vector<float>> slopes;
    for (const bool fp8 : {false, true}) {
        AttentionTransfer stage(decoder_, text_.validation, 2, fp8);
        for (const ParameterGroup& group : stage.groups())
            for (NamedTensor parameter : group.parameters) set_grad(parameter.tensor, {});
        losses.push_back(stage.accumulate(batch));
        slopes.emplace_back();
        for (const std::vector<float>& of_one : gradients(stage.groups()))
            slopes.back().insert(slopes.back().end(), of_one.begin(), of_one.end());
    }
    EXPECT_NE(losses[1].loss, losses[0].loss);
    for (size_t l = 0; l < 2; ++l) EXPECT_NEAR(losses[1].layer_losses[l] / losses[0].layer_losses[l], 1, 0.15) << l;
    const auto dot = [&](size_t a, size_t b) {
        return std::inner_product(slopes[a].begin(), slopes[a].end(), slopes[b].begin(), 0.0);
    };
    EXPECT_GT(dot(0, 1) / std::sqrt(dot(0, 0) * dot(1, 1)), 0.98);
    const auto after = decoder_.base_parameters();
    for (size_t i = 0; i < weights.size(); ++i)
        EXPECT_EQ(after[i].tensor.to_vector<float>(), weights[i]) << after[i].name;
}

TEST_F(Stages, NextTokenAccumulatesLikeOneBatchWhenAllIsLabelled) {
    NextTokenStage stage("finetune", decoder_, decoder_.lora_parameters(), text_.validation,
                         {.forward = {.mode = AttentionMode::Linearized}});
    expect_same_however_cut(stage, text_.train);
}

TEST_F(Stages, NextTokenAccumulatesLikeOneBatchWhenChunksDiffer) {
    const auto probe = batches(alpaca_.train, 1, 6);
    ASSERT_NE(std::ranges::min(probe[0].predicted), std::ranges::max(probe[0].predicted));
    for (bool weighted : {false, true}) {
        NextTokenStage stage("finetune", decoder_, decoder_.lora_parameters(), alpaca_.validation,
                             {.forward = {.mode = AttentionMode::Linearized}, .token_weighted = weighted});
        expect_same_however_cut(stage, alpaca_.train);
    }
}

// Mean over a chunk's labelled tokens, then over chunks; or over all labelled tokens: from the NLL of every row.
TEST_F(Stages, NextTokenWeightsChunksAsSaid) {
    const auto batch = batches(alpaca_.train, 1, 5);
    const Tensor hidden = decoder_.hidden(batch[0].ids, {.mode = AttentionMode::Linearized});
    const auto nll = token_nll(hidden.reshaped({5 * 64, 32}), decoder_.lm_head(), shifted_labels(batch[0].labels))
                         .to_vector<double>();
    double of_chunks = 0, of_tokens = 0;
    for (size_t b = 0; b < 5; ++b) {
        const double sum =
            std::accumulate(nll.begin() + static_cast<long>(b) * 64, nll.begin() + static_cast<long>(b + 1) * 64, 0.0);
        of_chunks += sum / static_cast<double>(batch[0].predicted[b]) / 5;
        of_tokens += sum / static_cast<double>(batch[0].predicted_total());
    }
    ASSERT_GT(std::abs(of_chunks - of_tokens), 1e-4);
    for (bool weighted : {false, true}) {
        NextTokenStage stage("finetune", decoder_, decoder_.lora_parameters(), alpaca_.validation,
                             {.forward = {.mode = AttentionMode::Linearized}, .token_weighted = weighted});
        EXPECT_NEAR(stage.accumulate(batch).loss, weighted ? of_tokens : of_chunks, 1e-5);
    }
}

// The teacher hands its own output on: layer 1's loss does not change when layer 0's maps do.
TEST_F(Stages, TransferIsTeacherForced) {
    AttentionTransfer stage(decoder_, text_.validation, 2);
    const Validation before = stage.evaluate({});
    decoder_.layer(0).maps.wq.fill(0.3);
    const Validation after = stage.evaluate({});
    EXPECT_NE(after.layer_losses[0], before.layer_losses[0]);
    EXPECT_EQ(after.layer_losses[1], before.layer_losses[1]);
    EXPECT_NEAR(before.loss, 1000 * (before.layer_losses[0] + before.layer_losses[1]) / 2, 1e-9);
}

// The loss is what the unfused path says: attention both ways, mean squared difference.
TEST_F(Stages, TransferLossIsTheDifferenceOfBothAttentions) {
    AttentionTransfer stage(decoder_, text_.validation, 2);
    const Tensor ids = make_batch(text_.validation, std::vector<int64_t>{0, 1}).ids;
    PackedChunks two = text_.validation;
    two.truncate(2);
    const Validation validation = AttentionTransfer(decoder_, two, 2).evaluate({});
    const NoGrad frozen;
    Tensor h = decoder_.embed(ids);
    for (int64_t l = 0; l < 2; ++l) {
        const models::Qkv qkv = decoder_.project(l, h);
        const Tensor teacher = decoder_.attend(l, qkv, AttentionMode::Softmax);
        const auto y = teacher.to_vector<double>(),
                   s = decoder_.attend(l, qkv, AttentionMode::Linearized).to_vector<double>();
        double sum = 0;
        for (size_t i = 0; i < y.size(); ++i) sum += (y[i] - s[i]) * (y[i] - s[i]);
        EXPECT_NEAR(validation.layer_losses[static_cast<size_t>(l)], sum / static_cast<double>(y.size()), 1e-6);
        h = decoder_.finish(l, h, teacher);
    }
}

TEST_F(Stages, SoftmaxLayersAreLeftOut) {
    decoder_.linearize({.window_size = 4, .softmax_layers = {1}}, 1);
    AttentionTransfer stage(decoder_, text_.validation, 2);
    EXPECT_EQ(stage.groups().size(), 1u);
    EXPECT_EQ(stage.evaluate({}).layer_losses.size(), 1u);
    models::Decoder plain = models::Decoder::load(TinyWorld::get().model());
    EXPECT_THROW(AttentionTransfer(plain, text_.validation, 2), Error);
}

TEST_F(Stages, LossesFall) {
    for (const bool transfer : {true, false}) {
        RunContext context;
        LoopOptions options{.steps = 25, .batch_size = 4, .accumulate = 1, .eval_every = 5, .log_every = 0};
        options.schedule = {.kind = ScheduleKind::constant, .base = transfer ? 1e-2 : 3e-3};
        std::unique_ptr<Stage> stage;
        if (transfer)
            stage = std::make_unique<AttentionTransfer>(decoder_, text_.validation, 4);
        else
            stage = std::make_unique<NextTokenStage>("finetune", decoder_, decoder_.lora_parameters(), text_.validation,
                                                     NextTokenOptions{.forward = {.mode = AttentionMode::Linearized}});
        ChunkStream stream(text_.train, 1, true);
        TrainLoop loop(*stage, stream, options, context);
        const auto result = loop.run();
        ASSERT_TRUE(result.has_value());
        EXPECT_LT(result->best_loss, (transfer ? 0.85 : 0.95) * result->first_loss) << stage->name();
        EXPECT_NEAR(stage->evaluate({}).loss, result->best_loss, 1e-12) << "the best parameters are loaded";
    }
}

// A stage of one parameter whose gradient and loss the test decides.
class Scripted final : public Stage {
  public:
    Scripted() : parameter_{"layers.0.p", Tensor::full({1}, 1.0, DType::f32)} { set_requires_grad(parameter_.tensor); }
    std::string name() const override { return "pretrain"; }
    std::vector<ParameterGroup> groups() const override { return {{"layers.0", {parameter_}}}; }
    StepLoss accumulate(std::span<const Batch>) override {
        const double grad = grads.at(static_cast<size_t>(step_++));
        set_grad(parameter_.tensor, Tensor::full({1}, grad, DType::f32));
        return {grad, {}};
    }
    Validation evaluate(const StopCheck&) override {
        seen.push_back(parameter_.tensor.item());
        return {.loss = validation.at(seen.size() - 1)};
    }
    std::vector<double> grads, validation, seen;
    NamedTensor parameter_;

  private:
    int64_t step_ = 0;
};

class Loop : public ::testing::Test {
  protected:
    Loop() {
        Packer packer(2);
        packer.add({std::vector<int32_t>(41, 1), std::vector<int32_t>(41, 1)});
        data_ = packer.finish();
        options_.batch_size = options_.accumulate = 1;
        options_.log_every = 0;
        options_.schedule = {.kind = ScheduleKind::constant, .base = 0.1};
    }
    std::optional<LoopResult> run() {
        ChunkStream stream(data_, 1, true);
        return TrainLoop(stage_, stream, options_, context_).run();
    }
    PackedChunks data_;
    LoopOptions options_;
    RunContext context_;
    Scripted stage_;
};

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

TEST_F(Loop, SkipsBadStepsAndCountsThem) {
    stage_.grads = {1, kNan, 1, kNan, kNan};
    stage_.validation = {9, 8, 7, 6, 5, 4};
    options_.steps = 5, options_.eval_every = 1, options_.max_skips = 2;
    const auto result = run();
    ASSERT_TRUE(result.has_value());
    EXPECT_EQ(result->skipped, 3);
    EXPECT_EQ(stage_.seen[1], stage_.seen[2]) << "the bad step changed nothing";
    EXPECT_NE(stage_.seen[2], stage_.seen[3]);
    EXPECT_EQ(stage_.seen[3], stage_.seen[5]);
}

TEST_F(Loop, TooManyBadStepsInARowEndTheRun) {
    stage_.grads = {1, kNan, kNan, 1, kNan, kNan, kNan, 1};
    stage_.validation = {9, 8};
    options_.steps = 8, options_.eval_every = 0, options_.max_skips = 2;
    io::test::expect_refused([&] { run(); }, {"pretrain", "3 steps in a row", "step 7"}, ErrorKind::Numerics);
}

TEST_F(Loop, LoadsTheBestAndNanIsNever) {
    stage_.grads = {1, 1, 1, 1};
    stage_.validation = {9, 5, 7, kNan, 6};
    options_.steps = 4, options_.eval_every = 1;
    const auto result = run();
    EXPECT_EQ(result->best_step, 1);
    EXPECT_EQ(result->best_loss, 5);
    EXPECT_EQ(result->first_loss, 9);
    EXPECT_EQ(stage_.parameter_.tensor.item(), stage_.seen[1]);
}

TEST_F(Loop, StopsEarlyWithoutGain) {
    stage_.grads = std::vector<double>(10, 1.0);
    stage_.validation = {9, 5, 6, 7, 8, 4};
    options_.steps = 10, options_.eval_every = 1, options_.early_stop = 3;
    EXPECT_EQ(run()->steps, 4);
}

TEST_F(Loop, NoStepsGiveTheStart) {
    stage_.validation = {9};
    options_.steps = 0;
    const auto result = run();
    EXPECT_EQ(result->best_loss, 9);
    EXPECT_EQ(stage_.parameter_.tensor.item(), 1.0);
}

TEST_F(Loop, ScopesByLayerNeedLayerLosses) {
    options_.selection = Scope::layer;
    EXPECT_THROW(run(), Error);
    options_.selection = Scope::global, options_.plateau = Scope::layer;
    EXPECT_THROW(run(), Error);
}

TEST(Selection, ByLayerKeepsTheBestOfEach) {
    std::vector<ParameterGroup> groups;
    for (int i = 0; i < 2; ++i)
        groups.push_back(
            {fmt::format("layers.{}", i), {{fmt::format("layers.{}.p", i), Tensor::full({1}, 0, DType::f32)}}});
    Selection selection(groups, Scope::layer);
    const auto at = [&](int64_t step, double value, double a, double b) {
        for (const auto& group : groups) Tensor(group.parameters[0].tensor).fill(value);
        return selection.observe(step, {.loss = a + b, .layer_losses = {a, b}});
    };
    EXPECT_TRUE(at(0, 10, 5, 5));
    EXPECT_TRUE(at(1, 11, 4, 6));
    EXPECT_TRUE(at(2, 12, 7, 3));
    EXPECT_FALSE(at(3, 13, 4, kNan));
    EXPECT_EQ(selection.evaluations_without_gain(), 1);
    selection.load_best();
    EXPECT_EQ(groups[0].parameters[0].tensor.item(), 11);
    EXPECT_EQ(groups[1].parameters[0].tensor.item(), 12);
    EXPECT_EQ(selection.best_loss(), 3.5);
}

}  // namespace
}  // namespace lc::train
