#include "io/safetensors_model.h"

#include <sys/stat.h>

#include <functional>

#include "tests/assets.h"
#include "tests/io/faults.h"

namespace lc::io {
namespace {

namespace fs = std::filesystem;
using test::expect_refused;
using test::ScratchDir;

constexpr const char* kShard1 = "model-00001-of-00002.safetensors";
constexpr const char* kShard2 = "model-00002-of-00002.safetensors";

void write_shard(const fs::path& path, const std::vector<std::pair<std::string, float>>& values) {
    std::vector<std::pair<std::string, Tensor>> tensors;
    for (const auto& [name, value] : values) tensors.emplace_back(name, Tensor::full({2}, value, DType::f32));
    write_safetensors(path, tensors, {{"format", "pt"}});
}

void write_index(const ScratchDir& dir, const std::vector<std::pair<std::string, std::string>>& map) {
    std::vector<std::string> items;
    for (const auto& [tensor, shard] : map) items.push_back(fmt::format("\"{}\":\"{}\"", tensor, shard));
    dir.write(kIndexFile,
              fmt::format(R"({{"metadata":{{"total_size":24}},"weight_map":{{{}}}}})", fmt::join(items, ",")));
}

// Two shards and their index; each case then breaks something.
void write_good(const ScratchDir& dir) {
    write_shard(dir / kShard1, {{"a", 1}, {"b", 2}});
    write_shard(dir / kShard2, {{"c", 3}});
    write_index(dir, {{"a", kShard1}, {"b", kShard1}, {"c", kShard2}});
}

TEST(SafetensorsModel, SingleFileAndShardsGiveTheSame) {
    const ScratchDir single, sharded;
    write_shard(single / kSingleFile, {{"c", 3}, {"a", 1}, {"b", 2}});
    write_good(sharded);
    const SafetensorsModel one(single.path()), many(sharded.path());
    EXPECT_EQ(one.names(), (std::vector<std::string>{"a", "b", "c"}));
    EXPECT_EQ(many.names(), one.names());
    EXPECT_EQ(many.files().size(), 2u);
    EXPECT_EQ(many.total_bytes(), 24);
    for (const std::string& name : one.names())
        EXPECT_EQ(many.read(name).to_vector<float>(), one.read(name, DType::f64).to_vector<float>());
    EXPECT_TRUE(many.has("b"));
    EXPECT_FALSE(many.has("d"));
    expect_refused([&] { many.read("d"); }, {sharded.path().string(), "'d'", "missing"});
}

TEST(SafetensorsModel, HuggingFaceCacheLayoutWorksAsItStands) {
    const ScratchDir cache;
    fs::create_directories(cache / "blobs");
    fs::create_directories(cache / "snapshots/main");
    write_shard(cache / "blobs/0123abcd", {{"a", 1}});
    fs::create_symlink("../../blobs/0123abcd", cache / "snapshots/main/model.safetensors");
    EXPECT_EQ(SafetensorsModel(cache / "snapshots/main").read("a").to_vector<float>(), (std::vector<float>{1, 1}));
    expect_refused([&] { SafetensorsModel(cache / "snapshots/main", {.follow_symlinks = false}); },
                   {"model.safetensors", "symbolic link"});
}

TEST(SafetensorsModel, OnlyWarnsOfUnlistedTensorsAndTotalSize) {
    const ScratchDir dir;
    write_good(dir);
    write_shard(dir / kShard2, {{"c", 3}, {"extra", 4}});
    testing::internal::CaptureStderr();
    const SafetensorsModel model(dir.path());
    const std::string log = testing::internal::GetCapturedStderr();
    EXPECT_NE(log.find("'extra' is not listed"), std::string::npos) << log;
    EXPECT_FALSE(model.has("extra"));
    dir.write(kIndexFile, fmt::format(R"({{"metadata":{{"total_size":7}},"weight_map":{{"c":"{}"}}}})", kShard2));
    testing::internal::CaptureStderr();
    SafetensorsModel(dir.path());
    EXPECT_NE(testing::internal::GetCapturedStderr().find("'metadata.total_size' is 7"), std::string::npos);
}

TEST(SafetensorsModel, RealModels) {
    const auto assets = lc::test::assets_dir();
    if (!assets) GTEST_SKIP() << lc::test::kNoAssets;
    const SafetensorsModel teacher(*assets / "teacher-28m");
    EXPECT_EQ(teacher.files().size(), 5u);
    EXPECT_EQ(teacher.total_bytes(), 2 * 27'795'968);
    const Tensor embedding = teacher.read("model.embed_tokens.weight", DType::f32);
    EXPECT_EQ(embedding.shape(), (Shape{8192, 512}));
    EXPECT_EQ(teacher.info("model.embed_tokens.weight").dtype, "BF16");
    EXPECT_FALSE(teacher.has("lm_head.weight"));  // tied
    for (const std::string& name : teacher.names()) EXPECT_TRUE(read_finite_f32(teacher.file_of(name), name)) << name;
    const SafetensorsModel stories(*assets / "stories260k");
    EXPECT_EQ(stories.read("model.layers.4.self_attn.k_proj.weight").shape(), (Shape{32, 64}));
}

struct Case {
    const char* what;
    std::function<void(const ScratchDir&)> spoil;
    std::vector<std::string> says;
    OpenOptions options = {};
};

void point_a_at(const ScratchDir& dir, const std::string& shard) {
    write_index(dir, {{"a", shard}, {"b", kShard1}, {"c", kShard2}});
}

std::vector<Case> bad_names() {
    const auto names = [](std::string shard) { return [shard](const ScratchDir& dir) { point_a_at(dir, shard); }; };
    return {
        {"parent directory", names("../x.safetensors"), {"index.json", "'a'", "../x.safetensors"}},
        {"absolute path", names("/etc/x.safetensors"), {"index.json", "'a'", "/etc/x.safetensors"}},
        {"subdirectory", names("sub/x.safetensors"), {"index.json", "'a'", "sub/x.safetensors"}},
        {"backslash", names("..\\\\x.safetensors"), {"index.json", "'a'", "*.safetensors"}},
        {"NUL", names("x\\u0000.safetensors"), {"index.json", "'a'", "x\\x00"}},
        {"pickled shard", names("pytorch_model.bin"), {"index.json", "'a'", "pytorch_model.bin"}},
        {"bare suffix", names(".safetensors"), {"index.json", "'a'"}},
        {"case clash", names("Model-00001-of-00002.safetensors"), {"index.json", "differ only in case", kShard1}},
        {"shard is no string",
         [](const ScratchDir& dir) { dir.write(kIndexFile, R"({"weight_map":{"a":1}})"); },
         {"index.json", "'a'", "1"}},
    };
}

std::vector<Case> bad_content() {
    return {
        {"no weight_map", [](const ScratchDir& dir) { dir.write(kIndexFile, "{}"); }, {"index.json", "'weight_map'"}},
        {"empty weight_map", [](const ScratchDir& dir) { write_index(dir, {}); }, {"index.json", "no tensors"}},
        {"weight_map is a list",
         [](const ScratchDir& dir) { dir.write(kIndexFile, R"({"weight_map":["a"]})"); },
         {"index.json", "'weight_map'", "an object"}},
        {"tensor listed twice",
         [](const ScratchDir& dir) {
             write_index(dir, {{"a", kShard1}, {"a", kShard2}});
         },
         {"index.json", "'a'", "twice"}},
        {"index is not JSON",
         [](const ScratchDir& dir) { dir.write(kIndexFile, "{"); },
         {"index.json", "not valid JSON"}},
        {"index of 65 MB",
         [](const ScratchDir& dir) {
             dir.write(kIndexFile, "");
             fs::resize_file(dir / kIndexFile, 65 << 20);
         },
         {"index.json", "at most 67108864"}},
        {"shard missing",
         [](const ScratchDir& dir) { fs::remove(dir / kShard2); },
         {"index.json", kShard2, "'c'", "missing"}},
        {"shard malformed", [](const ScratchDir& dir) { dir.write(kShard2, "xxxxxxxxxxxx"); }, {kShard2, "header"}},
        {"shard is a directory",
         [](const ScratchDir& dir) {
             fs::remove(dir / kShard2);
             fs::create_directory(dir / kShard2);
         },
         {kShard2, "regular file"}},
        {"link to a device",
         [](const ScratchDir& dir) {
             fs::remove(dir / kShard2);
             fs::create_symlink("/dev/zero", dir / kShard2);
         },
         {kShard2, "regular file"}},
        {"link to nothing",
         [](const ScratchDir& dir) {
             fs::remove(dir / kShard2);
             fs::create_symlink("nowhere", dir / kShard2);
         },
         {kShard2, "No such file"}},
        {"link when none is to be followed",
         [](const ScratchDir& dir) {
             fs::rename(dir / kShard2, dir / "x");
             fs::create_symlink("x", dir / kShard2);
         },
         {kShard2, "symbolic link"},
         {.follow_symlinks = false}},
        {"tensor missing",
         [](const ScratchDir& dir) {
             write_shard(dir / kShard1, {{"a", 1}});
         },
         {kShard1, "'b'", "missing"}},
        {"tensor in another shard",
         [](const ScratchDir& dir) {
             write_index(dir, {{"a", kShard1}, {"b", kShard2}});
         },
         {"index.json", "'b'", kShard2, kShard1}},
        {"tensor in two shards",
         [](const ScratchDir& dir) {
             write_shard(dir / kShard2, {{"c", 3}, {"b", 2}});
         },
         {"'b'", kShard1, kShard2}},
        {"5000 shards",
         [](const ScratchDir& dir) {
             std::vector<std::pair<std::string, std::string>> map;
             for (int i = 0; i < 5000; ++i) map.emplace_back(fmt::format("t{}", i), fmt::format("{}.safetensors", i));
             write_index(dir, map);
         },
         {"index.json", "more than 4096 files"}},
    };
}

std::vector<Case> bad_directories() {
    const auto only = [](const char* name) {
        return [name](const ScratchDir& dir) {
            for (const char* file : {kShard1, kShard2, kIndexFile.data()}) fs::remove(dir / file);
            if (*name != '\0') dir.write(name, "x");
        };
    };
    return {
        {"both forms",
         [](const ScratchDir& dir) {
             write_shard(dir / kSingleFile, {{"a", 1}});
         },
         {"both model.safetensors and model.safetensors.index.json"}},
        {"no index", [](const ScratchDir& dir) { fs::remove(dir / kIndexFile); }, {"neither model.safetensors nor"}},
        {"empty directory", only(""), {"neither model.safetensors nor"}},
        {"only .bin", only("pytorch_model.bin"), {"pytorch_model.bin", "convert to safetensors"}},
        {"only .pt", only("consolidated.00.pt"), {"consolidated.00.pt", "convert to safetensors"}},
    };
}

void check(const std::vector<Case>& cases) {
    for (const Case& c : cases) {
        SCOPED_TRACE(c.what);
        const ScratchDir dir;
        write_good(dir);
        c.spoil(dir);
        std::vector<std::string> says = c.says;
        says.push_back(dir.path().string());
        expect_refused([&] { SafetensorsModel model(dir.path(), c.options); }, says);
    }
}

TEST(SafetensorsModelMalformed, ShardNames) {
    check(bad_names());
}
TEST(SafetensorsModelMalformed, IndexAndShards) {
    check(bad_content());
}
TEST(SafetensorsModelMalformed, Directories) {
    check(bad_directories());
    const ScratchDir dir;
    expect_refused([&] { SafetensorsModel(dir / "none"); }, {"none", "model directory"});
    expect_refused([&] { SafetensorsModel(dir.write("file", "x")); }, {"file", "model directory"});
}

TEST(SafetensorsModelMalformed, Permission) {
    if (::geteuid() == 0) GTEST_SKIP() << "root reads everything";
    const ScratchDir dir;
    write_good(dir);
    fs::permissions(dir / kShard1, fs::perms::none);
    expect_refused([&] { SafetensorsModel model(dir.path()); }, {kShard1, "Permission denied"});
}

}  // namespace
}  // namespace lc::io
