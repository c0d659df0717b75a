// A real public model: SmolLM2-135M-Instruct in GGUF (Q4_1) against what transformers makes of the same file. Skipped where the
// file is not; tests/golden/README.md says where it comes from.
#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <numeric>

#include "autograd/grad_mode.h"
#include "io/json.h"
#include "io/tokenizer/load_tokenizer.h"
#include "models/decoder/decoder.h"
#include "models/export.h"
#include "models/generation/chat_template.h"
#include "models/generation/conversation.h"
#include "tests/assets.h"
#include "tests/io/faults.h"

namespace lc::models {
namespace {

using Ids = std::vector<int32_t>;

// log sum exp of a row of logits
double log_sum(const std::vector<double>& logits) {
    const double highest = *std::ranges::max_element(logits);
    double sum = 0;
    for (const double logit : logits) sum += std::exp(logit - highest);
    return highest + std::log(sum);
}

class SmolLm2 : public testing::Test {
  protected:
    void SetUp() override {
        if (const auto file = test::smollm2_file())
            file_ = *file;
        else
            GTEST_SKIP() << test::kNoSmolLm2;
    }
    std::filesystem::path file_;
    const io::Json golden_ = io::read_json_file(LC_SOURCE_DIR "/tests/golden/smollm2/golden.json");
};

TEST_F(SmolLm2, IdsOfHuggingFace) {
    const io::Tokenizer tokenizer = io::load_tokenizer(file_);
    for (const io::Json& entry : golden_["texts"]) {
        const auto text = entry["text"].get<std::string>();
        EXPECT_EQ(tokenizer.encode(text, true), entry["ids"].get<Ids>()) << text;
        EXPECT_EQ(tokenizer.decode(entry["ids"].get<Ids>(), true), text);
    }
}

TEST_F(SmolLm2, LogitsAndLossesOfHuggingFace) {
    const Decoder decoder = Decoder::load(file_, {.placement = {.dtype = DType::f32}});
    const NoGrad no_grad;
    double worst_loss = 0, worst_logit = 0;
    for (const io::Json& entry : golden_["texts"]) {
        const auto ids = entry["ids"].get<Ids>();
        const Tensor logits = decoder.logits(Tensor::from(ids, {1, std::ssize(ids)}), {});
        for (size_t t = 0; t < ids.size(); ++t) {
            const auto row = logits.sliced(1, static_cast<int64_t>(t), 1).to_vector<double>();
            const double norm = std::sqrt(std::inner_product(row.begin(), row.end(), row.begin(), 0.0));
            EXPECT_NEAR(norm, entry["norms"][t].get<double>(), 1e-5 * norm) << "position " << t;
            if (t + 1 < ids.size()) {
                const double nll = log_sum(row) - row[static_cast<size_t>(ids[t + 1])];
                worst_loss = std::max(worst_loss, std::abs(nll - entry["nll"][t].get<double>()));
                continue;
            }
            for (size_t i = 0; i < entry["top_ids"].size(); ++i)
                worst_logit = std::max(worst_logit, std::abs(row[entry["top_ids"][i].get<size_t>()] -
                                                             entry["top_logits"][i].get<double>()));
        }
    }
    EXPECT_LT(worst_loss, 1e-3);
    EXPECT_LT(worst_logit, 1e-3);
    fmt::print("worst differences: loss {:.1e}, logit {:.1e}\n", worst_loss, worst_logit);
}

TEST_F(SmolLm2, GreedyAnswersOfHuggingFace) {
    const Decoder decoder = Decoder::load(file_, {.placement = {.dtype = DType::f32}});
    const io::Tokenizer tokenizer = io::load_tokenizer(file_);
    const ChatTemplate chat("chatml", tokenizer);
    for (const io::Json& entry : golden_["answers"]) {
        const Ids prompt = chat.turn(entry["question"].get<std::string>(), golden_["system"].get<std::string>(), {});
        EXPECT_EQ(prompt, entry["prompt_ids"].get<Ids>());
        const auto wanted = entry["ids"].get<Ids>();
        const Generation answer =
            generate(decoder, tokenizer, {.mode = AttentionMode::Softmax}, prompt,
                     {.max_new_tokens = std::ssize(wanted), .sampling = {.temperature = 0}, .eos_ids = chat.end_ids()});
        EXPECT_EQ(answer.ids, wanted) << answer.text;
    }
}

TEST_F(SmolLm2, IsNoBaseForAMergedExport) {
    const io::test::ScratchDir scratch;
    io::test::expect_refused([&] { export_merged(file_, scratch.path(), scratch / "out"); }, {"GGUF"});
}

}  // namespace
}  // namespace lc::models
