#include "train/data.h"

#include <gtest/gtest.h>

#include <cmath>

#include "tests/train/tiny.h"
#include "train/evaluate.h"
#include "train/pretrain.h"

namespace lc::train {
namespace {

using io::test::expect_refused;
using test::ScratchDir;
using test::TinyWorld;

io::Tokenizer tokenizer() {
    return io::Tokenizer::load(TinyWorld::get().tokenizer());
}

TEST(Data, InstructionsMaskThePromptAndEndWithEos) {
    const io::Tokenizer t = tokenizer();
    const io::Dataset dataset{.format = io::DataFormat::alpaca, .samples = {{"the cat ", "sat on"}}};
    const TokenSample sample = tokenize(dataset, t, 300).at(0);
    const auto prompt = t.encode("the cat ", true), answer = t.encode("sat on", false);
    ASSERT_EQ(sample.ids.size(), prompt.size() + answer.size() + 1);
    EXPECT_EQ(sample.ids.front(), *t.bos_id());
    EXPECT_EQ(sample.ids.back(), *t.eos_id());
    for (size_t i = 0; i < sample.ids.size(); ++i) {
        EXPECT_EQ(sample.ids[i], i < prompt.size()           ? prompt[i]
                                 : i < sample.ids.size() - 1 ? answer[i - prompt.size()]
                                                             : *t.eos_id());
        EXPECT_EQ(sample.labels[i], i < prompt.size() ? kIgnoreLabel : sample.ids[i]);
    }
}

TEST(Data, TextIsLabelledWholeWithBosAndEos) {
    const io::Tokenizer t = tokenizer();
    const TokenSample sample =
        tokenize({.format = io::DataFormat::text, .samples = {{"", "the cat sat"}}}, t, 300).at(0);
    auto expected = t.encode("the cat sat", true);
    expected.push_back(*t.eos_id());
    EXPECT_EQ(sample.ids, expected);
    EXPECT_EQ(sample.labels, expected);
}

TEST(Data, RefusesIdsBeyondTheVocabulary) {
    const io::Dataset dataset{.format = io::DataFormat::text, .samples = {{"", "the cat"}}};
    expect_refused([&] { tokenize(dataset, tokenizer(), 5); }, {"vocabulary"});
}

TEST(Data, ValidationRowsAreTwoHundredOrATenth) {
    EXPECT_EQ(validation_rows(51760), 200);
    EXPECT_EQ(validation_rows(2000), 200);
    EXPECT_EQ(validation_rows(1999), 199);
    EXPECT_EQ(validation_rows(60), 6);
    EXPECT_EQ(validation_rows(3), 1);
}

TEST(Data, InstructionSplitIsByRow) {
    const io::Tokenizer t = tokenizer();
    const DataOptions options{.file = TinyWorld::get().alpaca(), .seq_len = 48};
    const TrainingData data = load_training_data(options, t, 300);
    EXPECT_EQ(data.validation_samples, 6);
    EXPECT_EQ(data.train_samples, 54);
    const auto samples = tokenize(io::read_dataset(options.file), t, 300);
    Packer validation(48), train(48);
    for (size_t i = 0; i < samples.size(); ++i) (i < 6 ? validation : train).add(samples[i]);
    EXPECT_EQ(data.validation.ids, validation.finish().ids);
    EXPECT_EQ(data.train.labels, train.finish().labels);
    EXPECT_EQ(data.train.size() + data.train.masked_chunks, (data.train_tokens + 47) / 48 - 1);
}

TEST(Data, TextSplitHoldsOutTheEnd) {
    const io::Tokenizer t = tokenizer();
    const TrainingData data = load_training_data({.file = TinyWorld::get().text(), .seq_len = 16}, t, 300);
    const auto whole = tokenize(io::read_dataset(TinyWorld::get().text()), t, 300).at(0);
    EXPECT_EQ(data.train_tokens + data.validation_tokens, std::ssize(whole.ids));
    EXPECT_EQ(data.validation_tokens, static_cast<int64_t>(0.05 * static_cast<double>(whole.ids.size())));
    EXPECT_TRUE(
        std::equal(data.validation.ids.begin(), data.validation.ids.end(), whole.ids.end() - data.validation_tokens));
}

// Many documents: the cut falls between two of them.
TEST(Data, TextSplitCutsBetweenDocuments) {
    const ScratchDir scratch;
    std::string lines;
    for (uint64_t i = 0; i < 100; ++i) lines += io::Json({{"text", test::tiny_text(20, i)}}).dump() + "\n";
    const auto file = scratch.write("d.jsonl", lines);
    const io::Tokenizer t = tokenizer();
    const TrainingData data = load_training_data({.file = file, .seq_len = 16}, t, 300);
    EXPECT_EQ(data.train_samples + data.validation_samples, 100);
    EXPECT_NEAR(static_cast<double>(data.validation_samples), 5, 1);
    EXPECT_EQ(data.validation.ids.front(), *t.bos_id());
}

TEST(Data, LimitsAndTooLittleData) {
    const io::Tokenizer t = tokenizer();
    const TrainingData data = load_training_data(
        {.file = TinyWorld::get().alpaca(), .seq_len = 48, .limit = 20, .validation_chunks = 1}, t, 300);
    EXPECT_EQ(data.train_samples + data.validation_samples, 20);
    EXPECT_EQ(data.validation.size(), 1);
    expect_refused([&] { load_training_data({.file = TinyWorld::get().alpaca(), .seq_len = 100000}, t, 300); },
                   {"seq-len"});
}

TEST(Data, PreviewMarksWhatIsMasked) {
    const io::Tokenizer t = tokenizer();
    const io::Dataset dataset{.format = io::DataFormat::alpaca, .samples = {{"the cat ", "sat"}, {"a ", "dog"}}};
    const auto samples = tokenize(dataset, t, 300);
    const std::string plain = preview(samples, 5, t, false);
    EXPECT_NE(plain.find("[[<|begin_of_text|>the cat ]]sat<|end_of_text|>"), std::string::npos) << plain;
    EXPECT_NE(plain.find("sample 1"), std::string::npos);
    EXPECT_EQ(preview(samples, 1, t, false).find("sample 1"), std::string::npos);
    EXPECT_NE(preview(samples, 1, t, true).find("\x1b[2;31m"), std::string::npos);
}

// Against log-softmax of the logits, token by token.
TEST(Evaluate, TextLossesAreTheNllOfEveryTokenButTheFirst) {
    const models::Decoder decoder = models::Decoder::load(TinyWorld::get().model());
    std::vector<int32_t> ids(3 * 10 + 4);
    for (size_t i = 0; i < ids.size(); ++i) ids[i] = static_cast<int32_t>((i * 37 + 11) % 300);
    const ChunkLosses losses = text_losses(decoder, ids, 10, {.batch = 2});
    ASSERT_EQ(losses.nll.size(), 3u);
    EXPECT_EQ(losses.total_tokens(), 27);
    double total = 0;
    for (int64_t s = 0; s < 3; ++s) {
        const std::vector<int32_t> part(ids.begin() + s * 10, ids.begin() + (s + 1) * 10);
        const auto logits = decoder.logits(Tensor::from(part, {1, 10}), {}).to_vector<double>();
        double nll = 0;
        for (int64_t i = 0; i < 9; ++i) {
            double sum = 0;
            for (int64_t v = 0; v < 300; ++v) sum += std::exp(logits[static_cast<size_t>(i * 300 + v)]);
            nll += std::log(sum) - logits[static_cast<size_t>(i * 300 + part[static_cast<size_t>(i + 1)])];
        }
        EXPECT_NEAR(losses.nll[static_cast<size_t>(s)], nll, 1e-4);
        total += nll;
    }
    EXPECT_NEAR(losses.mean_nll(), total / 27, 1e-5);
    EXPECT_NEAR(losses.perplexity(), std::exp(total / 27), 1e-4 * std::exp(total / 27));
    expect_refused([&] { text_losses(decoder, std::vector<int32_t>(5, 1), 10, {}); }, {"5 tokens"});
}

TEST(Evaluate, ChunkMeansAndTokenMeansDiffer) {
    const ChunkLosses losses{.nll = {6, 2, 0}, .tokens = {3, 2, 0}};
    EXPECT_DOUBLE_EQ(losses.mean_nll(), 8.0 / 5);
    EXPECT_DOUBLE_EQ(losses.mean_chunk_loss(), (2.0 + 1.0) / 3);
}

TEST(Pretrain, WritesAModelThatLoadsAndResumesExactly) {
    const ScratchDir scratch;
    const auto config = scratch.write("config.json", io::load_hf_config(TinyWorld::get().model()).to_json().dump());
    const auto options = [&](const char* name) {
        PretrainOptions o;
        o.model_config = config, o.tokenizer = TinyWorld::get().tokenizer(), o.out = scratch / name;
        o.data = {.file = TinyWorld::get().text(), .seq_len = 24};
        o.budget.steps = 12;
        o.loop.batch_size = 4, o.loop.accumulate = 1, o.loop.eval_every = o.loop.save_every = 5, o.loop.log_every = 0;
        o.loop.schedule = {.kind = ScheduleKind::cosine, .base = 1e-2, .min = 1e-3, .warmup = 2};
        o.loop.optimizer = {.weight_decay = 0.1, .clip = ClipScope::global};
        return o;
    };
    ASSERT_TRUE(pretrain(options("a"), {}));
    const Record summary = Record::parse(io::read_file(scratch / "a" / "summary.json", 1 << 20));
    EXPECT_LT(summary["validation_loss"].get<double>(), 0.8 * summary["first_loss"].get<double>());

    int asked = 0;
    EXPECT_FALSE(pretrain(options("b"), [&] { return ++asked > 14; }));
    PretrainOptions again = options("b");
    again.resume.automatic = true;
    ASSERT_TRUE(pretrain(again, {}));
    for (const char* file : {"model.safetensors", "config.json", "generation_config.json", "tokenizer.json"})
        EXPECT_TRUE(io::read_file(scratch / "a" / file, 1 << 30) == io::read_file(scratch / "b" / file, 1 << 30))
            << file;

    const models::Decoder decoder = models::Decoder::load(scratch / "a");
    const TrainingData data = load_training_data(options("a").data, tokenizer(), 300);
    // bf16 weights: 8 bits of mantissa, hence the tolerance.
    EXPECT_NEAR(chunk_losses(decoder, data.validation, {}).mean_nll(), summary["validation_loss"].get<double>(), 0.02);
}

}  // namespace
}  // namespace lc::train
