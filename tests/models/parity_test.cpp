// Our forward pass against other implementations' results on trained models (the assets say how these were made).
#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <numeric>

#include "autograd/grad_mode.h"
#include "autograd/ops/linear_cross_entropy.h"
#include "autograd/ops/views.h"
#include "io/json.h"
#include "io/tokenizer/tokenizer.h"
#include "models/decoder/decoder.h"
#include "models/generation/generator.h"
#include "tests/assets.h"

namespace lc::models {
namespace {

using Ids = std::vector<int32_t>;

Tensor batch_of_one(const Ids& ids) {
    return Tensor::from(ids, {1, static_cast<int64_t>(ids.size())});
}

std::vector<double> row(const Tensor& logits, int64_t position) {
    return logits.sliced(1, position, 1).to_vector<double>();
}

int64_t argmax(const std::vector<double>& values) {
    return std::max_element(values.begin(), values.end()) - values.begin();
}

// The ids that a greedy continuation of `prompt` has, through the cache of the softmax layers.
Ids greedy(const Decoder& decoder, Ids prompt, size_t total) {
    const Generator generator(decoder, 64);
    DecodeState state(decoder, AttentionMode::Softmax);
    Tensor logits = generator.advance(state, batch_of_one(prompt));
    while (prompt.size() < total) {
        prompt.push_back(static_cast<int32_t>(argmax(logits.to_vector<double>())));
        if (prompt.size() < total) logits = generator.advance(state, batch_of_one({prompt.back()}));
    }
    return prompt;
}

// Mean -log p of every next token of a sequence.
double mean_nll(const Decoder& decoder, const Ids& ids) {
    const NoGrad no_grad;
    const auto length = static_cast<int64_t>(ids.size()) - 1;
    const Tensor hidden = decoder.hidden(batch_of_one(Ids(ids.begin(), ids.end() - 1)), {});
    const Tensor rows = reshape(hidden, {length, decoder.config().hidden_size});
    const auto nll =
        token_nll(rows, decoder.lm_head(), Tensor::from(Ids(ids.begin() + 1, ids.end()), {length})).to_vector<double>();
    return std::accumulate(nll.begin(), nll.end(), 0.0) / static_cast<double>(length);
}

class Teacher : public testing::Test {
  protected:
    void SetUp() override {
        const auto assets = test::assets_dir();
        if (!assets) GTEST_SKIP() << test::kNoAssets;
        directory_ = *assets / "teacher-28m";
        texts_ = *assets / "text";
    }
    io::Json golden(const char* name) const { return io::read_json_file(directory_ / "golden" / name); }
    std::filesystem::path directory_, texts_;
};

TEST_F(Teacher, LogitsOfHuggingFace) {
    const Decoder decoder = Decoder::load(directory_);
    const io::Json golden = this->golden("logits.json");
    const NoGrad no_grad;
    const Tensor logits = decoder.logits(batch_of_one(golden["prompt_ids"].get<Ids>()), {});
    const std::vector<double> last = row(logits, logits.size(1) - 1);
    double worst = 0;
    for (size_t i = 0; i < 16; ++i)
        worst = std::max(worst, std::abs(last[i] - golden["last_logits_first16"][i].get<double>()));
    EXPECT_LT(worst, 1e-3);
    EXPECT_EQ(argmax(last), golden["last_argmax"].get<int64_t>());
    for (int64_t t = 0; t < logits.size(1); ++t) {
        const std::vector<double> values = row(logits, t);
        const double norm = std::sqrt(std::inner_product(values.begin(), values.end(), values.begin(), 0.0));
        const double wanted = golden["logits_l2"][static_cast<size_t>(t)];
        EXPECT_NEAR(norm, wanted, 1e-5 * wanted) << "position " << t;
    }
    RecordProperty("worst_logit_error", std::to_string(worst));
}

TEST_F(Teacher, GreedyContinuationOfHuggingFace) {
    const Decoder decoder = Decoder::load(directory_);
    const io::Json golden = this->golden("logits.json");
    const Ids wanted = golden["greedy"].get<Ids>();
    const Ids prompt = golden["prompt_ids"].get<Ids>();
    ASSERT_EQ(wanted.size(), prompt.size() + 64);
    EXPECT_EQ(greedy(decoder, prompt, wanted.size()), wanted);
}

TEST_F(Teacher, NllOfTheFirstSequences) {
    const Decoder decoder = Decoder::load(directory_);
    const io::Json golden = this->golden("val_nll.json");
    std::ifstream file(texts_ / "books_val.txt", std::ios::binary);
    const std::string text(std::istreambuf_iterator<char>(file), {});
    size_t end = 0;  // of the first 12,000 code points, enough for five sequences
    for (int64_t points = 0; end < text.size() && points <= 12000; ++end)
        points += (static_cast<unsigned char>(text[end]) & 0xc0) != 0x80;
    const Ids ids = io::Tokenizer::load(directory_ / "tokenizer.json").encode(text.substr(0, end - 1), false);
    ASSERT_GT(ids.size(), 2560u);
    for (size_t i = 0; i < 5; ++i) {
        const Ids sequence(ids.begin() + static_cast<int64_t>(512 * i),
                           ids.begin() + static_cast<int64_t>(512 * (i + 1)));
        EXPECT_NEAR(mean_nll(decoder, sequence), golden["first5"][i].get<double>(), 1e-5) << "sequence " << i;
    }
}

// One layer at a time gives what all layers give: the way stage 1 may stream a model that does not fit.
TEST_F(Teacher, PartsOfTheModelMakeTheWhole) {
    const Decoder decoder = Decoder::load(directory_);
    const NoGrad no_grad;
    const Tensor ids = batch_of_one({0, 470, 689, 428, 862});
    const std::vector<float> wanted = decoder.hidden(ids, {}).to_vector<float>();
    Tensor h;
    for (int64_t first = 0; first < 8; first += 4) {
        const Decoder part = Decoder::load(directory_, {.layers = {first, first + 4}});
        EXPECT_EQ(part.num_layers(), 4);
        EXPECT_EQ(part.first_layer(), first);
        if (first == 0) h = part.embed(ids);
        for (int64_t i = 0; i < part.num_layers(); ++i)
            h = part.finish(i, h, part.attend(i, part.project(i, h), AttentionMode::Softmax));
        if (first == 0) {
            EXPECT_THROW(part.final_norm(h), Error);
        } else {
            EXPECT_EQ(part.final_norm(h).to_vector<float>(), wanted);
            EXPECT_THROW(part.embed(ids), Error);
        }
    }
}

class Stories : public testing::Test {
  protected:
    void SetUp() override {
        const auto assets = test::assets_dir();
        if (!assets) GTEST_SKIP() << test::kNoAssets;
        directory_ = *assets / "stories260k";
        reference_ = io::read_json_file(directory_ / "golden/reference.json");
    }
    std::filesystem::path directory_;
    io::Json reference_;
};

TEST_F(Stories, PromptLogits) {
    const Decoder decoder = Decoder::load(directory_);
    const NoGrad no_grad;
    const Tensor logits = decoder.logits(batch_of_one(reference_["prompt_ids"].get<Ids>()), {});
    const auto wanted = reference_["prompt_last_logits"].get<std::vector<double>>();
    const std::vector<double> last = row(logits, logits.size(1) - 1);
    ASSERT_EQ(last.size(), wanted.size());
    double worst = 0;
    for (size_t i = 0; i < last.size(); ++i) worst = std::max(worst, std::abs(last[i] - wanted[i]));
    EXPECT_LT(worst, 1e-3);
    RecordProperty("worst_logit_error", std::to_string(worst));
    for (int64_t t = 0; t < logits.size(1); ++t)
        EXPECT_EQ(argmax(row(logits, t)), reference_["prompt_argmax_per_pos"][static_cast<size_t>(t)].get<int64_t>());
}

// The reference was computed in f64 as well: here only the order of sums differs.
TEST_F(Stories, PromptLogitsInDoublePrecision) {
    const Decoder decoder = Decoder::load(directory_, {.placement = {.dtype = DType::f64}});
    const NoGrad no_grad;
    const Tensor logits = decoder.logits(batch_of_one(reference_["prompt_ids"].get<Ids>()), {});
    const auto wanted = reference_["prompt_last_logits"].get<std::vector<double>>();
    const std::vector<double> last = row(logits, logits.size(1) - 1);
    for (size_t i = 0; i < last.size(); ++i) EXPECT_NEAR(last[i], wanted[i], 1e-10);
}

TEST_F(Stories, GreedyIdsAndText) {
    const Decoder decoder = Decoder::load(directory_);
    const Ids wanted = reference_["greedy_ids_from_bos"].get<Ids>();
    ASSERT_EQ(wanted.size(), 201u);
    const Ids ids = greedy(decoder, {wanted[0]}, wanted.size());
    EXPECT_EQ(ids, wanted);
    const auto tokenizer = io::Tokenizer::load(directory_ / "tokenizer.json");
    EXPECT_EQ(tokenizer.decode(ids, true), reference_["greedy_text"].get<std::string>());
}

TEST_F(Stories, NllOfStories) {
    const Decoder decoder = Decoder::load(directory_);
    const io::Json& nll = reference_["nll"];
    double sum = 0;
    int64_t tokens = 0;
    for (size_t i = 0; i < nll["ids"].size(); ++i) {
        const Ids ids = nll["ids"][i].get<Ids>();
        const double mean = mean_nll(decoder, ids);
        EXPECT_NEAR(mean, nll["per_sequence"][i].get<double>(), 1e-5) << "story " << i;
        sum += mean * static_cast<double>(ids.size() - 1), tokens += static_cast<int64_t>(ids.size()) - 1;
    }
    EXPECT_EQ(tokens, nll["tokens_scored"].get<int64_t>());
    EXPECT_NEAR(sum / static_cast<double>(tokens), nll["mean_nll"].get<double>(), 1e-5);
}

}  // namespace
}  // namespace lc::models
