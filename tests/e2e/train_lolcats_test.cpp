// train_lolcats as a user runs it, on a model that it made itself: killed at random moments, asked to stop, resumed.
#include <gtest/gtest.h>

#include <fstream>
#include <map>

#include "core/rng.h"
#include "io/file.h"
#include "io/json.h"
#include "tests/e2e/process.h"
#include "tests/io/faults.h"
#include "train/metrics.h"

namespace lc::test {
namespace {

namespace fs = std::filesystem;
using io::test::ScratchDir;
using Clock = std::chrono::steady_clock;

std::string text_of(int words) {
    static constexpr const char* kWords[] = {"once ", "upon ",   "a ",  "time ", "there ",
                                             "was ",  "a fox. ", "it ", "ran ",  "away, "};
    const Random random(11);
    std::string text;
    for (int i = 0; i < words; ++i) text += kWords[random.below(10, static_cast<uint64_t>(i))];
    return text;
}

constexpr const char* kConfig = R"({"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 32,
  "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
  "vocab_size": 320, "max_position_embeddings": 128, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
  "tie_word_embeddings": true, "hidden_act": "silu", "torch_dtype": "float32"})";

class TrainLolcats : public ::testing::Test {
  protected:
    static void SetUpTestSuite() {
        world_ = new ScratchDir;
        world_->write("text.txt", text_of(3000));
        world_->write("config.json", kConfig);
        ASSERT_EQ(run_program("train_lolcats", {"train-tokenizer", "--text", at("text.txt"), "--vocab-size", "310",
                                                "--out", at("tokenizer.json")}),
                  0);
        ASSERT_EQ(run_program("train_lolcats", {"pretrain", "--model-config", at("config.json"), "--tokenizer",
                                                at("tokenizer.json"), "--data", at("text.txt"), "--out", at("model"),
                                                "--seq-len", "24", "--steps", "30", "--warmup", "5", "--lr", "0.01"}),
                  0);
    }
    static void TearDownTestSuite() { delete world_; }
    static std::string at(const std::string& name) { return (*world_ / name).string(); }

    // `more` replaces or adds options, in pairs.
    Arguments linearize(const fs::path& run, const Arguments& more = {}) const {
        Arguments words{"linearize"};
        std::vector<std::pair<std::string, std::string>> options{
            {"--model", at("model")},   {"--data", at("text.txt")}, {"--out", run.string()}, {"--seq-len", "24"},
            {"--window-size", "4"},     {"--accumulate", "2"},      {"--eval-every", "7"},   {"--save-every", "3"},
            {"--transfer-steps", "40"}, {"--finetune-steps", "40"}, {"--lora-rank", "2"},    {"--threads", "1"}};
        for (size_t i = 0; i + 1 < more.size(); i += 2) {
            std::erase_if(options, [&](const auto& option) { return option.first == more[i]; });
            options.emplace_back(more[i], more[i + 1]);
        }
        for (const auto& [name, value] : options) words.push_back(name), words.push_back(value);
        return words;
    }
    static std::map<std::string, std::string> results_of(const fs::path& run) {
        std::map<std::string, std::string> results;
        for (const char* name :
             {"feature_maps.safetensors", "adapter_model.safetensors", "adapter_config.json", "config.toml"})
            results[name] = io::read_file(run / name, 1 << 30);
        // config.toml names the run directory and how it was started; only its presence is compared.
        results["config.toml"].clear();
        std::ifstream file(run / "metrics.jsonl");
        for (std::string line; std::getline(file, line);)
            results["metrics"] += train::without_timing(train::Record::parse(line)).dump() + "\n";
        results["summary"] =
            train::without_timing(train::Record::parse(io::read_file(run / "summary.json", 1 << 20))).dump();
        return results;
    }
    // The results of the unbroken run, and how long it took.
    static inline std::map<std::string, std::string> unbroken_;
    static inline double unbroken_ms_ = 0;
    void run_unbroken() {
        if (!unbroken_.empty()) return;
        const auto start = Clock::now();
        ASSERT_EQ(run_program("train_lolcats", linearize(at("unbroken"))), 0);
        unbroken_ms_ = std::chrono::duration<double, std::milli>(Clock::now() - start).count();
        unbroken_ = results_of(at("unbroken"));
    }
    void expect_unbroken(const fs::path& run) {
        const auto results = results_of(run);
        for (const auto& [name, bytes] : unbroken_) EXPECT_TRUE(results.at(name) == bytes) << name;
    }
    static void wait_for(const fs::path& path) {
        for (int i = 0; i < 20000 && !fs::exists(path); ++i) std::this_thread::sleep_for(std::chrono::milliseconds(1));
        ASSERT_TRUE(fs::exists(path)) << path;
    }

    static inline ScratchDir* world_ = nullptr;
    ScratchDir scratch_;
};

TEST_F(TrainLolcats, KilledTwentyTimesIsByteEqual) {
    run_unbroken();
    const Random random(20);
    int kills = 0;
    uint64_t draw = 0;
    // A killed run is started again until it ends. Each try is killed after a random part of `patience_ms`, which shrinks when
    // a try ended before its kill: the unbroken run may have been measured on a machine that was busier than it is now.
    double patience_ms = 0.6 * unbroken_ms_;
    for (int runs = 0; kills < 20; ++runs) {
        ASSERT_LT(runs, 60) << "only " << kills << " kills came in time";
        const fs::path run = scratch_ / fmt::format("run{}", runs);
        int code = 1000 + SIGKILL;
        while (code == 1000 + SIGKILL) {
            Process process("train_lolcats", linearize(run, {"--resume", "auto"}));
            const auto delay = std::chrono::milliseconds(static_cast<int64_t>(patience_ms * random.uniform(draw++)));
            if (kills == 20) {
                code = process.wait();
            } else if (!process.ended_within(delay, code)) {
                process.send(SIGKILL);
                code = process.wait();  // 0 if it ended just before the signal came
            }
            kills += code == 1000 + SIGKILL;
        }
        ASSERT_EQ(code, 0);
        patience_ms *= 0.8;
        expect_unbroken(run);
    }
}

TEST_F(TrainLolcats, SignalsSaveAndExit75) {
    run_unbroken();
    for (int signal : {SIGTERM, SIGINT, SIGUSR1, SIGHUP}) {
        const fs::path run = scratch_ / fmt::format("run{}", signal);
        Process process("train_lolcats", linearize(run));
        wait_for(run / "checkpoints" / "step-transfer-00000003");
        process.send(signal);
        EXPECT_EQ(process.wait(), 75);
        EXPECT_FALSE(fs::exists(run / "summary.json"));
        EXPECT_EQ(run_program("train_lolcats", linearize(run, {"--resume", "auto"})), 0);
        expect_unbroken(run);
    }
}

TEST_F(TrainLolcats, SecondSignalEndsAtOnce) {
    const fs::path run = scratch_ / "run";
    Process process("train_lolcats", linearize(run, {"--transfer-steps", "100000", "--eval-batch", "1"}));
    wait_for(run / "checkpoints" / "step-transfer-00000000");
    process.send(SIGSTOP);  // so that both are pending when it goes on
    process.send(SIGTERM), process.send(SIGINT);
    process.send(SIGCONT);
    const int code = process.wait();
    EXPECT_TRUE(code == 128 + SIGTERM || code == 128 + SIGINT) << code;
}

TEST_F(TrainLolcats, TwoRunsInOneDirectoryAreRefused) {
    const fs::path run = scratch_ / "run";
    Process process("train_lolcats", linearize(run, {"--transfer-steps", "100000"}));
    wait_for(run / "checkpoints" / "step-transfer-00000000");
    EXPECT_EQ(run_program("train_lolcats", linearize(run, {"--resume", "auto"})), 7);
    process.send(SIGTERM);
    EXPECT_EQ(process.wait(), 75);
}

TEST_F(TrainLolcats, FailuresHaveTheirExitCodesAndOneLine) {
    const std::string err = (scratch_ / "err").string();
    const auto expect = [&](const Arguments& arguments, int code, const std::string& part) {
        EXPECT_EQ(run_program("train_lolcats", arguments, {}, err), code) << part;
        const std::string text = io::read_file(err, 1 << 20);
        const size_t line = text.rfind("error: ");
        ASSERT_NE(line, std::string::npos) << text;
        EXPECT_EQ(text.find('\n', line), text.size() - 1) << "one line, the last: " << text;
        EXPECT_NE(text.find(part, line), std::string::npos) << text;
    };
    expect({"linearise"}, 2, "linearize");
    expect({"linearize"}, 2, "model");
    expect({"linearize", "--model", at("model"), "--out", at("nothing")}, 2, "--data is required");
    expect({"linearize", "--model", at("model"), "--data", at("text.txt")}, 2, "--out is required");
    expect(linearize(scratch_ / "i", {"--device", "gpu"}), 2, "--device");
    expect(linearize(scratch_ / "i", {"--device", "cpu", "--dtype", "bf16"}), 2, "bf16");
    expect(linearize(scratch_ / "i", {"--device", "cuda:4096"}), 4, "--device cuda");
    expect(linearize(scratch_ / "i", {"--device", "cpu", "--profile-steps", "1:2"}), 2, "--profile-steps");
    expect(linearize(scratch_ / "a", {"--seqlen", "3"}), 2, "--seq-len");
    expect(linearize(scratch_ / "b", {"--schedule", "linear"}), 2, "plateau");
    expect(linearize(scratch_ / "c", {"--stages", "transfer,sleep"}), 2, "sleep");
    expect(linearize(scratch_ / "d", {"--attention", "softmax"}), 2, "softmax");
    expect(linearize(scratch_ / "e", {"--model", at("nowhere")}), 3, "nowhere");
    expect(linearize(scratch_ / "f", {"--data", at("config.json")}), 3, "config.json");
    expect(linearize(scratch_ / "g", {"--transfer-lr", "1e38", "--max-skips", "2", "--transfer-steps", "30"}), 5,
           "not finite");
    expect(linearize(scratch_ / "h", {"--resume-from", at("model")}), 7, "manifest.json");
    const fs::path run = scratch_ / "run";
    ASSERT_EQ(run_program("train_lolcats", linearize(run, {"--transfer-steps", "2", "--finetune-steps", "2"})), 0);
    expect(linearize(run), 2, "--resume auto");
    expect(linearize(run, {"--resume", "auto"}), 7, "--allow-config-change");
    for (const auto& entry : fs::directory_iterator(run / "checkpoints")) fs::remove(entry.path() / "state.json");
    expect(linearize(run, {"--resume", "auto"}), 7, "state.json");
}

TEST_F(TrainLolcats, PerplexityOfModelAndRunAsJson) {
    run_unbroken();
    const std::string out = (scratch_ / "out").string(), json = (scratch_ / "nll.json").string();
    const auto perplexity = [&](const Arguments& more) {
        Arguments arguments{"perplexity",    "--model", at("model"), "--text", at("text.txt"), "--seq-len", "20",
                            "--limit-chars", "900",     "--json",    json};
        arguments.insert(arguments.end(), more.begin(), more.end());
        EXPECT_EQ(run_program("train_lolcats", arguments, out), 0);
        return train::Record::parse(io::read_file(out, 1 << 20));
    };
    const auto teacher = perplexity({}), student = perplexity({"--run", at("unbroken")});
    const auto window = perplexity({"--run", at("unbroken"), "--attention-terms", "window"});
    EXPECT_EQ(teacher["tokens"].get<int64_t>(), teacher["sequences"].get<int64_t>() * 19);
    EXPECT_NEAR(std::log(teacher["perplexity"].get<double>()), teacher["mean_nll"].get<double>(), 1e-9);
    EXPECT_NE(student["mean_nll"], teacher["mean_nll"]);
    EXPECT_NE(window["mean_nll"], student["mean_nll"]);
    const auto full = train::Record::parse(io::read_file(json, 1 << 20));
    EXPECT_EQ(full["per_sequence"].size(), full["sequences"].get<size_t>());
}

// One directory instead of two, in shards: the same perplexity and the same text.
TEST_F(TrainLolcats, MergedExportIsTheSameModel) {
    run_unbroken();
    const std::string out = (scratch_ / "out").string(), merged = (scratch_ / "merged").string();
    const Arguments exporting{"export", "--model",  at("model"),        "--run", at("unbroken"), "--out",
                              merged,   "--merged", "--max-shard-size", "20KB"};
    ASSERT_EQ(run_program("train_lolcats", exporting), 0);
    EXPECT_TRUE(fs::exists(merged + "/model.safetensors.index.json"));
    EXPECT_EQ(io::read_file(merged + "/tokenizer.json", 1 << 20), io::read_file(at("tokenizer.json"), 1 << 20));
    const auto outputs = [&](const Arguments& which) {
        Arguments perplexity{"perplexity", "--text", at("text.txt"), "--seq-len", "20", "--limit-chars", "900"};
        Arguments gen{"--prompt", "once upon", "--max-new-tokens", "40", "--greedy", "--json"};
        for (Arguments* words : {&perplexity, &gen}) words->insert(words->end(), which.begin(), which.end());
        EXPECT_EQ(run_program("train_lolcats", perplexity, out), 0);
        const double nll = train::Record::parse(io::read_file(out, 1 << 20))["mean_nll"];
        EXPECT_EQ(run_program("gen_lolcats", gen, out), 0);
        return std::pair(nll, io::read_json_file(out)["ids"]);
    };
    const auto two = outputs({"--model", at("model"), "--run", at("unbroken")});
    const auto one = outputs({"--model", merged});
    // LoRA as a branch of its own rounds differently: some 1e-6 in f32 logits.
    EXPECT_NEAR(one.first, two.first, 1e-5);
    EXPECT_EQ(one.second, two.second);
    EXPECT_EQ(run_program("train_lolcats", {"perplexity", "--model", merged, "--text", at("text.txt"), "--seq-len",
                                            "20", "--attention-terms", "window"}),
              0);
    EXPECT_EQ(run_program("train_lolcats", exporting), 2) << "the directory exists";
    EXPECT_EQ(run_program("train_lolcats", {"export", "--model", at("model"), "--run", at("unbroken"), "--out",
                                            (scratch_ / "b").string()}),
              2)
        << "--merged is the only form";
    EXPECT_EQ(run_program("train_lolcats", linearize(scratch_ / "c", {"--model", merged})), 3);
}

// Checkpoints of the authors' layout, for a base model of the shapes that they were made for.
TEST_F(TrainLolcats, AuthorsCheckpointsBecomeARun) {
    std::string config = kConfig;
    const auto set = [&](const std::string& from, const std::string& to) {
        config.replace(config.find(from), from.size(), to);
    };
    set("\"hidden_size\": 32", "\"hidden_size\": 24"), set("\"head_dim\": 8", "\"head_dim\": 6");
    scratch_.write("config.json", config);
    const std::string base = (scratch_ / "base").string(), run = (scratch_ / "run").string();
    ASSERT_EQ(run_program("train_lolcats", {"pretrain", "--model-config", (scratch_ / "config.json").string(),
                                            "--tokenizer", at("tokenizer.json"), "--data", at("text.txt"), "--out",
                                            base, "--seq-len", "24", "--steps", "1"}),
              0);
    const std::string golden = LC_SOURCE_DIR "/tests/golden/torch_checkpoint/";
    const Arguments importing{"import",
                              "--model",
                              base,
                              "--checkpoint",
                              golden + "transfer.pt",
                              "--checkpoint",
                              golden + "finetune.pt",
                              "--out",
                              run,
                              "--window-size",
                              "4",
                              "--window-kind",
                              "sliding"};
    ASSERT_EQ(run_program("train_lolcats", importing), 0);
    EXPECT_EQ(run_program("gen_lolcats", {"--model", base, "--run", run, "--prompt", "once", "--max-new-tokens", "3",
                                          "--attention-terms", "window"}),
              0);
    EXPECT_EQ(run_program("train_lolcats", importing), 2) << "the run exists";
    EXPECT_EQ(run_program("train_lolcats", {"import", "--model", at("model"), "--checkpoint", golden + "transfer.pt",
                                            "--out", (scratch_ / "b").string()}),
              3)
        << "made for other shapes";
}

// Shapes alone: no weights, no data, no GPU.
TEST_F(TrainLolcats, DryRunNeedsTheConfigOnly) {
    const std::string out = (scratch_ / "out").string();
    fs::create_directory(scratch_ / "shape");
    scratch_.write("shape/config.json", kConfig);
    const Arguments dry{
        "linearize", "--model",  (scratch_ / "shape").string(), "--seq-len", "24", "--device", "cuda", "--batch-size",
        "2",         "--dry-run"};
    ASSERT_EQ(run_program("train_lolcats", dry, out), 0);
    const std::string text = io::read_file(out, 1 << 20);
    for (const char* part :
         {"stage transfer, bf16 on cuda:0", "stage finetune", "weights", "optimizer", "total", "disk:"})
        EXPECT_NE(text.find(part), std::string::npos) << part << "\n" << text;
    ASSERT_EQ(run_program("train_lolcats",
                          {"pretrain", "--model-config", at("config.json"), "--tokenizer", at("tokenizer.json"),
                           "--seq-len", "24", "--device", "cpu", "--dry-run"},
                          out),
              0);
    EXPECT_NE(io::read_file(out, 1 << 20).find("stage pretrain, f32 on cpu"), std::string::npos);
}

TEST_F(TrainLolcats, RandomWeightsFillAConfig) {
    const fs::path shape = scratch_ / "shape";
    fs::create_directory(shape);
    scratch_.write("shape/config.json", kConfig);
    fs::copy_file(at("tokenizer.json"), shape / "tokenizer.json");
    const Arguments more{
        "--model", shape.string(), "--random-weights", "3", "--transfer-steps", "2", "--finetune-steps", "2"};
    ASSERT_EQ(run_program("train_lolcats", linearize(scratch_ / "run", more)), 0);
    EXPECT_EQ(run_program("train_lolcats", {"perplexity", "--model", shape.string(), "--random-weights", "3", "--run",
                                            (scratch_ / "run").string(), "--text", at("text.txt"), "--seq-len", "20"}),
              0);
    // The run belongs to these weights.
    EXPECT_EQ(run_program("train_lolcats", {"perplexity", "--model", shape.string(), "--random-weights", "4", "--run",
                                            (scratch_ / "run").string(), "--text", at("text.txt"), "--seq-len", "20"}),
              3);
}

TEST_F(TrainLolcats, PreviewMarksAndTrainsNothing) {
    scratch_.write("a.jsonl", "{\"instruction\":\"say a\",\"output\":\"a fox\"}\n");
    const std::string out = (scratch_ / "out").string();
    ASSERT_EQ(run_program(
                  "train_lolcats",
                  linearize(scratch_ / "run", {"--data", (scratch_ / "a.jsonl").string(), "--preview-data", "3"}), out),
              0);
    const std::string text = io::read_file(out, 1 << 20);
    EXPECT_NE(text.find("### Response:\n]]a fox<|end_of_text|>"), std::string::npos) << text;
    EXPECT_FALSE(fs::exists(scratch_ / "run"));
}

TEST_F(TrainLolcats, TokenizeWritesIdsAndTheTextBack) {
    const fs::path in = scratch_.write("in.jsonl", "{\"text\":\"once upon a time\"}\n\n{\"text\":\"\"}\n");
    const std::string out = (scratch_ / "out.jsonl").string();
    ASSERT_EQ(run_program("train_lolcats",
                          {"tokenize", "--tokenizer", at("tokenizer.json"), "--jsonl", in.string(), "--out", out}),
              0);
    std::ifstream file(out);
    std::string line;
    std::getline(file, line);
    const auto record = train::Record::parse(line);
    EXPECT_EQ(record["decoded"], "once upon a time");
    EXPECT_EQ(record["ids"].size(), record["ids_no_special"].size() + 1);
    std::getline(file, line);
    EXPECT_EQ(train::Record::parse(line)["ids"].size(), 1u);
}

TEST_F(TrainLolcats, ConfigTomlStartsTheSameRun) {
    run_unbroken();
    const std::string config = at("unbroken/config.toml");
    const fs::path run = scratch_ / "again";
    ASSERT_EQ(run_program("train_lolcats", {"linearize", "--config", config, "--out", run.string()}), 0);
    expect_unbroken(run);
}

}  // namespace
}  // namespace lc::test
