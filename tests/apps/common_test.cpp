#include "apps/common.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <iostream>
#include <new>

#include "apps/config_file.h"

namespace lc::apps {
namespace {

using Strings = std::vector<std::string>;
using Variables = std::map<std::string, std::string>;

// A program with one option of each kind and two subcommands.
struct Program {
    CLI::App app{"test program"};
    int64_t seed = 1;
    double rate = 0.5;
    bool fast = false;
    std::string text;
    Strings stops;
    int64_t steps = 10;
    std::string out;

    explicit Program(bool verbs = false) {
        prepare(app, "  test --seed 3");
        app.add_option("--seed,-s", seed, "a number");
        app.add_option("--rate", rate, "a real")->check(CLI::Range(0.0, 1.0));
        app.add_flag("--fast", fast, "a switch");
        app.add_option("--text", text, "a text");
        app.add_option("--stop", stops, "texts")->allow_extra_args(false);
        if (!verbs) return;
        app.require_subcommand(1);
        app.add_subcommand("run", "runs")->add_option("--max-steps", steps, "steps");
        app.add_subcommand("export", "exports")->add_option("--out", out, "where");
    }

    std::optional<Settings> parse(const Strings& words, const Variables& variables = {}) {
        std::vector<const char*> argv{"test"};
        for (const std::string& word : words) argv.push_back(word.c_str());
        return parse_command_line(app, static_cast<int>(argv.size()), argv.data(), [&](const std::string& name) {
            const auto found = variables.find(name);
            return found == variables.end() ? nullptr : found->second.c_str();
        });
    }
};

std::string config_file(const std::string& content) {
    const std::string path = testing::TempDir() + "lolcats_common_test_" +
                             testing::UnitTest::GetInstance()->current_test_info()->name() + ".toml";
    std::ofstream(path) << content;
    return path;
}

std::string usage_error(const std::function<void()>& body) {
    try {
        body();
    } catch (const Error& error) {
        EXPECT_EQ(error.kind(), ErrorKind::Usage) << error.what();
        return error.what();
    }
    ADD_FAILURE() << "no error";
    return {};
}

// The twelve cases of precedence: every set of layers that may speak, for a number; then a switch, a list, a
// subcommand's option and the place of the file itself.
struct Precedence {
    const char *file, *environment, *command_line;
    int64_t wanted;
    const char* origin;  // "FILE" stands for the file's path
};

TEST(Precedence, NumberInEverySetOfLayers) {
    const Precedence cases[] = {
        {nullptr, nullptr, nullptr, 1, nullptr},    {"2", nullptr, nullptr, 2, "FILE:1"},
        {nullptr, "3", nullptr, 3, "LOLCATS_SEED"}, {nullptr, nullptr, "4", 4, "command line"},
        {"2", "3", nullptr, 3, "LOLCATS_SEED"},     {"2", nullptr, "4", 4, "command line"},
        {nullptr, "3", "4", 4, "command line"},     {"2", "3", "4", 4, "command line"},
    };
    for (const Precedence& c : cases) {
        Program program;
        Strings words;
        const std::string path = config_file(c.file ? fmt::format("seed = {}\n", c.file) : "");
        words = {"--config", path};
        if (c.command_line) words.insert(words.end(), {"--seed", c.command_line});
        const auto settings =
            program.parse(words, c.environment ? Variables{{"LOLCATS_SEED", c.environment}} : Variables{});
        ASSERT_TRUE(settings);
        EXPECT_EQ(program.seed, c.wanted);
        const auto origin = settings->origin.find("seed");
        if (c.origin == nullptr) {
            EXPECT_EQ(origin, settings->origin.end());
        } else {
            ASSERT_NE(origin, settings->origin.end());
            EXPECT_EQ(origin->second, c.origin == std::string("FILE:1") ? path + ":1" : c.origin);
        }
    }
}

TEST(Precedence, SwitchCanBeTurnedOffAbove) {
    const std::string path = config_file("fast = true");
    Program by_file, by_environment, by_command_line;
    by_file.parse({"--config", path});
    EXPECT_TRUE(by_file.fast);
    by_environment.parse({"--config", path}, {{"LOLCATS_FAST", "false"}});
    EXPECT_FALSE(by_environment.fast);
    by_command_line.parse({"--config", path, "--fast=false"}, {{"LOLCATS_FAST", "1"}});
    EXPECT_FALSE(by_command_line.fast);
}

TEST(Precedence, ListIsReplacedNotJoined) {
    const std::string path = config_file("stop = [\"a # b\", 'c,d',\n  \"[e]\"]  # three\n");
    Program by_file, by_environment, by_command_line;
    by_file.parse({"--config", path});
    EXPECT_EQ(by_file.stops, (Strings{"a # b", "c,d", "[e]"}));
    by_environment.parse({"--config", path}, {{"LOLCATS_STOP", "[\"x\", \"y\"]"}});
    EXPECT_EQ(by_environment.stops, (Strings{"x", "y"}));
    by_command_line.parse({"--config", path, "--stop", "1", "--stop", "2"}, {{"LOLCATS_STOP", "x"}});
    EXPECT_EQ(by_command_line.stops, (Strings{"1", "2"}));
}

TEST(Precedence, OptionOfASubcommand) {
    const std::string path = config_file("max_steps = 2\nout = \"of another command\"\nseed = 5\n");
    Program by_file(true), by_environment(true), by_command_line(true);
    EXPECT_EQ(by_file.parse({"--config", path, "run"})->verb, "run");
    EXPECT_EQ(by_file.steps, 2);
    EXPECT_EQ(by_file.seed, 5);
    by_environment.parse({"run", "--config", path}, {{"LOLCATS_MAX_STEPS", "3"}});
    EXPECT_EQ(by_environment.steps, 3);
    by_command_line.parse({"run", "--max-steps=4", "--config=" + path}, {{"LOLCATS_MAX_STEPS", "3"}});
    EXPECT_EQ(by_command_line.steps, 4);
}

TEST(Precedence, FileNamedByTheEnvironmentUnlessOnTheCommandLine) {
    const std::string path = config_file("seed = 6");
    Program by_environment, by_command_line;
    by_environment.parse({}, {{"LOLCATS_CONFIG", path}});
    EXPECT_EQ(by_environment.seed, 6);
    by_command_line.parse({"--config", path}, {{"LOLCATS_CONFIG", "/nonexistent"}});
    EXPECT_EQ(by_command_line.seed, 6);
}

TEST(Refused, UnknownOptionsKeysAndCommands) {
    Program program, with_verbs(true);
    EXPECT_EQ(usage_error([&] { program.parse({"--sead", "3"}); }), "unknown option '--sead' — did you mean '--seed'?");
    EXPECT_THAT(usage_error([&] { program.parse({"--zzzzzz"}); }), testing::HasSubstr("see --help"));
    const std::string path = config_file("# comment\n\nrat = 0.5\n");
    EXPECT_EQ(usage_error([&] {
                  program.parse({"--config", path});
              }),
              "unknown key 'rat' (" + path + ":3) — did you mean 'rate'?");
    EXPECT_EQ(usage_error([&] { with_verbs.parse({"exprot"}); }), "unknown command 'exprot' — did you mean 'export'?");
    EXPECT_THAT(usage_error([&] { with_verbs.parse({}); }), testing::HasSubstr("subcommand"));
    EXPECT_THAT(usage_error([&] { program.parse({"stray"}); }), testing::HasSubstr("stray"));
    // An option of another subcommand is unknown here.
    EXPECT_THAT(usage_error([&] {
                    with_verbs.parse({"run", "--out", "x"});
                }),
                testing::HasSubstr("unknown option '--out'"));
}

TEST(Refused, RepeatedScalars) {
    Program program, by_file;
    usage_error([&] { program.parse({"--seed", "1", "--seed", "2"}); });
    const std::string path = config_file("max-steps = 1\nmax_steps = 2\n");
    EXPECT_EQ(usage_error([&] {
                  by_file.parse({"--config", path});
              }),
              path + ":2: key 'max-steps' stands here and in line 1");
}

TEST(Refused, WrongTypesNameTheirPlace) {
    const auto with_file = [](const std::string& content) {
        Program program;
        return usage_error([&] { program.parse({"--config", config_file(content)}); });
    };
    EXPECT_THAT(with_file("seed = \"many\""),
                testing::AllOf(testing::HasSubstr("--seed"), testing::HasSubstr(".toml:1)")));
    EXPECT_THAT(with_file("seed = 1.5"), testing::HasSubstr("--seed"));
    EXPECT_THAT(with_file("rate = 2"), testing::AllOf(testing::HasSubstr("--rate"), testing::HasSubstr("range")));
    EXPECT_THAT(with_file("fast = 1"), testing::HasSubstr("must be true or false"));
    EXPECT_THAT(with_file("seed = [1, 2]"), testing::HasSubstr("takes one value"));
    EXPECT_THAT(with_file("print-config = true"), testing::HasSubstr("only stand on the command line"));
    Program program, by_environment, missing;
    EXPECT_THAT(usage_error([&] { program.parse({"--seed", "many"}); }), testing::HasSubstr("--seed"));
    EXPECT_THAT(usage_error([&] {
                    by_environment.parse({}, {{"LOLCATS_SEED", "many"}});
                }),
                testing::HasSubstr("(LOLCATS_SEED)"));
    EXPECT_THAT(usage_error([&] {
                    missing.parse({"--config", "/nonexistent.toml"});
                }),
                testing::HasSubstr("/nonexistent.toml"));
}

TEST(Refused, ConfigFilesThatAreNoFlatToml) {
    const auto reason = [](const std::string& text) { return usage_error([&] { parse_config(text, "f"); }); };
    EXPECT_THAT(reason("[table]\n"), testing::HasSubstr("f:1: tables"));
    EXPECT_THAT(reason("a 1"), testing::HasSubstr("needs '= value'"));
    EXPECT_THAT(reason("a ="), testing::HasSubstr("a value is missing"));
    EXPECT_THAT(reason("a = word"), testing::HasSubstr("texts need quotes"));
    EXPECT_THAT(reason("a = \"x"), testing::HasSubstr("no closing quote"));
    EXPECT_THAT(reason("a = 'x\ny'"), testing::HasSubstr("no closing quote"));
    EXPECT_THAT(reason("a = \"\\q\""), testing::HasSubstr("unknown escape"));
    EXPECT_THAT(reason("a = \"\\ud800\""), testing::HasSubstr("no Unicode scalar"));
    EXPECT_THAT(reason("a = [1, 2"), testing::HasSubstr("f:1"));
    EXPECT_THAT(reason("a = [[1]]"), testing::HasSubstr("arrays of arrays"));
    EXPECT_THAT(reason("a = 1 2"), testing::HasSubstr("after the value"));
    EXPECT_THAT(reason("a = 1__0"), testing::HasSubstr("no number"));
    EXPECT_THAT(reason("= 1"), testing::HasSubstr("a key was expected"));
    EXPECT_THAT(reason("a = \"\xff\""), testing::HasSubstr("UTF-8"));
}

TEST(ConfigFile, ReadsWhatTomlAllows) {
    const auto entries = parse_config(
        "# head\r\nt = \"\\u00e9\\t\\\"x\\\" # no comment\" # comment\r\nn = -1_000.5e-3\nb=true\nl = []", "f");
    ASSERT_EQ(entries.size(), 4u);
    EXPECT_EQ(entries[0].values[0].text, "\xc3\xa9\t\"x\" # no comment");
    EXPECT_EQ(entries[1].values[0].text, "-1000.5e-3");
    EXPECT_EQ(entries[2].values[0].type, ConfigType::boolean);
    EXPECT_TRUE(entries[3].is_array && entries[3].values.empty());
}

TEST(ConfigFile, ResolvedOneReadsBackToTheSame) {
    Program first, second;
    const std::string odd = "line\nbreak \"quoted\" \\ # [x] caf\xc3\xa9 \x01";
    const auto settings =
        first.parse({"--text", odd, "--stop", "[a,b]", "--stop", "", "--rate", "0.25", "--fast", "-s", "-7"});
    ASSERT_TRUE(settings);
    const std::string resolved = resolved_config(first.app, *settings);
    ASSERT_TRUE(second.parse({"--config", config_file(resolved)}));
    EXPECT_EQ(second.text, odd);
    EXPECT_EQ(second.stops, (Strings{"[a,b]", ""}));
    EXPECT_EQ(second.rate, 0.25);
    EXPECT_EQ(second.seed, -7);
    EXPECT_TRUE(second.fast);
    EXPECT_EQ(resolved_config(first.app, *settings), resolved);
    EXPECT_THAT(resolved_config(first.app, *settings, true), testing::HasSubstr("rate = 0.25  # command line\n"));
}

TEST(CommandLine, ValuesMayLookLikeOptions) {
    Program program;
    program.parse({"--text", "--seed", "--stop=--x"});
    EXPECT_EQ(program.text, "--seed");
    EXPECT_EQ(program.seed, 1);
    EXPECT_EQ(program.stops, Strings{"--x"});
}

TEST(CommandLine, HelpListsDefaultsExamplesAndExitCodes) {
    Program program;
    testing::internal::CaptureStdout();
    EXPECT_FALSE(program.parse({"--help"}, {{"LOLCATS_CONFIG", "/nonexistent"}}));
    const std::string help = testing::internal::GetCapturedStdout();
    for (const char* part : {"--seed", "=0.5", "test --seed 3", "3  bad input file", "75 preempted"})
        EXPECT_THAT(help, testing::HasSubstr(part));
}

TEST(CommandLine, PrintConfigShowsOrigins) {
    Program program;
    testing::internal::CaptureStdout();
    EXPECT_FALSE(program.parse({"--print-config"}, {{"LOLCATS_SEED", "9"}}));
    EXPECT_THAT(testing::internal::GetCapturedStdout(), testing::AllOf(testing::HasSubstr("seed = 9  # LOLCATS_SEED\n"),
                                                                       testing::HasSubstr("rate = 0.5  # default\n")));
}

TEST(RunApp, MapsEveryFailureToItsCode) {
    const auto code = [](const std::function<int()>& body, std::string* line) {
        testing::internal::CaptureStderr();
        const int result = run_app(body);
        *line = testing::internal::GetCapturedStderr();
        return result;
    };
    std::string line;
    EXPECT_EQ(code([] { return 0; }, &line), 0);
    EXPECT_EQ(line, "");
    EXPECT_EQ(code([] { return 75; }, &line), 75);
    for (const ErrorKind kind : {ErrorKind::Usage, ErrorKind::BadInput, ErrorKind::Resource, ErrorKind::Numerics,
                                 ErrorKind::Distributed, ErrorKind::Checkpoint}) {
        EXPECT_EQ(code([&]() -> int { throw Error(kind, "what (where)"); }, &line), static_cast<int>(kind));
        EXPECT_EQ(line, "error: what (where)\n");
    }
    EXPECT_EQ(code([]() -> int { throw std::bad_alloc(); }, &line), 4);
    EXPECT_THAT(line, testing::StartsWith("error: out of memory"));
    EXPECT_EQ(code([]() -> int { throw std::runtime_error("odd"); }, &line), 1);
    EXPECT_THAT(line, testing::HasSubstr("odd — this is a bug"));
    EXPECT_EQ(code([]() -> int { throw 42; }, &line), 1);
}

}  // namespace
}  // namespace lc::apps
