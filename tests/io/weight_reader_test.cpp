#include "io/weight_reader.h"

#include <chrono>
#include <cmath>
#include <iterator>
#include <limits>
#include <thread>

#include "core/allocator.h"
#include "core/cuda/runtime.h"
#include "core/rng.h"
#include "tests/io/faults.h"
#include "tests/io/safetensors_bytes.h"

namespace lc::io {
namespace {

namespace fs = std::filesystem;
using test::expect_refused;
using test::ScratchDir;

constexpr DType kFloats[] = {DType::f64, DType::f32, DType::bf16, DType::f16};
constexpr Device kGpu{DeviceType::cuda, 0};
constexpr const char* kNoGpu = "there is no CUDA device";

// Normal numbers of many sizes among zeros, subnormals, ties, infinities: all that a conversion must get right.
Tensor values(const Shape& shape, DType dtype, uint64_t seed) {
    const double special[] = {0.0,     -0.0,      0x1p-24,     0x1.8p-25,       -0x1p-149, 0x1p-1074, 1 + 0x1p-8,
                              1e30,    -65519.99, 65520,       1 + 0x1.8p-11,   0x1p-134,  3.4e38,    1.7e308,
                              -1e-310, 0x1.01p0,  0x1.ffp-127, 0x1.fffffefp127, INFINITY,  -INFINITY};
    const Random random(seed, 0);
    std::vector<double> numbers(static_cast<size_t>(numel_of(shape)));
    for (size_t i = 0; i < numbers.size(); ++i)
        numbers[i] = i % 3 == 0 ? special[(i / 3) % std::size(special)]
                                : random.normal(i) * std::ldexp(1.0, static_cast<int>(i % 47) - 30);
    return Tensor::from(numbers, shape).to(dtype);
}

constexpr int64_t kModelBytes = (64 * 33 + 1000 + 35) * (8 + 4 + 2 + 2) + 4 * (8 + 4 + 2 + 2);

// Two shards: every stored dtype with a matrix, a long and a short vector, a scalar, and tensors without elements.
void write_model(const ScratchDir& dir) {
    const std::string shards[] = {"model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"};
    std::vector<std::pair<std::string, Tensor>> tensors[2];
    std::vector<std::string> map;
    uint64_t seed = 0;
    const auto add = [&](size_t shard, const std::string& name, const Shape& shape, DType dtype) {
        tensors[shard].emplace_back(name, values(shape, dtype, seed++));
        map.push_back(fmt::format("\"{}\":\"{}\"", name, shards[shard]));
    };
    for (const DType dtype : kFloats) {
        const std::string name(name_of(dtype));
        add(0, name + ".matrix", {64, 33}, dtype);
        add(1, name + ".vector", {1000}, dtype);
        add(seed % 2, name + ".short", {5, 7, 1}, dtype);
        add(0, name + ".scalar", {}, dtype);
        add(1, name + ".none", {3, 0}, dtype);
        add(0, name + ".triple", {3}, dtype);
    }
    for (const size_t shard : {0, 1}) write_safetensors(dir / shards[shard], tensors[shard], {{"format", "pt"}});
    dir.write(kIndexFile, fmt::format(R"({{"weight_map":{{{}}}}})", fmt::join(map, ",")));
}

std::vector<WeightRequest> requests_for(const SafetensorsModel& model, DType dtype, Device device = {}) {
    std::vector<WeightRequest> requests;
    for (const std::string& name : model.names())
        requests.push_back({name, Tensor::empty(Shape(std::span(model.info(name).shape)), dtype, device)});
    return requests;
}

std::string_view bits_of(const Tensor& host) {
    const std::byte* first = host.storage()->data.get() + host.layout().offset * size_of(host.dtype());
    return {reinterpret_cast<const char*>(first), static_cast<size_t>(host.nbytes())};
}

// Both contiguous, on any device.
bool same_bits(const Tensor& a, const Tensor& b) {
    return a.dtype() == b.dtype() && bits_of(a.to(Device{})) == bits_of(b.to(Device{}));
}

void expect_as_read(const SafetensorsModel& model, std::span<const WeightRequest> requests) {
    for (const WeightRequest& request : requests)
        EXPECT_TRUE(same_bits(request.target, model.read(request.name, request.target.dtype()))) << request.name;
}

// Pieces of one element, of odd sizes that cut rows and elements, of whole tensors.
void read_every_way(Device device) {
    const ScratchDir dir;
    write_model(dir);
    const SafetensorsModel model(dir.path());
    for (const DType dtype : kFloats)
        for (const int64_t piece_bytes : {int64_t{1}, int64_t{101}, int64_t{4096}, WeightReadOptions{}.piece_bytes})
            for (const int threads : {0, 1, 2, 13}) {
                if (piece_bytes == 1 && threads != 2) continue;  // thousands of pieces
                SCOPED_TRACE(fmt::format("{} pieces of {}, {} threads", name_of(dtype), piece_bytes, threads));
                const std::vector<WeightRequest> requests = requests_for(model, dtype, device);
                const ReadReport report =
                    read_weights(model, requests, {.threads = threads, .piece_bytes = piece_bytes});
                expect_as_read(model, requests);
                EXPECT_EQ(report.bytes, kModelBytes);
                EXPECT_GT(report.seconds, 0);
                EXPECT_DOUBLE_EQ(report.gigabytes_per_second(),
                                 static_cast<double>(kModelBytes) / report.seconds / 1e9);
            }
}

TEST(WeightReader, EveryDtypePieceSizeAndNumberOfThreads) {
    EXPECT_EQ(kModelBytes, [] {
        const ScratchDir dir;
        write_model(dir);
        return SafetensorsModel(dir.path()).total_bytes();
    }());
    read_every_way({});
}

TEST(WeightReader, BuffersOfTheConversionHoldPartOfALargePiece) {
    const ScratchDir dir;
    write_safetensors(dir / kSingleFile, {{"large", values({300'007}, DType::f64, 1)}});  // 2.4 MB
    const SafetensorsModel model(dir.path());
    for (const DType dtype : kFloats) {
        const std::vector<WeightRequest> requests = requests_for(model, dtype);
        read_weights(model, requests);
        expect_as_read(model, requests);
    }
}

TEST(WeightReader, NothingAsked) {
    const ScratchDir dir;
    write_safetensors(dir / kSingleFile, {{"none", Tensor::empty({0, 4}, DType::f32)}});
    const SafetensorsModel model(dir.path());
    EXPECT_EQ(read_weights(model, {}).bytes, 0);
    EXPECT_EQ(read_weights(model, requests_for(model, DType::bf16)).bytes, 0);
    EXPECT_EQ(ReadReport{}.gigabytes_per_second(), 0);
}

TEST(WeightReader, WritesTheTargetAndNothingBeside) {
    const ScratchDir dir;
    write_model(dir);
    const SafetensorsModel model(dir.path());
    for (const DType dtype : {DType::f32, DType::bf16}) {
        const Tensor whole = Tensor::full({70, 33}, 7, dtype);
        const WeightRequest request{"bf16.matrix", whole.sliced(0, 4, 64)};
        const uint64_t version = whole.version();
        read_weights(model, std::span(&request, 1), {.piece_bytes = 50});
        EXPECT_GT(whole.version(), version);
        expect_as_read(model, std::span(&request, 1));
        for (const auto& [first, rows] : {std::pair(0, 4), std::pair(68, 2)})
            EXPECT_TRUE(same_bits(whole.sliced(0, first, rows), Tensor::full({rows, 33}, 7, dtype)));
    }
    const ScopedMemoryDebug debug;
    const int64_t before = ScopedMemoryDebug::guard_violations();
    for (const DType dtype : kFloats) read_weights(model, requests_for(model, dtype), {.piece_bytes = 333});
    EXPECT_EQ(ScopedMemoryDebug::guard_violations(), before);
}

// --- refusals ---

void expect_nothing_read(const SafetensorsModel& model, const WeightRequest& bad, const std::vector<std::string>& says,
                         ErrorKind kind) {
    SCOPED_TRACE(bad.name);
    const Tensor good = Tensor::full({1000}, 7, DType::f32);
    const std::vector<WeightRequest> requests = {{"f32.vector", good}, bad};
    expect_refused([&] { read_weights(model, requests); }, says, kind);
    EXPECT_TRUE(same_bits(good, Tensor::full({1000}, 7, DType::f32)));
}

TEST(WeightReaderRefuses, TargetsBeforeAnythingIsRead) {
    const ScratchDir dir;
    write_model(dir);
    const SafetensorsModel model(dir.path());
    const auto target = [](const Shape& shape, DType dtype = DType::f32) { return Tensor::empty(shape, dtype); };
    const ErrorKind bug = ErrorKind::Internal, bad = ErrorKind::BadInput;
    expect_nothing_read(model, {"f32.scalar", target({}, DType::i32)}, {"'f32.scalar'", "floating-point"}, bug);
    expect_nothing_read(model, {"f32.scalar", Tensor()}, {"'f32.scalar'", "defined"}, bug);
    expect_nothing_read(model, {"f32.matrix", target({33, 64}).permuted({1, 0})}, {"'f32.matrix'", "contiguous"}, bug);
    expect_nothing_read(model, {"f32.matrix", target({33, 64})},
                        {"model-00001-of-00002.safetensors", "'f32.matrix'", "[33,64]", "[64,33]"}, bad);
    expect_nothing_read(model, {"f32.matrix", target({64 * 33})}, {"'f32.matrix'", "[2112]", "[64,33]"}, bad);
    expect_nothing_read(model, {"f32.scalar", target({1})}, {"'f32.scalar'", "[1]", "[]"}, bad);
    expect_nothing_read(model, {"absent", target({1})}, {dir.path().string(), "'absent'", "missing"}, bad);
}

TEST(WeightReaderRefuses, StoredNumbersThatAreNotFloatingPoint) {
    const ScratchDir dir;
    dir.write(kSingleFile, test::safetensors_bytes(R"({"bytes":{"dtype":"F8_E5M2","shape":[4],"data_offsets":[0,4]},)"
                                                   R"("ids":{"dtype":"I32","shape":[1],"data_offsets":[4,8]}})",
                                                   "01234567"));
    const SafetensorsModel model(dir.path());
    const WeightRequest bytes{"bytes", Tensor::empty({4}, DType::f32)}, ids{"ids", Tensor::empty({1}, DType::f32)};
    const std::string file = (dir / kSingleFile).string();
    expect_refused([&] { read_weights(model, std::span(&bytes, 1)); }, {file, "'bytes'", "unsupported", "F8_E5M2"});
    expect_refused([&] { read_weights(model, std::span(&ids, 1)); }, {file, "'ids'", "floating-point", "I32"});
}

TEST(WeightReaderRefuses, Options) {
    const ScratchDir dir;
    write_model(dir);
    const SafetensorsModel model(dir.path());
    const ErrorKind bug = ErrorKind::Internal;
    expect_refused([&] { read_weights(model, {}, {.threads = -1}); }, {"threads", "-1"}, bug);
    expect_refused([&] { read_weights(model, {}, {.threads = 257}); }, {"threads", "257"}, bug);
    expect_refused([&] { read_weights(model, {}, {.piece_bytes = 0}); }, {"piece_bytes", "0"}, bug);
}

int64_t running_threads() {
    return std::distance(fs::directory_iterator("/proc/self/task"), {});
}

// A thread that has been joined may be listed for a moment yet.
void expect_threads(int64_t count) {
    for (int i = 0; i < 1000 && running_threads() > count; ++i)
        std::this_thread::sleep_for(std::chrono::milliseconds(5));
    EXPECT_LE(running_threads(), count);
}

// Half of the second tensor and all of the third are cut off while the model is open: of the many pieces that fail the
// first in the file is reported, whatever the threads do, and nothing keeps running.
void read_a_cut_file(Device device) {
    const ScratchDir dir;
    std::vector<std::pair<std::string, Tensor>> tensors;
    for (const char* name : {"first", "second", "third"}) tensors.emplace_back(name, values({1024}, DType::f32, 1));
    write_safetensors(dir / kSingleFile, tensors);
    const auto whole = static_cast<int64_t>(fs::file_size(dir / kSingleFile));
    const int64_t cut = whole - 4096 - 2048;
    const SafetensorsModel model(dir.path());
    for (const DType dtype : {DType::f32, DType::bf16}) {
        const std::vector<WeightRequest> requests = requests_for(model, dtype, device);
        fs::resize_file(dir / kSingleFile, static_cast<uintmax_t>(cut));
        const std::string says =
            fmt::format("{}: ends at byte {}, expected {} (was it cut while in use?); reading tensor 'second'",
                        (dir / kSingleFile).string(), cut, cut + 52);
        const auto read = [&](int threads) {
            expect_refused([&] { read_weights(model, requests, {.threads = threads, .piece_bytes = 60}); }, {says});
        };
        read(8);  // also starts what threads the library and the driver keep
        const int64_t kept = running_threads();
        for (const int threads : {1, 2, 8, 8, 8, 8, 8, 8}) read(threads);
        expect_threads(kept);
        fs::resize_file(dir / kSingleFile, static_cast<uintmax_t>(whole));
        read_weights(model, requests, {.threads = 8, .piece_bytes = 60});
        expect_as_read(model, requests);
    }
}

TEST(WeightReaderRefuses, FilesThatAreCutWhileInUse) {
    read_a_cut_file({});
}

// --- on a GPU ---

TEST(WeightReaderCuda, EveryDtypePieceSizeAndNumberOfThreads) {
    if (cuda::device_count() == 0) GTEST_SKIP() << kNoGpu;
    read_every_way(kGpu);
}

TEST(WeightReaderCuda, FilesThatAreCutWhileInUse) {
    if (cuda::device_count() == 0) GTEST_SKIP() << kNoGpu;
    read_a_cut_file(kGpu);
}

TEST(WeightReaderCuda, ANanStaysOne) {
    if (cuda::device_count() == 0) GTEST_SKIP() << kNoGpu;
    const ScratchDir dir;
    const double nan = std::numeric_limits<double>::quiet_NaN();
    std::vector<std::pair<std::string, Tensor>> tensors;
    for (const DType dtype : kFloats) tensors.emplace_back(name_of(dtype), Tensor::full({9}, nan, dtype));
    write_safetensors(dir / kSingleFile, tensors);
    const SafetensorsModel model(dir.path());
    for (const DType dtype : kFloats) {
        const std::vector<WeightRequest> requests = requests_for(model, dtype, kGpu);
        read_weights(model, requests);
        for (const WeightRequest& request : requests)
            for (const double value : request.target.to_vector<double>())
                EXPECT_TRUE(std::isnan(value)) << request.name;
    }
}

// Far more pieces than slots, large enough for copies to take time, and work queued on the target when reading starts.
TEST(WeightReaderCuda, SlotsAreReusedOnlyWhenTheirCopyIsDone) {
    if (cuda::device_count() == 0) GTEST_SKIP() << kNoGpu;
    const ScratchDir dir;
    write_safetensors(dir / kSingleFile, {{"large", values({8'000'003}, DType::f32, 1)}});
    const SafetensorsModel model(dir.path());
    for (const DType dtype : kFloats)
        for (const int threads : {1, 4}) {
            const std::vector<WeightRequest> requests = requests_for(model, dtype, kGpu);
            for (int i = 0; i < 20; ++i) Tensor(requests[0].target).fill(i);
            read_weights(model, requests, {.threads = threads, .piece_bytes = 300'000});
            expect_as_read(model, requests);
        }
}

TEST(WeightReaderCuda, LeavesOnlyItsStagingInTheCache) {
    if (cuda::device_count() == 0) GTEST_SKIP() << kNoGpu;
    const ScratchDir dir;
    write_model(dir);
    const SafetensorsModel model(dir.path());
    const std::vector<WeightRequest> requests = requests_for(model, DType::bf16, kGpu);
    read_weights(model, requests, {.threads = 8, .piece_bytes = 4096});
    const AllocatorStats before = allocator(kGpu).stats();
    for (int i = 0; i < 3; ++i) read_weights(model, requests, {.threads = 8, .piece_bytes = 4096});
    EXPECT_EQ(allocator(kGpu).stats().bytes_in_use, before.bytes_in_use);
    EXPECT_EQ(allocator(kGpu).stats().bytes_reserved, before.bytes_reserved);
}

TEST(WeightReaderCuda, TargetsLieOnOneDevice) {
    if (cuda::device_count() == 0) GTEST_SKIP() << kNoGpu;
    const ScratchDir dir;
    write_model(dir);
    const SafetensorsModel model(dir.path());
    expect_nothing_read(model, {"f32.scalar", Tensor::empty({}, DType::f32, kGpu)}, {"'f32.scalar'", "cuda:0", "cpu"},
                        ErrorKind::Internal);
}

}  // namespace
}  // namespace lc::io
