#include "io/safetensors.h"

#include <sys/stat.h>

#include <chrono>
#include <cmath>
#include <functional>

#include "tests/io/faults.h"
#include "tests/io/safetensors_bytes.h"

namespace lc::io {
namespace {

namespace fs = std::filesystem;
using test::expect_refused;
using test::safetensors_bytes;

TEST(Safetensors, RoundTripOfEveryDtype) {
    const test::ScratchDir dir;
    std::vector<std::pair<std::string, Tensor>> tensors;
    for (const DType dtype : {DType::f64, DType::f32, DType::bf16, DType::f16, DType::i64, DType::i32, DType::u8}) {
        Tensor t = Tensor::from(std::vector<double>{1, 2, 3, 0, 100, 7}, {2, 3}).to(dtype);
        tensors.emplace_back(std::string("z.") + std::string(name_of(dtype)), t);
    }
    tensors.emplace_back("scalar", Tensor::full({}, 2.5, DType::f32));
    tensors.emplace_back("empty", Tensor::empty({0, 4}, DType::bf16));
    tensors.emplace_back("a \"quoted\"\n\xC3\xA9", Tensor::full({1}, 1, DType::boolean));
    tensors.emplace_back("view", Tensor::from(std::vector<float>{1, 2, 3, 4, 5, 6}, {2, 3}).permuted({1, 0}));
    const Metadata metadata = {{"format", "pt"}, {"note", "line\n\"q\""}};
    write_safetensors(dir / "a.safetensors", tensors, metadata);
    write_safetensors(dir / "b.safetensors", tensors, metadata);
    EXPECT_EQ(read_file(dir / "a.safetensors", 1 << 20), read_file(dir / "b.safetensors", 1 << 20));

    const SafetensorsFile file(dir / "a.safetensors");
    EXPECT_EQ(file.metadata(), metadata);
    EXPECT_EQ(file.names().size(), tensors.size());
    for (const auto& [name, tensor] : tensors) {
        ASSERT_TRUE(file.has(name));
        const Tensor read = file.read(name);
        EXPECT_EQ(read.dtype(), tensor.dtype());
        EXPECT_EQ(read.shape(), tensor.shape());
        EXPECT_EQ(read.to_vector<double>(), tensor.to_vector<double>()) << name;
    }
    EXPECT_EQ(file.info("view").shape, (std::vector<int64_t>{3, 2}));
    EXPECT_FALSE(file.has("none"));
    expect_refused([&] { file.read("none"); }, {"a.safetensors", "'none'", "missing"});
}

TEST(Safetensors, ConvertsWhileReading) {
    const test::ScratchDir dir;
    const std::vector<double> values = {0.1, -3.14159, 65504, 1e-8, 2};
    const Tensor exact = Tensor::from(values, {5});
    std::vector<std::pair<std::string, Tensor>> tensors;
    for (const DType dtype : {DType::f64, DType::f32, DType::bf16, DType::f16})
        tensors.emplace_back(std::string(name_of(dtype)), exact.to(dtype));
    tensors.emplace_back("i32", Tensor::from(std::vector<int32_t>{-1, 0, 1, 2, 3}, {5}));
    write_safetensors(dir / "a.safetensors", tensors);
    const SafetensorsFile file(dir / "a.safetensors");
    for (const auto& [name, tensor] : tensors)
        for (const DType to : {DType::f64, DType::f32, DType::bf16, DType::f16})
            EXPECT_EQ(file.read(name, to).to_vector<double>(), tensor.to(to).to_vector<double>()) << name;
    EXPECT_EQ(file.read("i32", DType::i64).to_vector<int64_t>(), (std::vector<int64_t>{-1, 0, 1, 2, 3}));
    expect_refused([&] { file.read("f32", DType::i32); }, {"a.safetensors", "'f32'", "i32", "F32"});
    expect_refused([&] { file.read("i32", DType::u8); }, {"'i32'", "u8", "I32"});
}

TEST(Safetensors, LargeTensorsComeInChunks) {
    const test::ScratchDir dir;
    const int64_t n = (int64_t{9} << 20) / 2 + 3;  // more than two chunks of bf16, and a tail
    Tensor big = Tensor::empty({n}, DType::f32);
    for (int64_t i = 0; i < n; ++i) big.data<float>()[i] = static_cast<float>(i % 251);
    write_safetensors(dir / "a.safetensors", {{"pad", Tensor::zeros({3}, DType::u8)}, {"big", big.to(DType::bf16)}});
    const SafetensorsFile file(dir / "a.safetensors");
    for (const DType to : {DType::bf16, DType::f32}) {
        const std::vector<float> read = file.read("big", to).to_vector<float>();
        int64_t wrong = 0;
        for (int64_t i = 0; i < n; ++i) wrong += read[static_cast<size_t>(i)] != static_cast<float>(i % 251);
        EXPECT_EQ(wrong, 0);
    }
}

TEST(Safetensors, SmallIntegersAreWidenedAndBoolsChecked) {
    const test::ScratchDir dir;
    const std::string data("\xff\x7f\x01\x80\xff\xff\x00\x01\x02", 9);
    dir.write("a", safetensors_bytes(R"({"i8":{"dtype":"I8","shape":[2],"data_offsets":[0,2]},
        "i16":{"dtype":"I16","shape":[2],"data_offsets":[2,6]},"b":{"dtype":"BOOL","shape":[2],"data_offsets":[6,8]},
        "bad":{"dtype":"BOOL","shape":[1],"data_offsets":[8,9]}})",
                                     data));
    const SafetensorsFile file(dir / "a");
    EXPECT_EQ(file.read("i8").to_vector<int32_t>(), (std::vector<int32_t>{-1, 127}));
    EXPECT_EQ(file.read("i16").to_vector<int32_t>(), (std::vector<int32_t>{-32767, -1}));
    EXPECT_EQ(file.read("i16", DType::f32).to_vector<float>(), (std::vector<float>{-32767, -1}));
    EXPECT_EQ(file.read("b").to_vector<int32_t>(), (std::vector<int32_t>{0, 1}));
    expect_refused([&] { file.read("bad"); }, {"a", "'bad'", "BOOL", "2"});
}

TEST(Safetensors, AcceptsUnusualButValidHeaders) {
    const test::ScratchDir dir;
    // No tensors; unordered ranges; padding; an unknown dtype that nobody wants; 8 dimensions.
    EXPECT_EQ(SafetensorsFile(dir.write("none", safetensors_bytes("{}", ""))).names().size(), 0u);
    dir.write("a", safetensors_bytes(R"({"y":{"data_offsets":[4,8],"dtype":"F8_E4M3","shape":[4]},
        "__metadata__":{},"x":{"dtype":"F32","shape":[],"data_offsets":[0,4]},
        "e":{"dtype":"I64","shape":[3,0],"data_offsets":[8,8]},
        "r8":{"dtype":"U8","shape":[1,1,1,1,1,1,1,2],"data_offsets":[8,10]}}   )",
                                     std::string("\0\0\x80\x3f", 4) + "abcdef"));
    const SafetensorsFile file(dir / "a");
    EXPECT_EQ(file.read("x").item(), 1.0);
    EXPECT_EQ(file.read("e").shape(), (Shape{3, 0}));
    expect_refused([&] { file.read("y"); }, {"a", "'y'", "F8_E4M3"});
    expect_refused([&] { file.read("r8"); }, {"a", "'r8'", "8 dimensions"});
}

struct Malformed {
    const char* what;
    std::string bytes;
    std::vector<std::string> says;
};

std::string sized(uint64_t length, std::string_view rest) {
    std::string bytes(8, '\0');
    std::memcpy(bytes.data(), &length, 8);
    return bytes.append(rest);
}

// One tensor "t" with the given fields over `data`.
std::string one(std::string_view fields, size_t data_bytes) {
    return safetensors_bytes(fmt::format(R"({{"t":{{{}}}}})", fields), std::string(data_bytes, 'x'));
}

std::string two(std::string_view a, std::string_view b, size_t data_bytes) {
    return safetensors_bytes(fmt::format(R"({{"a":{{"dtype":"U8","shape":[4],"data_offsets":{}}},)"
                                         R"("b":{{"dtype":"U8","shape":[4],"data_offsets":{}}}}})",
                                         a, b),
                             std::string(data_bytes, 'x'));
}

std::vector<Malformed> malformed_sizes_and_json() {
    const std::string good = R"({"t":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}})";
    return {
        {"empty file", "", {"0 bytes", "at least 8"}},
        {"7 bytes", "1234567", {"7 bytes", "at least 8"}},
        {"N = 0", sized(0, "xx"), {"must begin with '{'"}},
        {"N > file", sized(100, "{}"), {"header of 100 bytes", "only 2 follow"}},
        {"N = 2^63", sized(uint64_t{1} << 63, "{}"), {"header of 9223372036854775808 bytes"}},
        {"N = 2^64-1", sized(UINT64_MAX, "{}"), {"header of 18446744073709551615 bytes"}},
        {"N = limit + 1", sized(100'000'001, "{}"), {"100000001", "at most 100000000"}},
        {"does not begin with {", safetensors_bytes(" {}", ""), {"must begin with '{'", "' '"}},
        {"array", safetensors_bytes("[]", ""), {"must begin with '{'"}},
        {"not UTF-8", safetensors_bytes("{\"\xff\":1}", ""), {"UTF-8"}},
        {"not JSON", safetensors_bytes("{t:1}", ""), {"not valid JSON"}},
        {"NaN", one(R"("dtype":"U8","shape":[NaN],"data_offsets":[0,2])", 2), {"not valid JSON"}},
        {"cut JSON", safetensors_bytes(good.substr(0, 30), ""), {"not valid JSON"}},
        {"trailing NUL", safetensors_bytes(good + std::string(3, '\0'), "xx"), {"not valid JSON"}},
        {"too deep", one(R"("dtype":"U8","shape":[[2]],"data_offsets":[0,2])", 2), {"deeper than 3"}},
        {"absurdly deep", safetensors_bytes("{\"a\":" + std::string(100'000, '['), ""), {"'a'", "must be an object"}},
        {"tensor is a number", safetensors_bytes(R"({"t":5})", ""), {"'t'", "must be an object", "5"}},
        {"tensor is an array", safetensors_bytes(R"({"t":[]})", ""), {"'t'", "must be an object"}},
        {"metadata is a string", safetensors_bytes(R"({"__metadata__":"x"})", ""), {"'__metadata__'", "object"}},
        {"metadata value is a number", safetensors_bytes(R"({"__metadata__":{"k":1}})", ""), {"'k'", "a string", "1"}},
        {"metadata value is an object", safetensors_bytes(R"({"__metadata__":{"k":{}}})", ""), {"'k'", "a string"}},
        {"metadata twice",
         safetensors_bytes(R"({"__metadata__":{},"__metadata__":{}})", ""),
         {"'__metadata__'", "twice"}},
        {"metadata key twice", safetensors_bytes(R"({"__metadata__":{"k":"a","k":"b"}})", ""), {"'k'", "twice"}},
    };
}

std::vector<Malformed> malformed_tensors() {
    const std::string fields = R"("dtype":"U8","shape":[0],"data_offsets":[0,0])";
    const std::string duplicate = fmt::format(R"({{"t":{{{0}}},"u":{{{0}}},"t":{{{0}}}}})", fields);
    const std::string long_name = fmt::format(R"({{"{}":{{{}}}}})", std::string(513, 'n'), fields);
    return {
        {"duplicate name", safetensors_bytes(duplicate, ""), {"'t'", "twice"}},
        {"name of 513 bytes", safetensors_bytes(long_name, ""), {"'nnnn", "513 bytes", "512"}},
        {"NUL in name", safetensors_bytes("{\"a\\u0000b\":{" + fields + "}}", ""), {"a\\x00b", "NUL"}},
        {"unknown field", one(R"("dtype":"U8","shape":[2],"data_offsets":[0,2],"x":1)", 2), {"'t'", "'x'"}},
        {"field twice",
         one(R"("dtype":"U8","shape":[2],"shape":[2],"data_offsets":[0,2])", 2),
         {"'t'", "'shape' twice"}},
        {"no dtype", one(R"("shape":[2],"data_offsets":[0,2])", 2), {"'t'", "lacks 'dtype'"}},
        {"no shape", one(R"("dtype":"U8","data_offsets":[0,2])", 2), {"'t'", "lacks 'shape'"}},
        {"no offsets", one(R"("dtype":"U8","shape":[2])", 2), {"'t'", "lacks 'data_offsets'"}},
        {"dtype is a number", one(R"("dtype":8,"shape":[2],"data_offsets":[0,2])", 2), {"'t'", "'dtype'", "a string"}},
        {"dtype is an array", one(R"("dtype":["U8"],"shape":[2],"data_offsets":[0,2])", 2), {"'t'", "'dtype'"}},
        {"shape is a number", one(R"("dtype":"U8","shape":2,"data_offsets":[0,2])", 2), {"'t'", "'shape'", "an array"}},
        {"shape is an object", one(R"("dtype":"U8","shape":{"a":2},"data_offsets":[0,2])", 2), {"'t'", "'shape'"}},
        {"negative dim", one(R"("dtype":"U8","shape":[-2],"data_offsets":[0,2])", 2), {"'t'", "'shape'", "-2"}},
        {"float dim", one(R"("dtype":"U8","shape":[2.0],"data_offsets":[0,2])", 2), {"'t'", "'shape'", "2.0"}},
        {"string dim", one(R"("dtype":"U8","shape":["2"],"data_offsets":[0,2])", 2), {"'t'", "'shape'", "\"2\""}},
        {"dim 2^64", one(R"("dtype":"U8","shape":[18446744073709551616],"data_offsets":[0,2])", 2), {"'t'", "'shape'"}},
        {"dim 2^63", one(R"("dtype":"U8","shape":[9223372036854775808],"data_offsets":[0,2])", 2), {"'t'", "'shape'"}},
        {"overflow", one(R"("dtype":"U8","shape":[4294967296,4294967296],"data_offsets":[0,0])", 0), {"'t'", "larger"}},
        {"overflow by dtype",
         one(R"("dtype":"F64","shape":[2305843009213693952],"data_offsets":[0,0])", 0),
         {"'t'", "larger"}},
        {"rank 9", one(R"("dtype":"U8","shape":[1,1,1,1,1,1,1,1,1],"data_offsets":[0,1])", 1), {"'t'", "8 dimensions"}},
        {"size != shape",
         one(R"("dtype":"F32","shape":[2],"data_offsets":[0,4])", 4),
         {"'t'", "needs 8 bytes", "hold 4"}},
        {"one offset", one(R"("dtype":"U8","shape":[2],"data_offsets":[0])", 2), {"'t'", "2 numbers, got 1"}},
        {"three offsets", one(R"("dtype":"U8","shape":[2],"data_offsets":[0,2,2])", 2), {"'t'", "2 numbers, got more"}},
        {"negative offset",
         one(R"("dtype":"U8","shape":[2],"data_offsets":[-2,0])", 2),
         {"'t'", "'data_offsets'", "-2"}},
        {"reversed range", one(R"("dtype":"U8","shape":[2],"data_offsets":[2,0])", 2), {"'t'", "before it begins"}},
        {"beyond the end", one(R"("dtype":"U8","shape":[4],"data_offsets":[0,4])", 2), {"'t'", "byte 4 of 2"}},
        {"overlap", two("[0,4]", "[2,6]", 6), {"'b'", "begins at byte 2", "overlaps"}},
        {"same range", two("[0,4]", "[0,4]", 4), {"'b'", "overlaps"}},
        {"hole", two("[0,4]", "[6,10]", 10), {"'b'", "hole"}},
        {"hole at the start", one(R"("dtype":"U8","shape":[2],"data_offsets":[2,4])", 4), {"'t'", "hole"}},
        {"tail", two("[0,4]", "[4,8]", 11), {"3 bytes after the last tensor"}},
        {"data without tensors", safetensors_bytes("{}", "x"), {"1 bytes after the last tensor"}},
    };
}

void check(const std::vector<Malformed>& cases) {
    const test::ScratchDir dir;
    for (const Malformed& c : cases) {
        SCOPED_TRACE(c.what);
        const fs::path path = dir.write("weights.safetensors", c.bytes);
        std::vector<std::string> says = c.says;
        says.push_back(path.string());
        const auto start = std::chrono::steady_clock::now();
        expect_refused([&] { SafetensorsFile file(path); }, says);
        EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(1));
    }
}

TEST(SafetensorsMalformed, SizesAndJson) {
    check(malformed_sizes_and_json());
}
TEST(SafetensorsMalformed, Tensors) {
    check(malformed_tensors());
}

TEST(SafetensorsMalformed, FilesThatChangeOrAreNone) {
    const test::ScratchDir dir;
    const std::string bytes = one(R"("dtype":"U8","shape":[100],"data_offsets":[0,100])", 100);
    ASSERT_EQ(::mkfifo((dir / "fifo").c_str(), 0600), 0);
    expect_refused([&] { SafetensorsFile(dir / "fifo"); }, {"fifo", "regular file"});
    expect_refused([&] { SafetensorsFile(dir.path()); }, {"regular file"});
    expect_refused([&] { SafetensorsFile(dir / "none"); }, {"none", "No such file"});
    expect_refused([&] { SafetensorsFile(dir.write("cut", bytes.substr(0, bytes.size() - 1))); },
                   {"cut", "'t'", "byte 100 of 99"});
    const SafetensorsFile shrinks(dir.write("shrinks", bytes));
    fs::resize_file(dir / "shrinks", bytes.size() - 50);
    expect_refused([&] { shrinks.read("t"); }, {"shrinks", "changed while in use"});
    expect_refused(
        [&] { shrinks.read_bytes(shrinks.info("t"), 0, std::span(std::vector<std::byte>(100).data(), 100)); },
        {"shrinks", "ends at byte"});
    const SafetensorsFile grows(dir.write("grows", bytes));
    fs::resize_file(dir / "grows", bytes.size() + 1);
    expect_refused([&] { grows.read("t"); }, {"grows", "changed while in use"});
}

TEST(Safetensors, ManyTensors) {
    const test::ScratchDir dir;
    std::string header = "{";
    for (int i = 0; i < 200'000; ++i)
        header += fmt::format(R"("{:x}":{{"dtype":"U8","shape":[0],"data_offsets":[0,0]}},)", i);
    const std::string good = header.substr(0, header.size() - 1) + "}";
    EXPECT_EQ(SafetensorsFile(dir.write("good", safetensors_bytes(good, ""))).tensors().size(), 200'000u);
    header += R"("ffff":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}})";
    expect_refused([&] { SafetensorsFile(dir.write("bad", safetensors_bytes(header, ""))); },
                   {"bad", "'ffff'", "twice"});
}

TEST(Safetensors, WriterRefusesNamesAndTensorsThatNoOneCouldRead) {
    const test::ScratchDir dir;
    const Tensor t = Tensor::zeros({1}, DType::f32);
    const fs::path path = dir / "a.safetensors";
    const ErrorKind kind = ErrorKind::Internal;
    expect_refused([&] { write_safetensors(path, {{"t", t}, {"t", t}}); }, {"'t'", "twice"}, kind);
    expect_refused([&] { write_safetensors(path, {{"", t}}); }, {"cannot name"}, kind);
    expect_refused([&] { write_safetensors(path, {{"__metadata__", t}}); }, {"__metadata__"}, kind);
    expect_refused([&] { write_safetensors(path, {{std::string(513, 'n'), t}}); }, {"nnn"}, kind);
    expect_refused([&] { write_safetensors(path, {{"\xff", t}}); }, {"\\xff"}, kind);
    expect_refused([&] { write_safetensors(path, {{"t", Tensor()}}); }, {"'t'", "defined"}, kind);
    expect_refused([&] { write_safetensors(path, {{"t", t}}, {{"k", "\xff"}}); }, {"'k'", "UTF-8"}, kind);
    EXPECT_TRUE(fs::is_empty(dir.path()));
}

}  // namespace
}  // namespace lc::io
