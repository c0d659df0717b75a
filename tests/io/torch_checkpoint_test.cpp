// Checkpoints of torch.save: the authors' layouts bit by bit, and everything that must not be believed, or run.
#include "io/torch_checkpoint.h"

#include <gtest/gtest.h>

#include "core/rng.h"
#include "io/json.h"
#include "io/pickle.h"
#include "tests/io/faults.h"
#include "tests/io/torch_bytes.h"

namespace lc::io {
namespace {

using test::expect_refused;
using test::global_of;
using test::integer_of;
using test::kNoHooks;
using test::little;
using test::pickle_of;
using test::storage_of;
using test::tensor_of;
using test::text_of;
using test::zip_bytes;
using test::ZipEnd;
using test::ZipPart;

const std::filesystem::path kGolden = LC_SOURCE_DIR "/tests/golden/torch_checkpoint";

TEST(TorchCheckpoint, LayoutsOfTheAuthorsBitByBit) {
    const Json golden = read_json_file(kGolden / "values.json");
    for (const auto& [file, wanted] : golden.items()) {
        const TorchCheckpoint checkpoint = read_torch_checkpoint(kGolden / (file + ".pt"));
        EXPECT_EQ(checkpoint.tensors.size(), wanted.size()) << file;
        for (const auto& [name, tensor] : checkpoint.tensors) {
            ASSERT_TRUE(wanted.contains(name)) << file << " " << name;
            const std::string type = wanted[name][0];
            const DType dtype = type == "bfloat16"  ? DType::bf16
                                : type == "float16" ? DType::f16
                                : type == "float32" ? DType::f32
                                                    : DType::f64;
            EXPECT_EQ(tensor.dtype(), dtype) << name;
            EXPECT_TRUE(tensor.is_contiguous()) << name;
            EXPECT_EQ(Json(std::vector<int64_t>(tensor.shape().begin(), tensor.shape().end())), wanted[name][1]);
            EXPECT_EQ(tensor.to_vector<double>(), wanted[name][2].get<std::vector<double>>()) << file << " " << name;
        }
    }
    EXPECT_EQ(read_torch_checkpoint(kGolden / "transfer.pt").step, 900);
    EXPECT_EQ(read_torch_checkpoint(kGolden / "finetune.pt").step, 1600);
    EXPECT_EQ(read_torch_checkpoint(kGolden / "both.pt").step, std::nullopt);
}

TEST(TorchCheckpoint, NumbersOfEveryForm) {
    const auto value = [](const std::string& body) { return Pickle(pickle_of(body), "p").root(); };
    EXPECT_EQ(value("K\xff").integer, 255);
    EXPECT_EQ(value(std::string("M\xff\xff", 3)).integer, 65535);
    EXPECT_EQ(value("J\xfe\xff\xff\xff").integer, -2);
    EXPECT_EQ(value(std::string("\x8a\x00", 2)).integer, 0);
    EXPECT_EQ(value("\x8a\x01\x80").integer, -128);
    EXPECT_EQ(value(std::string("\x8a\x02\x80\x00", 4)).integer, 128);
    EXPECT_EQ(value("\x8a\x08" + little(static_cast<uint64_t>(INT64_MIN), 8)).integer, INT64_MIN);
    EXPECT_EQ(value(std::string("G\x3f\xf8\0\0\0\0\0\0", 9)).real, 1.5);
    EXPECT_EQ(value("N").kind, PickleKind::none);
    EXPECT_EQ(value("\x88").integer, 1);
}

// A good checkpoint with one tensor "a" of four floats; each test spoils one thing.
std::string file_with(const std::string& pickle, const std::string& data = std::string(16, '\0')) {
    return zip_bytes({{"t/data.pkl", pickle}, {"t/byteorder", "little"}, {"t/data/0", data}});
}
std::string state_of(const std::string& value) {
    return pickle_of("}" + text_of("a") + value + "s");
}
const std::string kGood = tensor_of(storage_of("FloatStorage", "0", 4), 0, {2, 2}, {2, 1});

struct Fault {
    std::string name, bytes;
    std::vector<std::string> parts;
};
void expect_all_refused(const std::vector<Fault>& faults) {
    const test::ScratchDir directory;
    for (const Fault& fault : faults) {
        SCOPED_TRACE(fault.name);
        const auto path = directory.write("model.pt", fault.bytes);
        std::vector<std::string> parts = fault.parts;
        parts.push_back("model.pt");
        expect_refused([&] { read_torch_checkpoint(path); }, parts);
    }
}

TEST(TorchCheckpoint, TheUnspoiltOneIsRead) {
    const test::ScratchDir directory;
    const TorchCheckpoint checkpoint = read_torch_checkpoint(directory.write("m.pt", file_with(state_of(kGood))));
    ASSERT_EQ(checkpoint.tensors.size(), 1u);
    EXPECT_EQ(checkpoint.tensors[0].second.to_vector<float>(), std::vector<float>(4));
    const Tensor odd = Tensor::from(std::vector<float>{1, -2, 3}, {3, 1});
    const auto again = read_torch_checkpoint(directory.write("n.pt", test::torch_bytes({{"x", odd}}, 12)));
    EXPECT_EQ(again.tensors[0].second.to_vector<float>(), odd.to_vector<float>());
    EXPECT_EQ(again.step, 12);
    const std::string wide =
        zip_bytes({{"t/data.pkl", state_of(kGood)}, {"t/data/0", std::string(16, '\0')}}, {.wide = true});
    EXPECT_EQ(read_torch_checkpoint(directory.write("w.pt", wide)).tensors.size(), 1u);
}

// What attacks are made of. None of these names is ever looked up anywhere.
TEST(TorchCheckpoint, CodeIsRefusedByName) {
    std::vector<Fault> faults;
    const std::pair<const char*, const char*> globals[] = {
        {"os", "system"},
        {"posix", "system"},
        {"nt", "system"},
        {"subprocess", "Popen"},
        {"builtins", "eval"},
        {"builtins", "exec"},
        {"__builtin__", "eval"},
        {"builtins", "getattr"},
        {"builtins", "__import__"},
        {"torch", "load"},
        {"torch.hub", "load"},
        {"runpy", "_run_code"},
        {"collections", "OrderedDict.__reduce__"},
        {"collections.OrderedDict", ""},
        {"torch._utils", "_rebuild_tensor"},
        {"torch", "storage._load_from_bytes"},
        {"torch.storage", "_load_from_bytes"},
        {"numpy.core.multiarray", "scalar"},
        {"torch", "LongStorage"},
        {" torch", "FloatStorage"},
        {"torch", "floatstorage"},
        {"", ""},
    };
    for (const auto& [module, name] : globals) {
        const std::string wanted = fmt::format("global '{}.{}'", module, name);
        faults.push_back({wanted, file_with(state_of(global_of(module, name) + "(" + text_of("id") + "tR")), {wanted}});
        faults.push_back({wanted + " alone", file_with(pickle_of(global_of(module, name))), {wanted, "byte 2"}});
    }
    expect_all_refused(faults);
}

TEST(TorchCheckpoint, OpcodesThatBuildNoTensorsAreRefused) {
    std::vector<Fault> faults;
    // INST, OBJ, NEWOBJ, NEWOBJ_EX, STACK_GLOBAL, EXT1, EXT2, EXT4, PERSID, POP, POP_MARK, DUP, GET, PUT, INT, LONG, FLOAT,
    // STRING, BINSTRING, SHORT_BINSTRING, UNICODE, LIST, DICT, EMPTY_LIST, APPEND, APPENDS, LONG4, BINBYTES, SHORT_BINBYTES,
    // MEMOIZE, FRAME, EMPTY_SET, ADDITEMS, FROZENSET, SHORT_BINUNICODE, BYTEARRAY8, NEXT_BUFFER, READONLY_BUFFER, and noise.
    const std::string opcodes = std::string("io\x81\x92\x93\x82\x83\x84P01") + "2gpILFSTUVld]ae\x8b" +
                                "BC\x94\x95\x8f\x90\x91\x8c\x96\x97\x98\xff";
    for (const char opcode : opcodes + std::string(1, '\0')) {
        const std::string hex = fmt::format("{:#04x}", static_cast<unsigned char>(opcode));
        faults.push_back({"opcode " + hex,
                          file_with(pickle_of("}(" + text_of("a") + text_of("os") + opcode + "u")),
                          {"opcode " + hex, "byte 17"}});
    }
    expect_all_refused(faults);
}

TEST(TorchCheckpoint, MalformedPicklesAreRefused) {
    const std::string storage = storage_of("FloatStorage", "0", 4), proto = "\x80\x02";
    const std::string rebuild = global_of("torch._utils", "_rebuild_tensor_v2");
    const std::string dict = "}q" + little(0, 1);
    std::string deep;
    for (int i = 0; i < 100000; ++i) deep += "\x85";  // a tuple of a tuple of ...
    std::string many = "(";
    for (size_t i = 0; i <= Pickle::kMaxValues; ++i) many += "N";
    const auto tensor_faults = [&](const std::string& name, int64_t offset, std::vector<int64_t> shape,
                                   std::vector<int64_t> strides, std::vector<std::string> parts) {
        return Fault{name, file_with(state_of(tensor_of(storage, offset, shape, strides))), std::move(parts)};
    };
    expect_all_refused({
        {"empty", file_with(""), {"byte 0", "needs 1 more"}},
        {"protocol 4", file_with("\x80\x04" + state_of(kGood).substr(2)), {"protocol 2"}},
        {"no protocol", file_with("}."), {"protocol 2"}},
        {"no stop", file_with(proto + "}"), {"needs 1 more bytes"}},
        {"nothing", file_with(pickle_of("")), {"one value", "0"}},
        {"two values", file_with(pickle_of("}}")), {"one value", "2"}},
        {"open mark", file_with(pickle_of("}(")), {"one value"}},
        {"more follows", file_with(state_of(kGood) + "x"), {"1 bytes follow"}},
        {"two pickles", file_with(state_of(kGood) + state_of(kGood)), {"bytes follow"}},
        {"long text", file_with(proto + "X\xff\xff\xff\xff" + "abc"), {"needs 4294967295 more bytes"}},
        {"cut text", file_with(proto + "X" + little(5, 4) + "abcd"), {"needs 5 more bytes, has 4"}},
        {"text not UTF-8", file_with(pickle_of(text_of("\xc0\x80"))), {"UTF-8"}},
        {"global without end", file_with(proto + "c" + std::string(1000, 'a')), {"within 256 bytes"}},
        {"empty stack", file_with(pickle_of("\x85")), {"empty stack"}},
        {"below a mark", file_with(pickle_of("}(\x85")), {"empty stack"}},
        {"set items below a mark", file_with(pickle_of("}((" + text_of("a") + "Nu")), {"empty stack"}},
        {"store below a mark", file_with(pickle_of("}(q" + little(0, 1))), {"empty stack"}},
        {"no mark", file_with(pickle_of("t")), {"mark"}},
        {"no memo", file_with(pickle_of("h\x07")), {"memo 7"}},
        {"far memo", file_with(pickle_of("j\xff\xff\xff\xff")), {"memo 4294967295"}},
        {"key that is no text", file_with(pickle_of("}K\x01Ns")), {"keys", "integer 1"}},
        {"key without value", file_with(pickle_of("}(" + text_of("a") + "u")), {"without a value"}},
        {"items of a tuple", file_with(pickle_of(")" + text_of("a") + "Ns")), {"sets items of a tuple"}},
        {"root is a number", file_with(pickle_of("K\x01")), {"dict of tensors", "integer 1"}},
        {"root is a tensor", file_with(pickle_of(kGood)), {"dict of tensors", "a tensor"}},
        {"state is a tuple",
         file_with(pickle_of("}" + text_of("model_state_dict") + ")s")),
         {"model_state_dict", "a tuple of 0"}},
        {"state is in itself",
         file_with(pickle_of(dict + text_of("model_state_dict") + std::string("h\0", 2) + "s")),
         {"model_state_dict", "must be a tensor"}},
        {"value is a dict", file_with(state_of("}")), {"key 'a'", "must be a tensor", "dict"}},
        {"value is a storage", file_with(state_of(storage)), {"key 'a'", "a storage"}},
        {"value is a global", file_with(state_of(global_of("torch", "FloatStorage"))), {"key 'a'", "a global"}},
        {"twice", file_with(pickle_of("}(" + text_of("a") + kGood + text_of("a") + kGood + "u")), {"'a' occurs twice"}},
        {"long number", file_with(pickle_of("\x8a\x09" + std::string(9, '\1'))), {"9 bytes"}},
        {"deep", file_with(pickle_of("N" + deep)), {"dict of tensors", "a tuple of 1"}},
        {"many", file_with(pickle_of(many + "t")), {"more than 262144 values"}},
        {"call of a number", file_with(pickle_of("K\x01)R")), {"no global", "integer 1"}},
        {"call of a storage type", file_with(pickle_of(global_of("torch", "FloatStorage") + ")R")), {"storage type"}},
        {"call without a tuple", file_with(pickle_of(global_of("collections", "OrderedDict") + "NR")), {"tuple"}},
        {"OrderedDict of pairs",
         file_with(pickle_of(global_of("collections", "OrderedDict") + ")\x85R")),
         {"no arguments"}},
        {"persistent id is text", file_with(pickle_of(text_of("0") + "Q")), {"persistent id must be a tuple"}},
        {"persistent id of four", file_with(pickle_of("(" + text_of("storage") + "NNNtQ")), {"persistent id"}},
        {"persistent id of a module", file_with(pickle_of("(" + text_of("module") + "NNNNtQ")), {"persistent id"}},
        {"storage of a function",
         file_with(pickle_of("(" + text_of("storage") + rebuild + text_of("0") + text_of("cpu") + "K\x04tQ")),
         {"storage type"}},
        {"negative storage",
         file_with(state_of(tensor_of(storage_of("FloatStorage", "0", -4), 0, {}, {}))),
         {"at least 0, got -4"}},
        {"tensor of three",
         file_with(state_of(rebuild + "(" + storage + integer_of(0) + integer_of(1) + "tR")),
         {"takes 6 arguments, got"}},
        {"tensor without storage", file_with(state_of(tensor_of("N", 0, {1}, {1}))), {"storage", "None"}},
        {"offset is text",
         file_with(state_of(rebuild + "(" + storage + text_of("0") + "))\x89" + kNoHooks + "tR")),
         {"offset", "text '0'"}},
        {"hooks",
         file_with(state_of(rebuild + "(" + storage + integer_of(0) + "))\x89}" + text_of("h") + "NstR")),
         {"hooks"}},
        {"state of a plain dict", file_with(pickle_of("}}" + text_of("_metadata") + "}sb")), {"only an OrderedDict"}},
        {"other state", file_with(pickle_of(kNoHooks + "}" + text_of("__class__") + "}sb")), {"only its _metadata"}},
        {"parameter of a number",
         file_with(state_of(global_of("torch._utils", "_rebuild_parameter") + "K\x01\x89" + kNoHooks + "\x87R")),
         {"takes a tensor"}},
        tensor_faults("too large", 0, {5}, {1}, {"[5]", "storage of 4"}),
        tensor_faults("beyond the end", 3, {2}, {1}, {"offset 3", "storage of 4"}),
        tensor_faults("strides too long", 0, {2, 2}, {3, 1}, {"stride [3,1]"}),
        tensor_faults("a terabyte out of one number", 0, {1 << 20, 1 << 20}, {0, 0}, {"[1048576,1048576]"}),
        tensor_faults("size that overflows", 0, {int64_t{1} << 40, int64_t{1} << 40}, {1, 1}, {"leaves its storage"}),
        tensor_faults("stride that overflows", 0, {3}, {INT64_MAX}, {"leaves its storage"}),
        tensor_faults("negative size", 0, {-1}, {1}, {"at least 0", "-1"}),
        tensor_faults("negative stride", 0, {2}, {-1}, {"at least 0", "-1"}),
        tensor_faults("negative offset", -1, {1}, {1}, {"offset -1"}),
        tensor_faults("sizes and strides differ", 0, {2, 2}, {1}, {"2 sizes and 1 strides"}),
        tensor_faults("nine dimensions", 0, std::vector<int64_t>(9, 1), std::vector<int64_t>(9, 1), {"9 dimensions"}),
        tensor_faults("seven dimensions", 0, std::vector<int64_t>(7, 1), std::vector<int64_t>(7, 1), {"7 dimensions"}),
    });
}

TEST(TorchCheckpoint, StoragesMustBeWhatTheySay) {
    const std::string two = "}(" + text_of("a") + kGood + text_of("b") + kGood;
    std::string shared = two;
    for (int i = 0; i < 200; ++i) shared += text_of(std::to_string(i)) + "h\x01";
    const std::string good = state_of(kGood);
    expect_all_refused({
        {"short", file_with(good, std::string(12, 'x')), {"t/data/0", "12 bytes", "4 f32"}},
        {"long", file_with(good, std::string(20, 'x')), {"t/data/0", "20 bytes"}},
        {"other key",
         file_with(state_of(tensor_of(storage_of("FloatStorage", "../0", 4), 0, {4}, {1}))),
         {"t/data/../0", "missing"}},
        {"vast",
         file_with(state_of(tensor_of(storage_of("FloatStorage", "0", INT64_MAX / 2), 0, {4}, {1}))),
         {"t/data/0", "16 bytes"}},
        {"other dtype",
         file_with(state_of(tensor_of(storage_of("HalfStorage", "0", 4), 0, {4}, {1}))),
         {"t/data/0", "4 f16"}},
        {"shared by many",
         zip_bytes({{"t/data.pkl", pickle_of("}(" + text_of("b") + kGood + "q\x01" + shared.substr(2) + "u")},
                    {"t/data/0", std::string(16, '\0')}}),
         {"occurs twice"}},
        {"big-endian",
         zip_bytes({{"t/data.pkl", good}, {"t/byteorder", "big"}, {"t/data/0", std::string(16, '\0')}}),
         {"t/byteorder", "big"}},
        {"no pickle", zip_bytes({{"t/data/0", "1234"}}), {"no member ends in '/data.pkl'"}},
        {"two pickles", zip_bytes({{"t/data.pkl", good}, {"u/data.pkl", good}}), {"two pickles", "u/data.pkl"}},
        {"empty archive", zip_bytes({}), {"/data.pkl"}},
    });
}

TEST(TorchCheckpoint, TensorsThatShareAStorageCannotOutgrowTheFile) {
    // One storage of 4 MB and a thousand views of it.
    const int64_t elements = 1 << 20;
    std::string state =
        "}(" + text_of("first") + tensor_of(storage_of("FloatStorage", "0", elements), 0, {elements}, {1}) + "q\x01";
    for (int i = 0; i < 1000; ++i) state += text_of(std::to_string(i)) + "h\x01";
    expect_all_refused({{"bomb",
                         file_with(pickle_of(state + "u"), std::string(4 * elements, '\0')),
                         {"larger than the file", "'0'"}}});
}

TEST(ZipArchive, MalformedArchivesAreRefused) {
    const std::string pickle = state_of(kGood), data(16, '\0');
    const ZipPart first{"t/data.pkl", pickle}, last{"t/data/0", data};
    const auto spoilt = [&](auto&& change) {
        ZipPart part = last;
        change(part);
        return zip_bytes({first, part});
    };
    const auto ended = [&](const ZipEnd& end) { return zip_bytes({first, last}, end); };
    const std::string good = zip_bytes({first, last});
    std::string twice = zip_bytes({first, last, last});
    expect_all_refused({
        {"empty", "", {"0 bytes"}},
        {"short", std::string(21, 'P'), {"21 bytes"}},
        {"a pickle", pickle_of("}") + std::string(40, 'x'), {"not a zip archive"}},
        {"cut", good.substr(0, good.size() - 1), {"end record"}},
        {"longer", good + "x", {"end record"}},
        {"comment", ended({.comment = 3, .after = "abc"}), {"end record"}},
        {"comment that is not there", ended({.comment = 3}), {"end record"}},
        {"other signature", ended({.signature = 0x06054b51}), {"end record"}},
        {"sentinels without ZIP64", ended({.offset = 0xFFFFFFFF}), {"must end at byte"}},
        {"ZIP64 count", ended({.wide = true, .wide_count = 1}), {"ZIP64"}},
        {"ZIP64 size", ended({.wide = true, .wide_size = 1}), {"ZIP64"}},
        {"ZIP64 offset", ended({.wide = true, .wide_offset = -1}), {"ZIP64"}},
        {"ZIP64 negative", ended({.wide = true, .wide_offset = INT64_MIN}), {"ZIP64"}},
        {"ZIP64 elsewhere", ended({.wide = true, .wide_place = 1}), {"ZIP64"}},
        {"ZIP64 longer", ended({.wide = true, .wide_length = 8}), {"ZIP64"}},
        {"ZIP64 signature", ended({.wide = true, .wide_signature = 1}), {"ZIP64"}},
        {"ZIP64 above 4 GiB", ended({.offset = 0xFFFFFFFF, .wide = true}), {"ZIP64", "4 GiB"}},
        {"another disk", ended({.disk = 1}), {"several files"}},
        {"counts differ", ended({.count_here = 1}), {"several files"}},
        {"one entry more", ended({.count = 3, .count_here = 3}), {"entry 2 of 3"}},
        {"one entry less", ended({.count = 1, .count_here = 1}), {"belong to no entry"}},
        {"directory elsewhere", ended({.offset = 3}), {"must end at byte"}},
        {"directory too large", ended({.size = 0x7FFFFFFF}), {"must end at byte"}},
        {"gap before the end", ended({.before = "gap"}), {"must end at byte"}},
        {"compressed", spoilt([](ZipPart& p) { p.method = 8; }), {"t/data/0", "compressed (method 8)"}},
        {"compressed, locally", spoilt([](ZipPart& p) { p.local_method = 8; }), {"t/data/0", "local header"}},
        {"encrypted", spoilt([](ZipPart& p) { p.flags = 0x0809; }), {"t/data/0", "encrypted"}},
        {"other name, locally", spoilt([](ZipPart& p) { p.local_name = "t/data/1"; }), {"t/data/0", "local header"}},
        {"longer name, locally", spoilt([](ZipPart& p) { p.local_name = "t/data/00"; }), {"local header"}},
        {"packed", spoilt([](ZipPart& p) { p.packed = 8; }), {"t/data/0", "takes 8 bytes for 16"}},
        {"larger than it is", spoilt([](ZipPart& p) { p.size = 4000; }), {"t/data/0", "ends at byte"}},
        {"zip64 size", spoilt([](ZipPart& p) { p.size = 0xFFFFFFFF; }), {"t/data/0", "stored, but"}},
        {"header outside", spoilt([](ZipPart& p) { p.header = 0x7FFFFFFF; }), {"t/data/0", "begins at byte"}},
        {"header elsewhere", spoilt([](ZipPart& p) { p.header = 5; }), {"t/data/0", "local header"}},
        {"other disk", spoilt([](ZipPart& p) { p.disk = 2; }), {"t/data/0", "another disk"}},
        {"damaged", spoilt([](ZipPart& p) { p.crc_change = 1; }), {"t/data/0", "CRC-32"}},
        {"no name", spoilt([](ZipPart& p) { p.name = ""; }), {"entry 1", "name"}},
        {"name with NUL", spoilt([](ZipPart& p) { p.name = std::string("a\0b", 3); }), {"entry 1", "name"}},
        {"name not UTF-8", spoilt([](ZipPart& p) { p.name = "\xff"; }), {"entry 1", "\\xff"}},
        {"long name", spoilt([](ZipPart& p) { p.name = std::string(513, 'a'); }), {"entry 1", "512"}},
        {"same name", twice, {"t/data/0", "occurs twice"}},
        {"overlap",
         zip_bytes({{.name = "t/data.pkl", .content = pickle, .size = 160 + std::ssize(pickle)},
                    {"t/data/0", std::string(200, '\0')}}),
         {"overlap"}},
    });
}

TEST(ZipArchive, CrcIsTheStandardOne) {
    EXPECT_EQ(crc32(std::as_bytes(std::span("123456789", 9))), 0xCBF43926u);
    EXPECT_EQ(crc32({}), 0u);
}

// A cut file is refused; one with a changed byte is refused or gives tensors of the declared shapes; ASan sees the rest.
TEST(TorchCheckpoint, CutsAndFlippedBytesDoNoHarm) {
    const test::ScratchDir directory;
    const std::string good = read_file(kGolden / "transfer.pt", 1 << 20);
    const auto attempt = [&](const std::string& bytes) {
        const auto path = directory.write("m.pt", bytes);
        try {
            for (const auto& [name, tensor] : read_torch_checkpoint(path).tensors)
                EXPECT_LE(tensor.nbytes(), std::ssize(bytes));
            return true;
        } catch (const Error& error) {
            EXPECT_EQ(static_cast<int>(error.kind()), static_cast<int>(ErrorKind::BadInput)) << error.what();
            return false;
        }
    };
    EXPECT_TRUE(attempt(good));
    for (size_t length = 0; length < good.size(); length += 13) EXPECT_FALSE(attempt(good.substr(0, length)));
    const Random random(4);
    for (size_t i = 0; i < good.size(); i += 1 + random.below(10, good.size() + i)) {
        std::string bytes = good;
        bytes[i] = static_cast<char>(bytes[i] ^ static_cast<char>(1 + random.below(255, i)));
        attempt(bytes);
    }
}

// The same inside the pickle, where the archive's CRC would hide it.
TEST(Pickle, FlippedBytesDoNoHarm) {
    std::string good = "}(" + text_of("model_state_dict") + "}" + text_of("a") + kGood + "q\x05s" + text_of("step") +
                       integer_of(1000) + "u";
    good = pickle_of(good);
    const Random random(5);
    int accepted = 0;
    for (size_t i = 0; i < 40 * good.size(); ++i) {
        std::string bytes = good;
        bytes[i % good.size()] = static_cast<char>(random.below(256, 2 * i));
        if (i > 20 * good.size())
            bytes[random.below(good.size(), 2 * i + 1)] = static_cast<char>(random.below(256, 2 * i + 7));
        try {
            const Pickle pickle(bytes, "p");
            describe(pickle.root());
            ++accepted;
        } catch (const Error& error) {
            EXPECT_EQ(static_cast<int>(error.kind()), static_cast<int>(ErrorKind::BadInput)) << error.what();
        }
    }
    EXPECT_GT(accepted, 0);
}

}  // namespace
}  // namespace lc::io
