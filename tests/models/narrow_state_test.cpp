// Recurrent states in bf16: what they cost, and that all else stays as it is.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "io/file.h"
#include "models/generation/decode_step.h"
#include "models/generation/state_file.h"
#include "tests/models/engine_tools.h"

namespace lc::models {
namespace {

using test::decoder_with_text;
using test::error_of;
using test::mixed_requests;
using test::prompt_of;
using test::run_all;
using test::tiny_tokenizer;
using testing::HasSubstr;

constexpr DecodeMode kNarrow{AttentionMode::Linearized, Terms::Both, StateStorage::Bf16};

// Perplexity under teacher forcing, token by token, of `rows` stretches of a text at a time.
double perplexity(const Decoder& decoder, const std::vector<int32_t>& text, int64_t rows, Terms terms,
                  StateStorage storage) {
    const Generator generator(decoder);
    const int64_t length = std::ssize(text) / rows;
    DecodeState state(decoder, AttentionMode::Linearized, rows, terms, storage);
    const Tensor ids = Tensor::from(std::span(text).first(static_cast<size_t>(rows * length)), {rows, length});
    double loss = 0;
    for (int64_t t = 0; t + 1 < length; ++t) {
        const std::vector<int64_t> positions(static_cast<size_t>(rows), t);
        const Tensor logits = generator.step_rows(state, ids.sliced(1, t, 1), positions);
        for (int64_t row = 0; row < rows; ++row) {
            const auto x = logits.sliced(0, row, 1).to_vector<float>();
            const int32_t next = text[static_cast<size_t>(row * length + t + 1)];
            const float best = *std::max_element(x.begin(), x.end());
            double sum = 0;
            for (const float logit : x) sum += std::exp(logit - best);
            loss += std::log(sum) + best - x[static_cast<size_t>(next)];
        }
    }
    return std::exp(loss / static_cast<double>(rows * (length - 1)));
}

// A trained model on a text, with blocks so short that they join the state as often as in 32,768 tokens of windows of 64.
TEST(NarrowStates, CostLessThanHalfAPercentOfPerplexity) {
    const std::filesystem::path demo = std::filesystem::path(LC_SOURCE_DIR) / "assets/demo";
    Decoder decoder = Decoder::load(demo / "teacher");
    AttentionSpec spec;
    spec.window_size = 2;
    decoder.linearize(spec, 1);
    const io::Tokenizer tokenizer = io::Tokenizer::load(demo / "teacher" / "tokenizer.json");
    constexpr size_t kRows = 2, kLength = 1024;
    std::vector<int32_t> text = tokenizer.encode(io::read_file(demo / "stories.txt", 1 << 20).substr(0, 20000), false);
    ASSERT_GE(text.size(), kRows * kLength);
    text.resize(kRows * kLength);
    const auto of = [&](Terms terms, StateStorage storage) { return perplexity(decoder, text, kRows, terms, storage); };
    const double wide = of(Terms::Both, StateStorage::Wide), narrow = of(Terms::Both, StateStorage::Bf16);
    EXPECT_LT(std::abs(narrow / wide - 1), 0.005) << narrow << " against " << wide;
    EXPECT_NE(narrow, wide);
    const double without = of(Terms::WindowOnly, StateStorage::Wide);
    EXPECT_GT(std::abs(without / wide - 1), 0.1) << "what the states say matters: " << without << " against " << wide;
}

TEST(NarrowStates, TakeHalfTheMemory) {
    const Decoder decoder = decoder_with_text(test::tiny_spec());
    int64_t wide = 0, narrow = 0;
    for (const NamedTensor& tensor : DecodeState(decoder, AttentionMode::Linearized, 3).tensors())
        if (tensor.name.ends_with(".s") || tensor.name.ends_with(".z")) wide += tensor.tensor.nbytes();
    const DecodeState state(decoder, AttentionMode::Linearized, 3, Terms::Both, StateStorage::Bf16);
    for (const NamedTensor& tensor : state.tensors())
        if (tensor.name.ends_with(".s") || tensor.name.ends_with(".z")) narrow += tensor.tensor.nbytes();
    EXPECT_GT(wide, 0);
    EXPECT_EQ(wide, 2 * narrow);
    EXPECT_EQ(DecodeState(decoder, AttentionMode::Linearized, 3).bytes() - state.bytes(), narrow);
}

TEST(NarrowStates, DoNotMakeResultsDependOnTheCompany) {
    const Decoder decoder = decoder_with_text(test::tiny_spec());
    const auto options = [](int64_t slots) {
        return EngineOptions{.mode = kNarrow, .slots = slots, .prefill_chunk = 16};
    };
    const std::vector<Request> requests = mixed_requests();
    Engine together(decoder, tiny_tokenizer(), options(5));
    for (const Request& request : requests) together.submit(request);
    const auto results = run_all(together);
    for (size_t i = 0; i < requests.size(); ++i) {
        Engine alone(decoder, tiny_tokenizer(), options(1));
        alone.submit(requests[i]);
        EXPECT_EQ(run_all(alone).at(0).result.ids, results.at(static_cast<int64_t>(i)).result.ids) << i;
    }
}

TEST(NarrowStates, AreSavedAsTheyAreAndGoOnWithTheSameBits) {
    const Decoder decoder = decoder_with_text(test::tiny_spec());
    const test::TemporaryDirectory directory;
    const std::filesystem::path path = directory.path() / "talk.state";
    const ModelIdentity identity{"model", "run"};
    const GenerateOptions options{.max_new_tokens = 12, .sampling = {.temperature = 1, .logit_bias = {}, .seed = 3}};
    Conversation unbroken(decoder, tiny_tokenizer(), kNarrow), restored(decoder, tiny_tokenizer(), kNarrow),
        wide(decoder, tiny_tokenizer(), {AttentionMode::Linearized});
    unbroken.reply(prompt_of(40, 1), options);
    save_state(unbroken, path, {identity, ""});
    EXPECT_THAT(error_of(ErrorKind::BadInput, [&] { load_state(wide, path, identity); }), HasSubstr("states in bf16"));
    load_state(restored, path, identity);
    EXPECT_EQ(restored.reply(prompt_of(6, 2), options).ids, unbroken.reply(prompt_of(6, 2), options).ids);
    const auto a = restored.state().tensors(), b = unbroken.state().tensors();
    ASSERT_EQ(a.size(), b.size());
    for (size_t i = 0; i < a.size(); ++i) EXPECT_EQ(a[i].tensor.to_vector<float>(), b[i].tensor.to_vector<float>());
}

TEST(NarrowStates, NeedATerracedWindow) {
    for (const test::DecodeVariant& variant : test::decode_variants()) {
        const Decoder decoder = decoder_with_text(variant.spec);
        const auto make = [&] { DecodeState(decoder, variant.mode.mode, 1, Terms::Both, StateStorage::Bf16); };
        const std::string name = variant.name;
        if (name == "sliding" || name == "linear")
            EXPECT_THAT(error_of(ErrorKind::Usage, make), HasSubstr("terraced window"));
        else
            EXPECT_NO_THROW(make()) << name;
    }
}

}  // namespace
}  // namespace lc::models
