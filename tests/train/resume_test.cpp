// Resume exactness: whatever happens in between, the files of a finished run are those of the unbroken one.
#include <gtest/gtest.h>

#include <fstream>
#include <map>
#include <sstream>

#include "io/json.h"
#include "tests/train/tiny.h"

namespace lc::train {
namespace {

using io::test::expect_refused;
using test::ScratchDir;
using test::tiny_options;
using test::TinyWorld;
using test::fs::path;
namespace fs = std::filesystem;

std::vector<Record> records_of(const path& run) {
    std::vector<Record> records;
    std::ifstream file(run / "metrics.jsonl");
    for (std::string line; std::getline(file, line);) records.push_back(Record::parse(line));
    return records;
}

// All that a finished run leaves, without what depends on the clock.
std::map<std::string, std::string> results_of(const path& run) {
    std::map<std::string, std::string> results;
    for (const char* name : {"feature_maps.safetensors", "adapter_model.safetensors", "adapter_config.json"})
        if (fs::exists(run / name)) results[name] = io::read_file(run / name, 1 << 30);
    for (const Record& record : records_of(run)) results["metrics"] += without_timing(record).dump() + "\n";
    results["summary"] = without_timing(Record::parse(io::read_file(run / "summary.json", 1 << 20))).dump(1);
    return results;
}

const std::map<std::string, std::string>& unbroken() {
    static const ScratchDir scratch;
    static const std::map<std::string, std::string> results = [] {
        EXPECT_TRUE(linearize(tiny_options(scratch / "run"), {}));
        return results_of(scratch / "run");
    }();
    return results;
}

void expect_unbroken(const path& run) {
    const auto results = results_of(run);
    EXPECT_EQ(results.size(), 5u);
    for (const auto& [name, bytes] : unbroken()) {
        ASSERT_TRUE(results.contains(name)) << name;
        EXPECT_TRUE(results.at(name) == bytes)
            << name << " differs:\n"
            << (name[0] == 'm' || name[0] == 's' ? results.at(name) + "\n--- unbroken\n" + bytes : "");
    }
}

// Stops as a signal would once the metrics tell of this step.
StopCheck stop_at(const path& run, const std::string& stage, int64_t step) {
    return [=] {
        for (const Record& record : records_of(run))
            if (record.value("stage", "") == stage && record.value("step", int64_t{-1}) == step &&
                !record.contains("event"))
                return true;
        return false;
    };
}

LinearizeOptions resuming(const path& run) {
    LinearizeOptions options = tiny_options(run);
    options.resume.automatic = true;
    return options;
}

struct StopPoint {
    const char* stage;
    int64_t step;
};

class StopAndResume : public ::testing::TestWithParam<StopPoint> {};

TEST(Softmax, IsTheControl) {
    const ScratchDir scratch;
    LinearizeOptions options = tiny_options(scratch / "run");
    options.attention.kind = models::AttentionKind::softmax;
    expect_refused([&] { linearize(options, {}); }, {"--stages finetune"}, ErrorKind::Usage);
    options.transfer = false;
    ASSERT_FALSE(linearize(options, stop_at(scratch / "run", "finetune", 4)));
    options.resume.automatic = true;
    ASSERT_TRUE(linearize(options, {}));

    const Record summary = Record::parse(io::read_file(scratch / "run" / "summary.json", 1 << 20));
    EXPECT_TRUE(summary["swapped_ppl"].is_null());
    EXPECT_EQ(summary["attention"]["attention"], "softmax");
    EXPECT_FALSE(fs::exists(scratch / "run" / "feature_maps.safetensors"));
    models::Decoder decoder = models::Decoder::load(options.model.directory);
    models::apply_run(decoder, scratch / "run", models::hash_of(options.model));
    EXPECT_FALSE(decoder.attention().has_value());
    EXPECT_TRUE(decoder.layer(0).q.lora_a.defined());
    const io::Tokenizer tokenizer = io::Tokenizer::load(TinyWorld::get().tokenizer());
    const TrainingData data = load_training_data(options.data, tokenizer, 300);
    EXPECT_NEAR(chunk_losses(decoder, data.validation, {}).perplexity(), summary["finetuned_ppl"].get<double>(), 1e-3);
}

TEST_P(StopAndResume, IsByteEqual) {
    const ScratchDir scratch;
    const path run = scratch / "run";
    ASSERT_FALSE(linearize(tiny_options(run), stop_at(run, GetParam().stage, GetParam().step)));
    EXPECT_FALSE(fs::exists(run / "summary.json"));
    ASSERT_TRUE(linearize(resuming(run), {}));
    expect_unbroken(run);
}

// k = 3 is where evaluations and checkpoints are; 7 is the last step (its evaluation is interrupted).
INSTANTIATE_TEST_SUITE_P(AllSteps, StopAndResume,
                         ::testing::Values(StopPoint{"transfer", 1}, StopPoint{"transfer", 2}, StopPoint{"transfer", 3},
                                           StopPoint{"transfer", 4}, StopPoint{"transfer", 7}, StopPoint{"finetune", 1},
                                           StopPoint{"finetune", 2}, StopPoint{"finetune", 3}, StopPoint{"finetune", 4},
                                           StopPoint{"finetune", 7}),
                         [](const auto& point) { return fmt::format("{}{}", point.param.stage, point.param.step); });

TEST(Resume, StoppedAfterEveryStepIsByteEqual) {
    const ScratchDir scratch;
    const path run = scratch / "run";
    int starts = 0;
    for (bool done = false; !done && starts < 60; ++starts) {
        const size_t before = records_of(run).size();
        bool stepped = false;
        // Once one more step is told of; evaluations before the first step of a process go through.
        done = linearize(resuming(run), [&] {
            const auto records = records_of(run);
            for (size_t i = std::min(before, records.size()); i < records.size(); ++i)
                stepped = stepped || records[i].contains("lr");
            return stepped;
        });
    }
    EXPECT_GE(starts, 12);
    expect_unbroken(run);
}

TEST(Resume, StoppedBeforeTheFirstCheckpointStartsAfresh) {
    const ScratchDir scratch;
    EXPECT_FALSE(linearize(resuming(scratch / "run"), [] { return true; }));
    EXPECT_TRUE(linearize(resuming(scratch / "run"), {}));
    expect_unbroken(scratch / "run");
}

TEST(Resume, FinishedRunStaysAsItIs) {
    const ScratchDir scratch;
    EXPECT_TRUE(linearize(tiny_options(scratch / "run"), {}));
    EXPECT_TRUE(linearize(resuming(scratch / "run"), {}));
    expect_unbroken(scratch / "run");
}

// As after a kill -9: the metrics are ahead of the checkpoint, and the last line is torn.
TEST(Resume, MetricsBeyondTheCheckpointAreCut) {
    const ScratchDir scratch;
    const path run = scratch / "run";
    ASSERT_FALSE(linearize(tiny_options(run), stop_at(run, "finetune", 5)));
    fs::remove_all(run / "checkpoints" / "step-finetune-00000005");
    std::ofstream(run / "metrics.jsonl", std::ios::app) << "{\"stage\":\"fine";
    ASSERT_TRUE(linearize(resuming(run), {}));
    expect_unbroken(run);
}

TEST(Resume, DamagedNewestFallsBackAndIsStillByteEqual) {
    const ScratchDir scratch;
    const path run = scratch / "run";
    ASSERT_FALSE(linearize(tiny_options(run), stop_at(run, "transfer", 4)));
    fs::resize_file(run / "checkpoints" / "step-transfer-00000004" / "state.safetensors", 100);
    ASSERT_TRUE(linearize(resuming(run), {}));
    expect_unbroken(run);
}

TEST(Resume, FromAnOlderCheckpointIsByteEqual) {
    const ScratchDir scratch;
    const path run = scratch / "run";
    ASSERT_TRUE(linearize(tiny_options(run), {}));
    LinearizeOptions options = tiny_options(run);
    options.resume.from = run / "checkpoints" / "step-finetune-00000006";
    ASSERT_TRUE(linearize(options, {}));
    expect_unbroken(run);
}

TEST(Resume, ExistingRunIsNotOverwritten) {
    const ScratchDir scratch;
    ASSERT_FALSE(linearize(tiny_options(scratch / "run"), stop_at(scratch / "run", "transfer", 1)));
    expect_refused([&] { linearize(tiny_options(scratch / "run"), {}); }, {"--resume auto"}, ErrorKind::Usage);
}

TEST(Resume, ChangedSettingsAreRefusedByName) {
    const ScratchDir scratch;
    const path run = scratch / "run";
    ASSERT_FALSE(linearize(tiny_options(run), stop_at(run, "transfer", 1)));
    const auto refused = [&](const char* key, const std::function<void(LinearizeOptions&)>& change) {
        LinearizeOptions options = resuming(run);
        change(options);
        expect_refused([&] { linearize(options, {}); }, {std::string("'") + key + "'", "--allow-config-change"},
                       ErrorKind::Checkpoint);
    };
    refused("transfer-lr", [](LinearizeOptions& o) { o.transfer_loop.schedule.base = 2e-2; });
    refused("finetune-steps", [](LinearizeOptions& o) { o.finetune_budget.steps = 8; });
    refused("seed", [](LinearizeOptions& o) { o.seed = 6; });
    refused("batch-size", [](LinearizeOptions& o) { o.transfer_loop.batch_size = o.finetune_loop.batch_size = 4; });
    refused("attention", [](LinearizeOptions& o) { o.attention.window_size = 8; });
    refused("lora-rank", [](LinearizeOptions& o) { o.lora.rank = 4; });
    const path other = scratch.write("other.txt", test::tiny_text(1600, 1));
    refused("data", [&](LinearizeOptions& o) { o.data.file = other; });
    const path model = scratch / "model";
    fs::copy(test::TinyWorld::get().model(), model);
    models::save_base(models::Decoder::random(test::tiny_config(), 4), model, DType::f32);
    refused("model", [&](LinearizeOptions& o) { o.model.directory = model; });
    LinearizeOptions unknown = resuming(run);
    unknown.resume.allow_change = {"sede"};
    expect_refused([&] { linearize(unknown, {}); }, {"sede", "seed"}, ErrorKind::Usage);
}

TEST(Resume, AllowedChangeGoesOn) {
    const ScratchDir scratch;
    const path run = scratch / "run";
    ASSERT_FALSE(linearize(tiny_options(run), stop_at(run, "transfer", 4)));
    LinearizeOptions options = resuming(run);
    options.transfer_loop.schedule.base = 1e-3;
    options.resume.allow_change = {"transfer-lr"};
    ASSERT_TRUE(linearize(options, {}));
    double last_rate = 0;
    for (const Record& record : records_of(run))
        if (record.value("stage", "") == "transfer" && record.contains("lr")) last_rate = record["lr"].get<double>();
    EXPECT_EQ(last_rate, 1e-3);
}

TEST(Resume, FinetuneThatTrainsMapsIsByteEqual) {
    const ScratchDir scratch;
    const auto options = [&](const char* name) {
        LinearizeOptions o = tiny_options(scratch / name);
        o.train_feature_maps = true;
        return o;
    };
    ASSERT_TRUE(linearize(options("a"), {}));
    ASSERT_FALSE(linearize(options("b"), stop_at(scratch / "b", "finetune", 4)));
    LinearizeOptions again = options("b");
    again.resume.automatic = true;
    ASSERT_TRUE(linearize(again, {}));
    EXPECT_TRUE(results_of(scratch / "a") == results_of(scratch / "b"));
}

TEST(Resume, NoTransferBaselineOnInstructionsIsByteEqual) {
    const ScratchDir scratch;
    const auto options = [&](const char* name) {
        LinearizeOptions o = tiny_options(scratch / name);
        o.transfer = false;
        o.data.file = test::TinyWorld::get().alpaca();
        o.data.format = io::DataFormat::alpaca;
        o.data.seq_len = 96;
        return o;
    };
    ASSERT_TRUE(linearize(options("a"), {}));
    ASSERT_FALSE(linearize(options("b"), stop_at(scratch / "b", "finetune", 5)));
    LinearizeOptions again = options("b");
    again.resume.automatic = true;
    ASSERT_TRUE(linearize(again, {}));
    EXPECT_TRUE(results_of(scratch / "a") == results_of(scratch / "b"));
    const Record summary = Record::parse(io::read_file(scratch / "a" / "summary.json", 1 << 20));
    EXPECT_TRUE(summary["transferred_ppl"].is_null());
    EXPECT_TRUE(summary["finetuned_ppl"].is_number());
}

// The summary agrees with what the files give when they are loaded again.
TEST(Run, ResultsLoadAgain) {
    const ScratchDir scratch;
    const LinearizeOptions options = tiny_options(scratch / "run");
    ASSERT_TRUE(linearize(options, {}));
    const Record summary = Record::parse(io::read_file(scratch / "run" / "summary.json", 1 << 20));
    EXPECT_LT(summary["mse_last"].get<double>(), summary["mse_first"].get<double>());
    EXPECT_EQ(summary["mse_per_layer"]["last"].size(), 2u);
    EXPECT_EQ(summary["gamma"].size(), 2u);

    models::Decoder decoder = models::Decoder::load(options.model.directory);
    models::apply_run(decoder, options.out, models::hash_of(options.model));
    const io::Tokenizer tokenizer = io::Tokenizer::load(options.model.directory / "tokenizer.json");
    const TrainingData data = load_training_data(options.data, tokenizer, 300);
    const ChunkLosses losses =
        chunk_losses(decoder, data.validation, {{.mode = models::AttentionMode::Linearized}, 1, {}});
    EXPECT_NEAR(losses.perplexity(), summary["finetuned_ppl"].get<double>(), 1e-4 * losses.perplexity());
}

}  // namespace
}  // namespace lc::train
