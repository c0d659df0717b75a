// The program as a user meets it: exit codes, one-line errors, text and JSON, on a tiny model made here.
#include <fstream>

#include "autograd/grad_mode.h"
#include "io/safetensors.h"
#include "tests/apps/gen_fixture.h"
#include "tests/assets.h"

namespace lc {
namespace {

using test::gen;
using test::GenLolcats;
using test::Outcome;
using test::shell_quoted;
using testing::AllOf;
using testing::HasSubstr;
namespace fs = std::filesystem;

TEST_F(GenLolcats, JsonOfTeacherAndStudent) {
    for (const bool linearized : {false, true}) {
        std::vector<std::string> words = with({"--json"});
        if (linearized) words.insert(words.end(), {"--run", run_});
        const Outcome outcome = gen(words);
        ASSERT_EQ(outcome.code, 0) << outcome.err;
        EXPECT_EQ(outcome.err, "");
        const io::Json json = io::parse_json(outcome.out, "stdout");
        const auto tokenizer = io::Tokenizer::load(model_ + "/tokenizer.json");
        const auto prompt = json["prompt_ids"].get<std::vector<int32_t>>(),
                   ids = json["ids"].get<std::vector<int32_t>>();
        EXPECT_EQ(prompt, tokenizer.encode("one two", true));
        EXPECT_EQ(prompt.front(), 0) << "BOS comes from the post-processor";
        EXPECT_TRUE(ids.size() == 12 || ids.back() == 1);
        EXPECT_EQ(json["finish_reason"], ids.size() == 12 ? "length" : "stop");
        EXPECT_EQ(json["text"].get<std::string>(), tokenizer.decode(ids, true));
        EXPECT_GT(json["state_bytes"].get<int64_t>(), 0);
        EXPECT_GT(json["prefill_tokens_per_second"].get<double>(), 0);
        EXPECT_GT(json["decode_tokens_per_second"].get<double>(), 0);
        const Outcome text = gen(linearized ? with({"--run", run_}) : with({}));
        EXPECT_EQ(text.out, json["text"].get<std::string>() + "\n");
    }
}

// The ids are those of the library's own full forward, LoRA applied: nothing is lost between the files and the output.
TEST_F(GenLolcats, GreedyIdsAreThoseOfTheFullForward) {
    models::Decoder decoder = models::Decoder::load(model_);
    models::apply_run(decoder, run_, models::model_hash(model_));
    const io::Json json =
        io::parse_json(gen(with({"--run", run_, "--json", "--greedy", "--temperature", "3"})).out, "stdout");
    auto history = json["prompt_ids"].get<std::vector<int32_t>>();
    const NoGrad no_grad;
    for (const int32_t id : json["ids"].get<std::vector<int32_t>>()) {
        const auto length = static_cast<int64_t>(history.size());
        const Tensor logits =
            decoder.logits(Tensor::from(history, {1, length}), {.mode = models::AttentionMode::Linearized});
        const auto last = logits.sliced(1, length - 1, 1).to_vector<float>();
        ASSERT_EQ(id, std::max_element(last.begin(), last.end()) - last.begin());
        history.push_back(id);
    }
}

TEST_F(GenLolcats, SamplingRepeatsWithTheSeed) {
    const auto text = [&](const char* seed) {
        return gen(with({"--temperature", "1.5", "--top-k", "50", "--seed", seed})).out;
    };
    EXPECT_EQ(text("1"), text("1"));
    EXPECT_NE(text("1"), text("2"));
}

TEST_F(GenLolcats, EveryFilterReachesTheSampler) {
    const auto json = [&](std::vector<std::string> words) {
        words.push_back("--json");
        return io::parse_json(gen(with(words)).out, "stdout");
    };
    const io::Json plain = json({});
    const auto first = plain["ids"][0].get<int32_t>();
    EXPECT_NE(json({"--logit-bias", fmt::format("{}=-inf", first)})["ids"][0], first);
    const std::vector<int32_t> sevens(12, 7);
    EXPECT_EQ(json({"--logit-bias", "7=1000"})["ids"].get<std::vector<int32_t>>(), sevens);
    EXPECT_EQ(json({"--logit-bias", "7=1000", "--frequency-penalty", "600"})["ids"][1] == 7, true);
    EXPECT_NE(json({"--logit-bias", "7=1000", "--frequency-penalty", "600"})["ids"][2], 7);
    EXPECT_NE(json({"--logit-bias", "7=1000", "--presence-penalty", "1200"})["ids"][1], 7);
    EXPECT_EQ(json({"--temperature", "1e-300"})["ids"], plain["ids"]);
    EXPECT_EQ(json({"--temperature", "2", "--top-k", "1"})["ids"], plain["ids"]);
    EXPECT_EQ(json({"--temperature", "2", "--top-k", "1000000", "--seed", "3"})["ids"],
              json({"--temperature", "2", "--seed", "3"})["ids"]);
}

TEST_F(GenLolcats, StopStringsAreNotPrinted) {
    const std::string all = gen(with({})).out;
    const std::string stop = all.substr(all.size() / 2, 2);
    const Outcome outcome = gen(with({"--json", "--stop", stop}));
    const io::Json json = io::parse_json(outcome.out, "stdout");
    EXPECT_EQ(json["text"].get<std::string>(), all.substr(0, all.find(stop)));
    EXPECT_EQ(json["finish_reason"], "stop");
}

TEST_F(GenLolcats, PromptsFromFilesAndStandardInput) {
    const std::string file = (directory_.path() / "prompt.txt").string();
    std::ofstream(file) << "one two";
    const std::string wanted = gen(with({})).out;
    EXPECT_EQ(gen({"--model", model_, "--prompt-file", file, "--max-new-tokens", "12"}).out, wanted);
    EXPECT_EQ(gen({"--model", model_, "--prompt-file", "-", "--max-new-tokens", "12"}, {}, file).out, wanted);
    EXPECT_EQ(
        gen({"--prompt", "one two"}, fmt::format("LOLCATS_MODEL={} LOLCATS_MAX_NEW_TOKENS=12", shell_quoted(model_)))
            .out,
        wanted);
}

TEST_F(GenLolcats, GenerationConfigGivesDefaultsAndFlagsWin) {
    std::ofstream(model_ + "/generation_config.json") << R"({"max_new_tokens": 3, "eos_token_id": [1, 279]})";
    const auto ids = [&](std::vector<std::string> words) {
        words.insert(words.begin(), {"--model", model_, "--prompt", "one", "--json"});
        return io::parse_json(gen(words).out, "stdout")["ids"].size();
    };
    EXPECT_LE(ids({}), 3u);
    EXPECT_EQ(ids({"--max-new-tokens", "1"}), 1u);
    std::ofstream(model_ + "/generation_config.json") << R"({"do_sample": true, "temperature": 1.7})";
    EXPECT_NE(gen(with({"--seed", "1"})).out, gen(with({"--greedy"})).out);
    std::ofstream(model_ + "/generation_config.json") << R"({"temperature": "hot"})";
    expect_refusal(gen(with({})), 3, "temperature");
}

TEST_F(GenLolcats, OddPromptsAreDefined) {
    const auto prompted = [&](const std::string& prompt) {
        return gen({"--model", model_, "--prompt", prompt, "--max-new-tokens", "5"});
    };
    EXPECT_EQ(prompted("").code, 0) << "BOS alone";
    EXPECT_EQ(prompted("one \xff\xc3").out, prompted("one \xEF\xBF\xBD\xEF\xBF\xBD").out)
        << "ill-formed UTF-8 as U+FFFD";
    EXPECT_EQ(prompted("one \xff").code, 0);
    const std::string first = gen({"--model", model_, "--prompt", "one two", "--max-new-tokens", "1"}).out;
    EXPECT_EQ(gen(with({"--stop", first.substr(0, first.size() - 1)})).out, "\n") << "a stop string that comes first";
    std::vector<std::string> banned;
    for (int id = 0; id < 280; ++id) banned.insert(banned.end(), {"--logit-bias", fmt::format("{}=-inf", id)});
    const Outcome none = gen(with(banned));
    EXPECT_EQ(none.code, 2);
    EXPECT_THAT(none.err, HasSubstr("logit_bias leaves no token"));
    // Without BOS an empty prompt has nothing to go on from.
    std::ofstream(model_ + "/tokenizer.json")
        << io::train_byte_level_bpe("one two", {.vocab_size = 280, .bos_token = ""});
    expect_refusal(prompted(""), 2, "the prompt has no tokens");
}

TEST_F(GenLolcats, AttentionTermsAndStats) {
    const Outcome both = gen(with({"--run", run_, "--stats"})),
                  window = gen(with({"--run", run_, "--attention-terms", "window"}));
    EXPECT_EQ(both.code, 0);
    EXPECT_THAT(both.err, AllOf(HasSubstr("prefill"), HasSubstr("tok/s"), HasSubstr("peak memory")));
    EXPECT_EQ(window.code, 0);
    EXPECT_EQ(gen(with({"--run", run_, "--attention-terms", "linear"})).code, 0);
    expect_refusal(gen(with({"--attention-terms", "window"})), 2, "--run");
    EXPECT_EQ(gen(with({"--run", run_, "--state-dtype", "bf16"})).code, 0);
    expect_refusal(gen(with({"--state-dtype", "bf16"})), 2, "--run");
}

TEST_F(GenLolcats, WeightsInEightBits) {
    const std::string state = (directory_.path() / "talk.state").string();
    for (const char* dtype : {"int8", "fp8"}) {
        const Outcome outcome =
            gen(with({"--run", run_, "--weights-dtype", dtype, "--save-state", state}));  // its adapter is merged first
        EXPECT_EQ(outcome.code, 0) << outcome.err;
        EXPECT_GT(outcome.out.size(), 1u);
    }
    expect_refusal(gen({"--model", model_, "--run", run_, "--load-state", state, "--prompt", "one"}), 3,
                   "weights in fp8");
    expect_refusal(gen(with({"--weights-dtype", "int4"})), 2, "--weights-dtype");
}

TEST_F(GenLolcats, WrongUseIsTwo) {
    expect_refusal(gen({"--prompt", "x"}), 2, "--model");
    expect_refusal(gen({"--model", model_ + "/config.json", "--prompt", "x"}), 2, "a model directory or a file *.gguf");
    expect_refusal(gen({"--model", model_}), 2, "give one of --prompt and --prompt-file");
    expect_refusal(gen(with({"--prompt-file", "x"})), 2, "only one");
    expect_refusal(gen(with({"--temprature", "1"})), 2, "did you mean '--temperature'?");
    expect_refusal(gen(with({"--top-p", "1.5"})), 2, "top_p");
    expect_refusal(gen(with({"--logit-bias", "1"})), 2, "ID=VALUE");
    expect_refusal(gen(with({"--logit-bias", "280=1"})), 2, "token 280");
    expect_refusal(gen(with({"--presence-penalty", "inf"})), 2, "presence_penalty");
    expect_refusal(gen(with({"--max-new-tokens", "0"})), 2, "--max-new-tokens");
    expect_refusal(gen(with({"--stop", ""})), 2, "stop string");
    expect_refusal(gen(with({}), "LOLCATS_SEED=none"), 2, "LOLCATS_SEED");
    std::string long_prompt;
    for (int i = 0; i < 300; ++i) long_prompt += "one two ";
    expect_refusal(gen({"--model", model_, "--prompt", long_prompt}), 2, "max_position_embeddings 256");
}

TEST_F(GenLolcats, BadFilesAreThree) {
    expect_refusal(gen({"--model", "/nonexistent", "--prompt", "x"}), 3, "/nonexistent");
    expect_refusal(gen(with({"--run", "/nonexistent"})), 3, "/nonexistent");
    expect_refusal(gen({"--model", model_, "--prompt-file", "/nonexistent"}), 3, "/nonexistent");
    // Another base under the same run.
    std::ofstream(model_ + "/config.json", std::ios::app) << "\n";
    expect_refusal(gen(with({"--run", run_})), 3, "another base model");
    fs::resize_file(model_ + "/model.safetensors", 1000);
    expect_refusal(gen(with({})), 3, "model.safetensors");
    std::ofstream(model_ + "/tokenizer.json") << "{}";
    expect_refusal(gen(with({})), 3, "tokenizer.json");
}

TEST_F(GenLolcats, NonFiniteWeightsAreFive) {
    models::Decoder decoder = models::Decoder::load(model_);
    decoder.layer(1).down.fill(NAN);
    models::save_base(decoder, model_, DType::f32);
    expect_refusal(gen(with({})), 5, "NaN");
}

TEST_F(GenLolcats, UnwritableOutputIsFour) {
    if (!fs::exists("/dev/full")) GTEST_SKIP() << "no /dev/full here";
    const std::string command = fmt::format("{} --prompt one --model {} > /dev/full 2> /dev/null",
                                            shell_quoted(LC_BINARY_DIR "/gen_lolcats"), shell_quoted(model_));
    EXPECT_EQ(WEXITSTATUS(std::system(command.c_str())), 4);
}

TEST(GenLolcatsHelp, ListsExamplesAndExitCodes) {
    const Outcome outcome = gen({"--help"});
    EXPECT_EQ(outcome.code, 0);
    for (const char* part :
         {"--repetition-penalty", "Examples:", "gen_lolcats --model", "Exit codes:", "3  bad input file"})
        EXPECT_THAT(outcome.out, HasSubstr(part));
}

TEST(GenLolcatsOnStories, TextOfTheReference) {
    const auto assets = test::assets_dir();
    if (!assets) GTEST_SKIP() << test::kNoAssets;
    const io::Json reference = io::read_json_file(*assets / "stories260k/golden/reference.json");
    const std::string text = reference["greedy_text"], start = "Once upon a time";
    const Outcome outcome =
        gen({"--model", (*assets / "stories260k").string(), "--prompt", start, "--max-new-tokens", "60"});
    ASSERT_EQ(outcome.code, 0) << outcome.err;
    EXPECT_EQ(text.rfind(start + outcome.out.substr(0, outcome.out.size() - 1), 0), 0u) << outcome.out;
}

}  // namespace
}  // namespace lc
