// Batch files: every line's result in order, the same whatever the batch, and an interrupted run that goes on.
#include "models/generation/batch.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <fstream>

#include "models/generation/request_json.h"
#include "tests/models/generation_tools.h"

namespace lc::models {
namespace {

using test::decoder_with_text;
using test::error_of;
using test::tiny_tokenizer;
using testing::AllOf;
using testing::HasSubstr;

GenerateOptions overridden(const std::string& json, GenerateOptions options = {}) {
    const io::Json parsed = io::parse_json(json, "in:1");
    apply_overrides(io::JsonObject(parsed, "in:1"), 280, options);
    return options;
}

TEST(RequestJson, Overrides) {
    const GenerateOptions o = overridden(
        R"({"max_new_tokens": 5, "temperature": 0.5, "top_k": 3, "top_p": 0.25, "min_p": 0.125, "repetition_penalty": 1.5,
            "presence_penalty": -1, "frequency_penalty": 2, "logit_bias": {"7": -3, "9": "-inf"}, "seed": 11,
            "stop": ["a", "b"], "ignore_eos": true})",
        {.eos_ids = {1}});
    EXPECT_EQ(o.max_new_tokens, 5);
    EXPECT_EQ(o.sampling.temperature, 0.5);
    EXPECT_EQ(o.sampling.top_k, 3);
    EXPECT_EQ(o.sampling.top_p, 0.25);
    EXPECT_EQ(o.sampling.min_p, 0.125);
    EXPECT_EQ(o.sampling.repetition_penalty, 1.5);
    EXPECT_EQ(o.sampling.presence_penalty, -1);
    EXPECT_EQ(o.sampling.frequency_penalty, 2);
    EXPECT_EQ(o.sampling.logit_bias, (std::vector<LogitBias>{{7, -3}, {9, -INFINITY}}));
    EXPECT_EQ(o.sampling.seed, 11u);
    EXPECT_EQ(o.stop_strings, (std::vector<std::string>{"a", "b"}));
    EXPECT_TRUE(o.eos_ids.empty());
    const GenerateOptions untouched = overridden(R"({"stop": "x", "top_k": null})", o);
    EXPECT_EQ(untouched.sampling.top_k, 3);
    EXPECT_EQ(untouched.stop_strings, std::vector<std::string>{"x"});
}

TEST(RequestJson, RefusesWhatDoesNotFitAndNamesIt) {
    const std::pair<const char*, const char*> wrong[] = {{R"({"max_new_tokens": 0})", "max_new_tokens"},
                                                         {R"({"max_new_tokens": 1.5})", "max_new_tokens"},
                                                         {R"({"temperature": -1})", "temperature"},
                                                         {R"({"temperature": "hot"})", "temperature"},
                                                         {R"({"top_k": -1})", "top_k"},
                                                         {R"({"top_p": 0})", "top_p"},
                                                         {R"({"top_p": 1.1})", "top_p"},
                                                         {R"({"min_p": 2})", "min_p"},
                                                         {R"({"repetition_penalty": 0})", "repetition"},
                                                         {R"({"presence_penalty": []})", "presence"},
                                                         {R"({"logit_bias": {"x": 1}})", "logit_bias.x"},
                                                         {R"({"logit_bias": {"1": "inf"}})", "logit_bias.1"},
                                                         {R"({"logit_bias": {"280": 1}})", "token 280"},
                                                         {R"({"logit_bias": [1]})", "logit_bias"},
                                                         {R"({"seed": -1})", "seed"},
                                                         {R"({"stop": 3})", "stop"},
                                                         {R"({"stop": [3]})", "stop"},
                                                         {R"({"stop": ""})", "stop string"},
                                                         {R"({"ignore_eos": 1})", "ignore_eos"}};
    for (const auto& [json, part] : wrong)
        EXPECT_THAT(error_of(ErrorKind::BadInput, [&] { overridden(json); }), AllOf(HasSubstr("in:1"), HasSubstr(part)))
            << json;
}

class BatchTest : public testing::Test {
  protected:
    const Decoder decoder_ = decoder_with_text(test::tiny_spec());
    const GenerateOptions defaults_{.max_new_tokens = 12,
                                    .sampling = {.temperature = 0.8, .logit_bias = {}, .seed = 5}};
    test::TemporaryDirectory directory_;

    BatchFile file(const std::string& text, const std::string& identity = "model") const {
        const auto path = directory_.path() / "in.jsonl";
        std::ofstream(path, std::ios::binary) << text;
        return BatchFile(path, defaults_, 283, identity);
    }
    std::string refusal(const std::string& text) const {
        return error_of(ErrorKind::BadInput, [&] { file(text); });
    }
    std::vector<std::string> run(const BatchFile& batch, int64_t slots, int64_t first = 0, int64_t stop_after = 1 << 30,
                                 BatchProgress* progress = nullptr) const {
        Engine engine(decoder_, tiny_tokenizer(), {.mode = {AttentionMode::Linearized}, .slots = slots});
        std::vector<std::string> lines;
        const int64_t done = run_batch(engine, tiny_tokenizer(), batch, slots, first,
                                       {.write = [&](std::string_view line) { lines.emplace_back(line); },
                                        .progress =
                                            [&](const BatchProgress& now) {
                                                if (progress) *progress = now;
                                            },
                                        .stop = [&] { return std::ssize(lines) >= stop_after; }});
        EXPECT_EQ(done, first + std::ssize(lines));
        return lines;
    }
    static std::string many_lines() {
        std::string text;
        for (int i = 0; i < 30; ++i)
            text +=
                fmt::format(R"({{"prompt": "one two {}", "id": "n{}", "max_new_tokens": {}}})", i, i, 3 + i * 7 % 20) +
                "\n";
        return text;
    }
};

TEST_F(BatchTest, ResultsComeInOrderWhateverTheBatchSize) {
    const BatchFile batch = file(many_lines());
    ASSERT_EQ(batch.size(), 30);
    const std::vector<std::string> one = run(batch, 1);
    for (const int64_t slots : {3, 8, 40}) EXPECT_EQ(run(batch, slots), one);
    for (size_t i = 0; i < one.size(); ++i) {
        const io::Json json = io::parse_json(one[i], "result");
        EXPECT_EQ(json["id"], fmt::format("n{}", i));
        EXPECT_EQ(json["prompt_tokens"], tiny_tokenizer().encode(fmt::format("one two {}", i), true).size());
        EXPECT_EQ(json["new_tokens"], 3 + i * 7 % 20);
        EXPECT_EQ(json["finish_reason"], "length");
    }
}

TEST_F(BatchTest, OrderOfLinesChangesNoSample) {
    const std::vector<std::string> forth = run(file("{\"prompt\":\"a\",\"id\":1}\n{\"prompt\":\"a\",\"id\":2}"), 2),
                                   back = run(file("{\"prompt\":\"a\",\"id\":2}\n{\"prompt\":\"a\",\"id\":1}"), 2);
    EXPECT_EQ(forth[0], back[1]);
    EXPECT_EQ(forth[1], back[0]);
    EXPECT_NE(io::parse_json(forth[0], "")["text"], io::parse_json(forth[1], "")["text"])
        << "each has numbers of its own";
}

TEST_F(BatchTest, ASeedOfItsOwnSamplesLikeASinglePrompt) {
    const io::Json line = io::parse_json(run(file("{\"prompt\": \"one two\", \"seed\": 9}"), 2)[0], "");
    GenerateOptions options = defaults_;
    options.sampling.seed = 9;
    const Generation single = generate(decoder_, tiny_tokenizer(), {AttentionMode::Linearized},
                                       tiny_tokenizer().encode("one two", true), options);
    EXPECT_EQ(line["text"].get<std::string>(), single.text);
    EXPECT_EQ(line["id"], 1) << "the line's number";
}

TEST_F(BatchTest, LinesThatCannotRunSaySoAndTheOthersRun) {
    std::string long_prompt;
    for (int i = 0; i < 300; ++i) long_prompt += "one two ";
    BatchProgress progress;
    const auto lines =
        run(file("{\"prompt\": \"one\"}\n{\"prompt\": \"" + long_prompt + "\"}\n{\"prompt\": \"two\"}\n"), 1, 0,
            1 << 30, &progress);
    ASSERT_EQ(lines.size(), 3u);
    EXPECT_THAT(io::parse_json(lines[1], "")["error"].get<std::string>(), HasSubstr("max_position_embeddings 512"));
    EXPECT_TRUE(io::parse_json(lines[2], "").contains("text"));
    EXPECT_EQ(progress.done, 3);
    EXPECT_EQ(progress.failed, 1);
    EXPECT_EQ(progress.tokens_made, 24);
}

TEST_F(BatchTest, AnInterruptedRunGoesOn) {
    const BatchFile batch = file(many_lines());
    const std::vector<std::string> whole = run(batch, 4);
    for (const int64_t stop : {1, 7, 29}) {
        std::vector<std::string> lines = run(batch, 4, 0, stop);
        ASSERT_GE(std::ssize(lines), stop);
        const int64_t first = batch.count_done(lines, "out.jsonl");
        const std::vector<std::string> rest = run(batch, 3, first);
        lines.insert(lines.end(), rest.begin(), rest.end());
        EXPECT_EQ(lines, whole);
    }
}

TEST_F(BatchTest, OtherResultsAreNotGoneOnFrom) {
    const BatchFile batch = file(many_lines());
    std::vector<std::string> lines = run(batch, 4, 0, 5);
    lines.resize(5);
    const auto refused = [&](const BatchFile& with) {
        return error_of(ErrorKind::BadInput, [&] { with.count_done(lines, "out.jsonl"); });
    };
    EXPECT_THAT(refused(file(many_lines(), "another model")), HasSubstr("out.jsonl:1"));
    std::string changed = many_lines();
    changed.replace(changed.find("one two 3"), 9, "one two X");
    EXPECT_THAT(refused(file(changed)), AllOf(HasSubstr("out.jsonl:4"), HasSubstr("in.jsonl:4")));
    EXPECT_THAT(refused(file("{\"prompt\": \"x\"}")), HasSubstr("has 5 results"));
    lines[2] = "{\"id\": 3}";
    EXPECT_THAT(refused(batch), AllOf(HasSubstr("out.jsonl:3"), HasSubstr("key")));
    lines[2] = "garbage";
    EXPECT_THAT(refused(batch), HasSubstr("out.jsonl:3"));
}

TEST_F(BatchTest, MalformedLinesAreNamed) {
    const std::string good = "{\"prompt\": \"x\"}\n";
    const std::pair<std::string, const char*> wrong[] = {
        {"", "no prompt"},
        {"\n \r\n", "no prompt"},
        {good + "{\"prompt\": \"x\"", "in.jsonl:2"},
        {good + "\n" + "[1]\n", "in.jsonl:3"},
        {good + "{}", "in.jsonl:2"},
        {good + "{\"prompt\": 3}", "'prompt'"},
        {"{\"prompt\": \"\xff\"}", "in.jsonl:1"},
        {"{\"prompt\": \"\\ud800\"}", "in.jsonl:1"},
        {"{\"prompt\": \"x\", \"temprature\": 1}", "'temprature'"},
        {"{\"prompt\": \"x\", \"id\": 1.5}", "'id'"},
        {"{\"prompt\": \"x\", \"id\": [1]}", "'id'"},
        {"{\"prompt\": \"x\", \"prompt\": \"y\"}", "in.jsonl:1"},
        {good + "{\"prompt\": \"x\", \"top_p\": 7}", "in.jsonl:2"},
        {"{\"prompt\": \"x\", \"id\": 5}\n" + good + "{\"prompt\": \"y\", \"id\": 5}", "also that of line 1"},
        {good + "{\"prompt\": \"x\", \"id\": 1}", "also that of line 1"}};
    for (const auto& [text, part] : wrong) EXPECT_THAT(refusal(text), HasSubstr(part)) << text;
    EXPECT_EQ(file("\xEF\xBB\xBF" + good + "\r\n\n{\"prompt\": \"\", \"id\": null}\r\n").size(), 2);
}

}  // namespace
}  // namespace lc::models
