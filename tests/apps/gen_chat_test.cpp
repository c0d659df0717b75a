// gen_lolcats --chat and saved states as a user meets them.
#include "tests/apps/gen_fixture.h"
#include "tests/e2e/process.h"

namespace lc::test {
namespace {

using testing::AllOf;
using testing::HasSubstr;
namespace fs = std::filesystem;

class GenChat : public GenLolcats {
  protected:
    std::string file(const char* name) const { return (directory_.path() / name).string(); }
    std::string typed(const std::string& text) const {
        std::ofstream(file("typed")) << text;
        return file("typed");
    }
    std::string content(const char* name) const {  // of a file that may be growing
        std::ifstream stream(file(name), std::ios::binary);
        return std::string(std::istreambuf_iterator<char>(stream), {});
    }
    std::vector<std::string> words(std::vector<std::string> more = {}) const {
        more.insert(more.begin(), {"--model", model_, "--run", run_, "--chat", "--max-new-tokens", "10"});
        return more;
    }
    std::vector<std::string> chat(std::vector<std::string> more = {}) const {
        more.insert(more.end(), {"--template", "mistral"});
        return words(more);
    }
};

TEST_F(GenChat, TurnsFollowOnEachOther) {
    const Outcome both = gen(chat(), {}, typed("one\n\ntwo\n")), first = gen(chat(), {}, typed("one"));
    ASSERT_EQ(both.code, 0) << both.err;
    EXPECT_TRUE(both.out.starts_with(first.out));
    EXPECT_NE(both.out, first.out + gen(chat(), {}, typed("two")).out) << "the second turn remembers the first";
    EXPECT_EQ(gen(chat(), {}, typed("one\n/reset\ntwo\n")).out, first.out + gen(chat(), {}, typed("two")).out);
    EXPECT_EQ(gen(chat(), {}, typed("one\n/exit\ntwo\n")).out, first.out);
    EXPECT_EQ(gen(chat(), {}, typed("")).out, "");
}

TEST_F(GenChat, StatsShowThatOnlyTheNewIsRead) {
    const Outcome outcome =
        gen(chat({"--stats", "--ignore-eos"}), {}, typed("seven eight nine ten seven eight\none\n"));
    ASSERT_EQ(outcome.code, 0) << outcome.err;
    const auto tokenizer = io::Tokenizer::load(model_ + "/tokenizer.json");
    const size_t second = tokenizer.encode("[INST] one [/INST]", false).size() + 1;  // and the end of the first answer
    EXPECT_THAT(outcome.err, HasSubstr(fmt::format("({} tokens) | decode", second)));
}

TEST_F(GenChat, TemplateOfTheModelsFiles) {
    expect_refusal(gen(words(), {}, typed("one")), 2, "--template");
    std::ofstream(model_ + "/tokenizer_config.json") << R"({"chat_template": "{{ '[INST] ' }}"})";
    EXPECT_EQ(gen(words(), {}, typed("one")).out, gen(chat(), {}, typed("one")).out);
    EXPECT_NE(gen(words({"--template", "alpaca"}), {}, typed("one")).out, gen(chat(), {}, typed("one")).out);
    expect_refusal(gen(words({"--template", "llama3"}), {}, typed("one")), 3, "<|eot_id|>");
    expect_refusal(gen(words({"--template", "vicuna"}), {}, typed("one")), 2, "vicuna");
    EXPECT_NE(gen(chat({"--system", "two"}), {}, typed("one")).out, gen(chat(), {}, typed("one")).out);
}

TEST_F(GenChat, IllFormedUtf8IsReadAsReplacementCharacters) {
    EXPECT_EQ(gen(chat(), {}, typed("one \xff\xfe")).out, gen(chat(), {}, typed("one \xEF\xBF\xBD\xEF\xBF\xBD")).out);
}

// The answer would take very long; the program then waits for the next message and ends with the input.
TEST_F(GenChat, ControlCStopsTheAnswerAndNotTheProgram) {
    models::DecoderConfig config = tiny_config();
    config.vocab_size = 280, config.max_positions = 2'000'000;
    models::save_base(tiny_decoder(config, DType::f32), model_, DType::f32);
    ASSERT_EQ(::mkfifo(file("talk").c_str(), 0600), 0);
    const int talk = ::open(file("talk").c_str(), O_RDWR | O_CLOEXEC);
    ASSERT_GE(talk, 0);
    const std::string command = fmt::format(
        "exec {} --model {} --chat --template mistral --ignore-eos --max-new-tokens 1900000 < {} > {} 2> {}",
        shell_quoted(LC_BINARY_DIR "/gen_lolcats"), shell_quoted(model_), shell_quoted(file("talk")),
        shell_quoted(file("out")), shell_quoted(file("err")));
    const pid_t pid = ::fork();
    if (pid == 0) {
        ::execl("/bin/sh", "sh", "-c", command.c_str(), nullptr);
        ::_exit(127);
    }
    struct Ended {  // also when the test fails on its way
        pid_t child;
        ~Ended() {
            if (child > 0) ::kill(child, SIGKILL);
        }
    } running{pid};
    const auto wait_for = [&](const char* name, auto&& holds) {
        for (int i = 0; i < 30000; ++i) {
            if (fs::exists(file(name)) && holds(content(name))) return true;
            std::this_thread::sleep_for(std::chrono::milliseconds(1));
        }
        return false;
    };
    for (int turn = 1; turn <= 2; ++turn) {
        const size_t before = fs::exists(file("out")) ? fs::file_size(file("out")) : 0;
        ASSERT_EQ(::write(talk, "one\n", 4), 4);
        ASSERT_TRUE(wait_for("out", [&](const std::string& out) { return out.size() > before + 20; }));
        ::kill(pid, SIGINT);
        EXPECT_TRUE(wait_for("err", [&](const std::string& err) {
            size_t count = 0;
            for (size_t at = 0; (at = err.find("(stopped)", at)) != std::string::npos; ++at) ++count;
            return count == static_cast<size_t>(turn);
        }));
    }
    ASSERT_EQ(::write(talk, "/exit\n", 6), 6);
    int status = 0;
    ASSERT_EQ(::waitpid(pid, &status, 0), pid);
    running.child = 0;
    EXPECT_EQ(WEXITSTATUS(status), 0);
    ::close(talk);
}

TEST_F(GenChat, SavedStatesGoOn) {
    const std::string whole = gen(chat(), {}, typed("one\ntwo three\n")).out;
    const Outcome first = gen(chat({"--save-state", file("state")}), {}, typed("one\n"));
    ASSERT_EQ(first.code, 0) << first.err;
    const Outcome second = gen(words({"--load-state", file("state")}), {}, typed("two three\n"));
    EXPECT_EQ(second.code, 0) << second.err;
    EXPECT_EQ(first.out + second.out, whole) << "the state knows its template";
    expect_refusal(gen(words({"--load-state", file("state"), "--template", "alpaca"}), {}, typed("x")), 2, "mistral");
    expect_refusal(gen({"--model", model_, "--chat", "--load-state", file("state")}, {}, typed("x")), 3, "attention");
    fs::resize_file(file("state"), 100);
    expect_refusal(gen(chat({"--load-state", file("state")}), {}, typed("x")), 3, "state");
    expect_refusal(gen(chat({"--load-state", "/nonexistent"}), {}, typed("x")), 3, "/nonexistent");
}

TEST_F(GenChat, ATextGoesOnFromItsState) {
    const std::vector<std::string> save = {"--run", run_, "--ignore-eos", "--save-state", file("state")};
    const std::string first = gen(with(save)).out;
    const std::vector<std::string> go_on = {
        "--model",          model_, "--run", run_, "--ignore-eos", "--load-state", file("state"), "--prompt", "",
        "--max-new-tokens", "8"};
    const Outcome rest = gen(go_on);
    ASSERT_EQ(rest.code, 0) << rest.err;
    const Outcome longer =
        gen({"--model", model_, "--run", run_, "--ignore-eos", "--prompt", "one two", "--max-new-tokens", "20"});
    EXPECT_EQ(first.substr(0, first.size() - 1) + rest.out, longer.out);
    EXPECT_EQ(gen(with({"--save-state", "/nonexistent/x"})).code, 4);
}

TEST_F(GenChat, WrongUse) {
    expect_refusal(gen(chat({"--prompt", "x"}), {}, typed("x")), 2, "--prompt");
    expect_refusal(gen(chat({"--json"}), {}, typed("x")), 2, "--json");
    expect_refusal(gen(chat({"--batch", "x"}), {}, typed("x")), 2, "--batch");
    expect_refusal(gen(with({"--template", "alpaca"})), 2, "--chat");
    expect_refusal(gen(with({"--system", "x"})), 2, "--chat");
    expect_refusal(gen(words({"--template", "alpaca", "--system", "x"}), {}, typed("x")), 2, "no system prompt");
    const std::string long_message = fmt::format("{}\n", fmt::join(std::vector<std::string>(300, "one two"), " "));
    expect_refusal(gen(chat(), {}, typed(long_message)), 2, "max_position_embeddings 256");
}

}  // namespace
}  // namespace lc::test
