#include "train/checkpoint.h"

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <fstream>
#include <functional>

#include "io/file.h"
#include "tests/io/faults.h"
#include "train/metrics.h"

namespace lc::train {
namespace {

namespace fs = std::filesystem;
using io::test::expect_refused;
using io::test::ScratchDir;

const std::vector<std::string> kStages{"transfer", "finetune"};

Checkpoint sample(const std::string& stage, int64_t step) {
    return {.stage = stage,
            .step = step,
            .model_hash = "0123",
            .tensors = {{"param.w", Tensor::full({3, 5}, static_cast<double>(step) + 0.25, DType::f32)},
                        {"m.w", Tensor::full({3, 5}, -1.5, DType::f64)}},
            .state = {{"config", {{"seed", 1}}}, {"loop", {{"step", step}, {"x", 0.1}}}}};
}

std::string bytes_of(const fs::path& path) {
    return io::read_file(path, 1 << 30);
}

void write_bytes(const fs::path& path, const std::string& bytes) {
    std::ofstream(path, std::ios::binary) << bytes;
}

class Checkpoints : public ::testing::Test {
  protected:
    ScratchDir scratch_;
    CheckpointStore store_{scratch_ / "checkpoints", kStages, 2};
    fs::path path(const std::string& name) const { return scratch_ / "checkpoints" / name; }
    std::vector<std::string> names() const {
        std::vector<std::string> result;
        for (const auto& entry : store_.list()) result.push_back(entry.path.filename().string());
        return result;
    }
};

TEST_F(Checkpoints, ComesBackAsItWentIn) {
    EXPECT_FALSE(store_.newest().has_value());
    store_.save(sample("transfer", 12), 0);
    const auto found = store_.newest();
    ASSERT_TRUE(found.has_value());
    EXPECT_EQ(found->first.path.filename(), "step-transfer-00000012");
    const Checkpoint& back = found->second;
    EXPECT_EQ(back.stage, "transfer");
    EXPECT_EQ(back.step, 12);
    EXPECT_EQ(back.model_hash, "0123");
    EXPECT_EQ(back.state, sample("transfer", 12).state);
    EXPECT_EQ(back.tensor("param.w").to_vector<float>(), std::vector<float>(15, 12.25f));
    EXPECT_EQ(back.tensor("m.w").dtype(), DType::f64);
    expect_refused([&] { back.tensor("v.w"); }, {"transfer", "12", "v.w"}, ErrorKind::Checkpoint);
}

TEST_F(Checkpoints, NewestGoesByStageThenStep) {
    store_.save(sample("transfer", 900), 0);
    store_.save(sample("finetune", 3), 0);
    EXPECT_EQ(store_.newest()->second.stage, "finetune");
    EXPECT_EQ(names(), (std::vector<std::string>{"step-finetune-00000003", "step-transfer-00000900"}));
}

TEST_F(Checkpoints, KeepsTheLastTwoAndTheBest) {
    for (int64_t step : {0, 10, 20, 30, 40}) store_.save(sample("transfer", step), 10);
    EXPECT_EQ(names(),
              (std::vector<std::string>{"step-transfer-00000040", "step-transfer-00000030", "step-transfer-00000010"}));
    expect_refused([&] { CheckpointStore(scratch_ / "checkpoints", kStages, 1); }, {"--keep"}, ErrorKind::Usage);
}

TEST_F(Checkpoints, TemporariesOfAKilledProcessAreNoCheckpointsAndGo) {
    fs::create_directories(path(".tmp-step-transfer-00000050-77-0"));
    EXPECT_FALSE(store_.newest().has_value());
    store_.save(sample("transfer", 10), 0);
    EXPECT_FALSE(fs::exists(path(".tmp-step-transfer-00000050-77-0")));
}

TEST_F(Checkpoints, ForeignNamesAreLeftAlone) {
    for (const char* name : {"step-other-00000001", "step-transfer-", "step-transfer-12x", "step-transfer--3", "notes"})
        fs::create_directories(path(name));
    EXPECT_TRUE(store_.list().empty());
}

TEST_F(Checkpoints, SavingAgainLeavesAnIntactOneAndReplacesADamagedOne) {
    store_.save(sample("transfer", 10), 0);
    const fs::path file = path("step-transfer-00000010") / "state.json";
    const auto written = fs::last_write_time(file);
    store_.save(sample("transfer", 10), 0);
    EXPECT_EQ(fs::last_write_time(file), written);
    write_bytes(file, "{}");
    store_.save(sample("transfer", 10), 0);
    EXPECT_EQ(read_checkpoint(path("step-transfer-00000010")).state, sample("transfer", 10).state);
}

TEST_F(Checkpoints, DiscardAfterMakesAnOlderOneTheNewest) {
    for (int64_t step : {10, 20}) store_.save(sample("transfer", step), 0);
    store_.discard_after(store_.list().back());
    EXPECT_EQ(names(), std::vector<std::string>{"step-transfer-00000010"});
}

TEST_F(Checkpoints, SameContentSameBytes) {
    store_.save(sample("transfer", 10), 0);
    CheckpointStore other(scratch_ / "other", kStages, 2);
    other.save(sample("transfer", 10), 0);
    for (const char* file : {"state.safetensors", "state.json", "manifest.json"})
        EXPECT_EQ(bytes_of(path("step-transfer-00000010") / file),
                  bytes_of(scratch_ / "other" / "step-transfer-00000010" / file));
}

// Each fault on the newest of two checkpoints: the older one is used; on both: exit 7, naming the file.
struct Fault {
    const char* name;
    const char* file;  // that the message must name
    std::function<void(const fs::path&)> damage;
};

void flip(const fs::path& path, size_t position, unsigned bit) {
    std::string bytes = bytes_of(path);
    if (position >= bytes.size()) position = bytes.size() - 1;
    bytes[position] = static_cast<char>(bytes[position] ^ static_cast<char>(1u << bit));
    write_bytes(path, bytes);
}

void replace_in(const fs::path& path, const std::string& from, const std::string& to) {
    std::string bytes = bytes_of(path);
    const size_t at = bytes.find(from);
    ASSERT_NE(at, std::string::npos) << from;
    write_bytes(path, bytes.replace(at, from.size(), to));
}

std::vector<Fault> faults() {
    std::vector<Fault> list;
    for (const char* file : {"state.safetensors", "state.json", "manifest.json"}) {
        const auto add = [&](const char* name, std::function<void(const fs::path&)> damage) {
            list.push_back({name, file, [=](const fs::path& directory) { damage(directory / file); }});
        };
        add("missing", [](const fs::path& p) { fs::remove(p); });
        add("empty", [](const fs::path& p) { write_bytes(p, ""); });
        add("cut by one byte", [](const fs::path& p) { fs::resize_file(p, fs::file_size(p) - 1); });
        add("cut in half", [](const fs::path& p) { fs::resize_file(p, fs::file_size(p) / 2); });
        add("one byte longer", [](const fs::path& p) { std::ofstream(p, std::ios::app) << 'x'; });
        add("first bit", [](const fs::path& p) { flip(p, 0, 0); });
        add("middle bit", [](const fs::path& p) { flip(p, fs::file_size(p) / 2, 5); });
        add("near the end", [](const fs::path& p) { flip(p, fs::file_size(p) - 3, 2); });
        add("is a directory", [](const fs::path& p) { fs::remove(p), fs::create_directory(p); });
    }
    const auto manifest = [&](const char* name, const std::string& from, const std::string& to) {
        list.push_back({name, "manifest.json", [=](const fs::path& d) { replace_in(d / "manifest.json", from, to); }});
    };
    manifest("other version", "\"version\": 1", "\"version\": 9");
    manifest("other step", "\"step\": 20", "\"step\": 21");
    manifest("other model", "0123", "4567");
    manifest("other file", "state.json", "../x.json");
    return list;
}

TEST(CheckpointFaults, FallBackToThePreviousOrNameTheFile) {
    const std::vector<Fault> list = faults();
    ASSERT_GE(list.size(), 20u);
    for (const Fault& fault : list) {
        SCOPED_TRACE(std::string(fault.file) + ": " + fault.name);
        ScratchDir scratch;
        CheckpointStore store(scratch / "c", kStages, 2);
        store.save(sample("transfer", 20), 0);
        store.save(sample("finetune", 20), 0);
        fault.damage(scratch / "c" / "step-finetune-00000020");
        const auto found = store.newest();
        ASSERT_TRUE(found.has_value());
        EXPECT_EQ(found->second.stage, "transfer");
        fault.damage(scratch / "c" / "step-transfer-00000020");
        expect_refused([&] { store.newest(); }, {fault.file}, ErrorKind::Checkpoint);
    }
}

// A manifest that is consistent in itself but not with its directory's name must not pass for another checkpoint.
TEST(CheckpointFaults, RenamedDirectoryIsRefused) {
    ScratchDir scratch;
    CheckpointStore store(scratch / "c", kStages, 2);
    store.save(sample("transfer", 20), 0);
    fs::rename(scratch / "c" / "step-transfer-00000020", scratch / "c" / "step-finetune-00000020");
    expect_refused([&] { store.newest(); }, {"step-finetune-00000020"}, ErrorKind::Checkpoint);
}

TEST(RunLock, SecondHolderIsRefusedUntilTheFirstIsGone) {
    ScratchDir scratch;
    {
        const RunLock lock(scratch.path());
        expect_refused([&] { RunLock second(scratch.path()); }, {"another process"}, ErrorKind::Checkpoint);
    }
    const RunLock again(scratch.path());
}

TEST(RunLock, EndsWithItsProcess) {
    ScratchDir scratch;
    const pid_t child = ::fork();
    if (child == 0) {
        const RunLock lock(scratch.path());
        ::raise(SIGKILL);
    }
    int status = 0;
    ::waitpid(child, &status, 0);
    ASSERT_TRUE(WIFSIGNALED(status));
    const RunLock lock(scratch.path());
}

TEST(Metrics, ContinuesAtTheOffsetAndCutsWhatIsBeyond) {
    ScratchDir scratch;
    const fs::path path = scratch / "metrics.jsonl";
    int64_t offset = 0;
    {
        MetricsLog log(path, 0);
        log.write({{"step", 1}});
        offset = log.offset();
        log.write({{"step", 2}});
    }
    std::ofstream(path, std::ios::app) << "{\"half";
    {
        MetricsLog log(path, offset);
        log.write({{"step", 2}, {"again", true}});
    }
    EXPECT_EQ(bytes_of(path), "{\"step\":1}\n{\"step\":2,\"again\":true}\n");
    MetricsLog anew(path, 0);
    EXPECT_EQ(fs::file_size(path), 0u);
}

TEST(Metrics, ShorterThanTheCheckpointKnewIsContinuedAtItsEnd) {
    ScratchDir scratch;
    const fs::path path = scratch.write("metrics.jsonl", "{}\n");
    MetricsLog log(path, 100);
    log.write({{"a", 1}});
    EXPECT_EQ(bytes_of(path), "{}\n{\"a\":1}\n");
}

TEST(Metrics, FullDiskDoesNotStopTraining) {
    if (!fs::exists("/dev/full")) GTEST_SKIP() << "no /dev/full here";
    MetricsLog log("/dev/full", 0);
    log.write({{"a", 1}});
    log.write({{"a", 2}});
    EXPECT_EQ(log.offset(), 0);
}

TEST(Metrics, WithoutTimingKeepsTheRestInOrder) {
    const Record record{{"step", 1}, {"ms", {{"data", 1.0}}}, {"loss", 2.5}, {"tokens_per_second", 3.0}};
    EXPECT_EQ(without_timing(record).dump(), "{\"step\":1,\"loss\":2.5}");
}

}  // namespace
}  // namespace lc::train
