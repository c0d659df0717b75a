// A tiny model and a run beside it, and the program on them as a user meets it.
#pragma once
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/wait.h>

#include <cstdio>
#include <fstream>
#include <string>
#include <vector>

#include "io/file.h"
#include "io/json.h"
#include "io/tokenizer/bpe_trainer.h"
#include "io/tokenizer/tokenizer.h"
#include "models/run.h"
#include "tests/models/tiny.h"

namespace lc::test {

inline std::string shell_quoted(const std::string& word) {
    std::string result(1, '\'');
    for (const char c : word)
        if (c == '\'')
            result.append("'\\''");
        else
            result.push_back(c);
    result.push_back('\'');
    return result;
}

struct Outcome {
    int code = -1;
    std::string out, err;
};

inline Outcome gen(const std::vector<std::string>& words, const std::string& environment = {},
                   const std::string& input = "/dev/null") {
    const TemporaryDirectory directory;
    const std::filesystem::path out = directory.path() / "out", err = directory.path() / "err";
    std::string command = fmt::format("env {} {}", environment, shell_quoted(LC_BINARY_DIR "/gen_lolcats"));
    for (const std::string& word : words) command += fmt::format(" {}", shell_quoted(word));
    command +=
        fmt::format(" < {} > {} 2> {}", shell_quoted(input), shell_quoted(out.string()), shell_quoted(err.string()));
    const int status = std::system(command.c_str());
    Outcome outcome{.code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status)};
    outcome.out = io::read_file(out, 1 << 20), outcome.err = io::read_file(err, 1 << 20);
    return outcome;
}

class GenLolcats : public ::testing::Test {
  protected:
    GenLolcats() : model_((directory_.path() / "model").string()), run_((directory_.path() / "run").string()) {
        std::filesystem::create_directories(model_), std::filesystem::create_directories(run_);
        std::ofstream(model_ + "/tokenizer.json")
            << io::train_byte_level_bpe("one two three four five six seven eight nine ten", {.vocab_size = 280});
        models::DecoderConfig config = tiny_config();
        config.vocab_size = 280;
        models::Decoder decoder = tiny_decoder(config, DType::f32);
        models::save_base(decoder, model_, DType::f32);
        decoder.linearize(tiny_spec(), 1);
        decoder.add_lora({}, 1);
        disturb(decoder.lora_parameters(), 0.1);
        const models::RunInfo info{.base_model = model_, .base_hash = models::model_hash(model_)};
        models::save_feature_maps(decoder, run_, info);
        models::save_adapter(decoder, run_, info);
    }
    std::vector<std::string> with(std::vector<std::string> words) const {
        words.insert(words.begin(), {"--model", model_, "--prompt", "one two", "--max-new-tokens", "12"});
        return words;
    }
    // Fails unless the program refused with this code and one line.
    void expect_refusal(const Outcome& outcome, int code, const std::string& part) const {
        EXPECT_EQ(outcome.code, code) << outcome.err;
        EXPECT_THAT(outcome.err, testing::AllOf(testing::StartsWith("error: "), testing::HasSubstr(part)));
        EXPECT_EQ(std::count(outcome.err.begin(), outcome.err.end(), '\n'), 1) << outcome.err;
        EXPECT_EQ(outcome.out, "");
    }
    TemporaryDirectory directory_;
    std::string model_, run_;
};

}  // namespace lc::test
