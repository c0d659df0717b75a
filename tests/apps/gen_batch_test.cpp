// gen_lolcats --batch as a user meets it: results, refusals, and runs that were stopped or killed.
#include "tests/apps/gen_fixture.h"
#include "tests/e2e/process.h"

namespace lc::test {
namespace {

using testing::AllOf;
using testing::HasSubstr;
namespace fs = std::filesystem;

class GenBatch : public GenLolcats {
  protected:
    std::string in() const { return (directory_.path() / "in.jsonl").string(); }
    std::string out() const { return (directory_.path() / "out.jsonl").string(); }
    void put(const std::string& text) const { std::ofstream(in()) << text; }
    std::string results() const { return io::read_file(out(), 1 << 24); }
    std::vector<std::string> words(std::vector<std::string> more = {}) const {
        more.insert(more.begin(), {"--model", model_, "--run", run_, "--batch", in(), "--out", out()});
        return more;
    }
    void put_many(int lines, int tokens) const {
        std::ofstream file(in());
        for (int i = 0; i < lines; ++i)
            file << fmt::format(R"({{"prompt": "one {}", "id": "n{}", "max_new_tokens": {}, "temperature": 1}})", i, i,
                                tokens - i % 7)
                 << '\n';
    }
};

TEST_F(GenBatch, GreedyResultsAreThoseOfSinglePrompts) {
    put("{\"prompt\": \"one two\", \"id\": \"a\"}\n{\"prompt\": \"seven\", \"max_new_tokens\": 3}\n{\"prompt\": "
        "\"\"}\n");
    const Outcome outcome = gen(words({"--max-new-tokens", "12", "--batch-size", "2"}));
    ASSERT_EQ(outcome.code, 0) << outcome.err;
    EXPECT_EQ(outcome.out, "");
    EXPECT_THAT(outcome.err, AllOf(HasSubstr("batch 3/3"), HasSubstr("tok/s")));
    const std::string text = results();
    ASSERT_EQ(std::count(text.begin(), text.end(), '\n'), 3);
    const io::Json first = io::parse_json(text.substr(0, text.find('\n')), "out");
    EXPECT_EQ(first["id"], "a");
    EXPECT_EQ(first["text"].get<std::string>() + "\n", gen(with({"--run", run_})).out);
    EXPECT_THAT(text, HasSubstr("{\"id\":2,\"text\":"));
    EXPECT_THAT(text, HasSubstr("{\"id\":3,\"text\":")) << "an empty prompt is BOS alone";
}

TEST_F(GenBatch, BatchSizeAndChunksOfTheRunChangeNothing) {
    put_many(25, 20);
    ASSERT_EQ(gen(words({"--batch-size", "1", "--seed", "4"})).code, 0);
    const std::string one = results();
    for (const char* size : {"3", "16", "100"}) {
        fs::remove(out());
        ASSERT_EQ(gen(words({"--batch-size", size, "--seed", "4"})).code, 0);
        EXPECT_EQ(results(), one);
    }
    fs::remove(out());
    ASSERT_EQ(gen(words({"--seed", "5"})).code, 0);
    EXPECT_NE(results(), one);
}

TEST_F(GenBatch, StoppedByASignalItGoesOn) {
    put_many(150, 200);
    ASSERT_EQ(gen(words()).code, 0);
    const std::string whole = results();
    for (const int signal : {SIGINT, SIGTERM, SIGKILL}) {
        fs::remove(out());
        Process process("gen_lolcats", words());
        while (!fs::exists(out()) || fs::file_size(out()) == 0)
            std::this_thread::sleep_for(std::chrono::milliseconds(1));
        process.send(signal);
        EXPECT_EQ(process.wait(), signal == SIGKILL ? 1000 + SIGKILL : 75);
        const std::string part = results();
        EXPECT_LT(part.size(), whole.size());
        EXPECT_TRUE(part.ends_with('\n'));
        EXPECT_TRUE(whole.starts_with(part));
        if (signal == SIGKILL) std::ofstream(out(), std::ios::app) << "{\"id\":\"n3";  // what a power cut could leave
        expect_refusal(gen(words()), 2, "--continue");
        const Outcome rest = gen(words({"--continue", "--batch-size", "5"}));
        EXPECT_EQ(rest.code, 0) << rest.err;
        EXPECT_EQ(results(), whole);
    }
    EXPECT_EQ(gen(words({"--continue"})).code, 0) << "nothing is left to do";
    EXPECT_EQ(results(), whole);
    expect_refusal(gen(words({"--continue", "--top-p", "0.5"})), 3, "out.jsonl:1");
}

TEST_F(GenBatch, NonFiniteWeightsAreFive) {
    models::Decoder decoder = models::Decoder::load(model_);
    decoder.layer(1).down.fill(NAN);
    models::save_base(decoder, model_, DType::f32);
    put("{\"prompt\": \"one\"}\n{\"prompt\": \"two\"}\n");
    const Outcome outcome = gen({"--model", model_, "--batch", in(), "--out", out()});
    EXPECT_EQ(outcome.code, 5);
    EXPECT_THAT(outcome.err, HasSubstr("2 lines met logits"));
    EXPECT_THAT(results(), HasSubstr("\"error\":\"the logit of token 0 is NaN"));
}

TEST_F(GenBatch, WrongUse) {
    put("{\"prompt\": \"one\"}\n{\"prompt\": 2}\n");
    expect_refusal(gen(words()), 3, "in.jsonl:2");
    EXPECT_FALSE(fs::exists(out())) << "nothing is begun before every line was read";
    put("{\"prompt\": \"one\"}\n");
    expect_refusal(gen({"--model", model_, "--batch", in()}), 2, "--out");
    expect_refusal(gen({"--model", model_, "--prompt", "x", "--out", out()}), 2, "--batch");
    expect_refusal(gen({"--model", model_, "--prompt", "x", "--continue"}), 2, "--batch");
    expect_refusal(gen(words({"--prompt", "x"})), 2, "--prompt");
    expect_refusal(gen(words({"--batch-size", "0"})), 2, "--batch-size");
    expect_refusal(gen({"--model", model_, "--batch", "/nonexistent", "--out", out()}), 3, "/nonexistent");
    expect_refusal(gen({"--model", model_, "--batch", in(), "--out", "/nonexistent/x"}), 4, "/nonexistent/x");
}

}  // namespace
}  // namespace lc::test
