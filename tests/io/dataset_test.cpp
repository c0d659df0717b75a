#include "io/dataset/dataset.h"

#include <sys/stat.h>

#include <fstream>

#include "io/dataset/alpaca.h"
#include "tests/assets.h"
#include "tests/io/faults.h"

namespace lc::io {
namespace {

namespace fs = std::filesystem;
using test::expect_refused;
using test::ScratchDir;

const std::string kBom = "\xEF\xBB\xBF";
const std::string kGood = R"({"instruction":"Add.","input":"1 2","output":"3"})";
const std::string kNoInput = R"({"instruction":"Hi","input":"","output":"Hello"})";

std::vector<std::string> completions(const Dataset& data) {
    std::vector<std::string> result;
    for (const Sample& sample : data.samples) result.push_back(sample.completion);
    return result;
}

TEST(Alpaca, PromptIsThePublicOne) {
    EXPECT_EQ(alpaca_prompt({"Say hi.", "", "x"}),
              "Below is an instruction that describes a task. Write a response that appropriately completes the "
              "request.\n\n### Instruction:\nSay hi.\n\n### Response:\n");
    EXPECT_EQ(
        alpaca_prompt({" Add.\n", " ", "x"}),
        "Below is an instruction that describes a task, paired with an input that provides further context. Write "
        "a response that appropriately completes the request.\n\n### Instruction:\n Add.\n\n\n### Input:\n \n\n### "
        "Response:\n");
    EXPECT_EQ(alpaca_prompt({"{braces} {0}", "", ""}).find("{braces} {0}") == std::string::npos, false);
}

TEST(Dataset, AlpacaAsLinesAndAsArray) {
    const ScratchDir dir;
    const std::vector<std::pair<std::string, std::string>> files = {
        {"a.jsonl", kGood + "\n" + kNoInput + "\n"},
        {"no_final_newline.jsonl", kGood + "\n" + kNoInput},
        {"crlf.jsonl", kGood + "\r\n\r\n" + kNoInput + "\r\n"},
        {"bom.jsonl", kBom + kGood + "\n\n  \n" + kNoInput},
        {"a.json", "[\n " + kGood + ",\n " + kNoInput + "]\n"},
        {"bom.json", kBom + "\r\n[" + kGood + "," + kNoInput + "]"},
        {"lines.json", kGood + "\n" + kNoInput},
        {"extra.jsonl", R"({"instruction":"Add.","input":"1 2","output":"3","text":"...","id":[{}]})"
                        "\n" +
                            kNoInput},
        {"absent_input.jsonl", kGood + "\n" + R"({"instruction":"Hi","output":"Hello"})"},
    };
    for (const auto& [name, bytes] : files) {
        SCOPED_TRACE(name);
        const fs::path path = dir.write(name, bytes);
        EXPECT_EQ(detect_format(path).format, DataFormat::alpaca);
        const Dataset data = read_dataset(path);
        EXPECT_EQ(completions(data), (std::vector<std::string>{"3", "Hello"}));
        EXPECT_EQ(data.samples[0].prompt, alpaca_prompt({"Add.", "1 2", ""}));
        EXPECT_EQ(data.samples[1].prompt, alpaca_prompt({"Hi", "", ""}));
        EXPECT_EQ(data.records, 2);
    }
}

TEST(Dataset, TextAndCompletionsAsLines) {
    const ScratchDir dir;
    const Dataset text = read_dataset(dir.write("a.jsonl", R"({"text":"one\n"})"
                                                           "\n"
                                                           R"({"text":""})"
                                                           "\n"
                                                           R"({"text":"two"})"));
    EXPECT_EQ(text.format, DataFormat::jsonl);
    EXPECT_EQ(completions(text), (std::vector<std::string>{"one\n", "two"}));
    EXPECT_EQ(text.samples[0].prompt, "");
    EXPECT_EQ(text.empty, 1);
    const Dataset pairs = read_dataset(dir.write("b.jsonl", R"({"prompt":"p","completion":"c"})"));
    EXPECT_EQ(pairs.format, DataFormat::completions);
    EXPECT_EQ(pairs.samples[0].prompt, "p");
    EXPECT_EQ(pairs.samples[0].completion, "c");
}

TEST(Dataset, PlainTextIsCutAtItsSeparators) {
    const ScratchDir dir;
    const auto documents = [&](const std::string& bytes) {
        return completions(read_dataset(dir.write("a.txt", bytes)));
    };
    using Documents = std::vector<std::string>;
    EXPECT_EQ(documents("just one\ndocument\n"), (Documents{"just one\ndocument\n"}));
    EXPECT_EQ(documents(kBom + std::string("a\nb\n\0\nc\n", 8)), (Documents{"a\nb", "c\n"}));
    EXPECT_EQ(documents(std::string("a\n\0\n", 4)), (Documents{"a"}));
    EXPECT_EQ(documents(std::string("a\n\0\n\n\0\nb", 8)), (Documents{"a", "b"}));
    EXPECT_EQ(documents("a\n<|endoftext|>\nb<|endoftext|>c\n<|endoftext|>\n"), (Documents{"a", "b", "c"}));
    // NUL lines win: then the marker is text like any other.
    EXPECT_EQ(documents(std::string("a<|endoftext|>\n\0\nb", 18)), (Documents{"a<|endoftext|>", "b"}));
    EXPECT_EQ(documents("[Illustration]\n{"), (Documents{"[Illustration]\n{"}));
    EXPECT_EQ(read_dataset(dir.write("a.txt", "a<|endoftext|><|endoftext|>b")).empty, 1);
    EXPECT_EQ(read_dataset(dir.write("book", "Once upon a time")).format, DataFormat::text);
}

TEST(Dataset, FormatsAndBadLinesByName) {
    for (const char* name : {"auto", "alpaca", "completions", "jsonl", "text"})
        EXPECT_EQ(name_of(data_format_from(name)), name);
    expect_refused([] { data_format_from("parquet"); }, {"parquet", "alpaca"}, ErrorKind::Usage);
    EXPECT_EQ(bad_lines_from("stop"), 0);
    EXPECT_EQ(bad_lines_from("skip:12"), 12);
    for (const char* bad : {"", "skip", "skip:", "skip:-1", "skip:1x", "3"})
        expect_refused([&] { bad_lines_from(bad); }, {"skip:N"}, ErrorKind::Usage);
}

struct Case {
    const char* what;
    std::string name;
    std::string bytes;
    std::vector<std::string> says;
    DatasetOptions options = {};
};

std::vector<Case> bad_lines() {
    const auto second = [](const std::string& line) { return kGood + "\n" + line + "\n" + kGood + "\n"; };
    return {
        {"not JSON", "a.jsonl", second("{oops}"), {"a.jsonl:2: ", "not valid JSON"}},
        {"cut line", "a.jsonl", second(kGood.substr(0, 20)), {"a.jsonl:2: ", "not valid JSON"}},
        {"two objects on a line", "a.jsonl", second(kGood + kGood), {"a.jsonl:2: ", "not valid JSON"}},
        {"NaN", "a.jsonl", second(R"({"instruction":"a","output":"b","x":NaN})"), {"a.jsonl:2: ", "not valid JSON"}},
        {"bad UTF-8", "a.jsonl", second("{\"instruction\":\"\xff\",\"output\":\"\"}"), {"a.jsonl:2: ", "UTF-8"}},
        {"NUL", "a.jsonl", second(kGood + std::string(1, '\0')), {"a.jsonl:2: ", "NUL"}},
        {"BOM inside", "a.jsonl", kGood + "\n\xEF\xBB\xFF" + kGood, {"a.jsonl:2: ", "not valid JSON"}},
        {"lone surrogate", "a.jsonl", second(R"({"instruction":"\udc00","output":""})"), {"a.jsonl:2: ", "surrogate"}},
        {"duplicate key",
         "a.jsonl",
         second(R"({"instruction":"a","output":"b","output":"c"})"),
         {"a.jsonl:2: ", "'output'", "twice"}},
        {"too deep", "a.jsonl", second(std::string(100, '[')), {"a.jsonl:2: ", "deeper than 64"}},
        {"an array", "a.jsonl", second("[1]"), {"a.jsonl:2: ", "JSON object", "an array"}},
        {"a string", "a.jsonl", second("\"text\""), {"a.jsonl:2: ", "JSON object"}},
        {"no output", "a.jsonl", second(R"({"instruction":"a","input":""})"), {"a.jsonl:2: ", "'output'", "missing"}},
        {"no instruction",
         "a.jsonl",
         second(R"({"input":"a","output":""})"),
         {"a.jsonl:2: ", "'instruction'", "missing"}},
        {"null output",
         "a.jsonl",
         second(R"({"instruction":"a","output":null})"),
         {"a.jsonl:2: ", "'output'", "missing"}},
        {"input of the wrong type",
         "a.jsonl",
         second(R"({"instruction":"a","input":[],"output":""})"),
         {"a.jsonl:2: ", "'input'", "a string"}},
        {"output of the wrong type",
         "a.jsonl",
         second(R"({"instruction":"a","output":3})"),
         {"a.jsonl:2: ", "'output'", "a string", "3"}},
        {"text of the wrong type",
         "a.jsonl",
         "{\"text\":\"x\"}\n{\"text\":{}}\n",
         {"a.jsonl:2: ", "'text'", "a string"}},
        {"kinds mixed", "a.jsonl", "{\"text\":\"x\"}\n" + kGood, {"a.jsonl:2: ", "'text'", "missing"}},
        {"completion missing",
         "a.jsonl",
         "{\"prompt\":\"x\",\"completion\":\"\"}\n{\"prompt\":\"x\"}",
         {"a.jsonl:2: ", "'completion'"}},
        {"CRLF keeps the count", "a.jsonl", kGood + "\r\n\r\n{oops}\r\n", {"a.jsonl:3: "}},
        {"line over the cap",
         "a.jsonl",
         second(R"({"text":")" + std::string(200, 'x') + "\"}"),
         {"a.jsonl:2: ", "longer than 100 bytes"},
         {.max_line_bytes = 100}},
        {"line over the cap at the end",
         "a.jsonl",
         kGood + "\n" + std::string(200, 'x'),
         {"a.jsonl:2: ", "longer than 100"},
         {.max_line_bytes = 100}},
        {"record of an array",
         "a.json",
         "[" + kGood + ",\n{\"instruction\":\"a\"}]",
         {"a.json: record 2: ", "'output'"}},
        {"array of text", "a.json", R"([{"text":"x"}])", {"a.json: record 1: ", "'instruction'", "missing"}},
        {"array of arrays", "a.json", "[[]]", {"a.json: record 1: ", "JSON object"}},
        {"array cut", "a.json", "[" + kGood + ",", {"a.json: ", "not valid JSON"}},
        {"array with a tail", "a.json", "[" + kGood + "] x", {"a.json: ", "not valid JSON"}},
        {"array over the cap", "a.json", "[" + kGood + "]", {"a.json: ", "at most 20"}, {.max_file_bytes = 20}},
        {"more bad lines than allowed",
         "a.jsonl",
         second("{oops}\n{}\n[]"),
         {"a.jsonl:4: ", "2 bad records before"},
         {.skip_bad_lines = 2}},
    };
}

std::vector<Case> bad_files() {
    const DatasetOptions text{.format = DataFormat::text};
    return {
        {"empty file", "a.jsonl", "", {"a.jsonl", "no samples"}},
        {"empty text", "a.txt", "", {"a.txt", "no samples"}},
        {"only a BOM", "a.txt", kBom, {"a.txt", "no samples"}},
        {"only blank lines", "a.jsonl", "\n \r\n\t\n", {"a.jsonl", "no samples"}},
        {"only separators", "a.txt", "<|endoftext|>\n<|endoftext|>", {"a.txt", "no samples", "empty"}},
        {"empty array", "a.json", "[]", {"a.json", "no samples"}},
        {"all bad",
         "a.jsonl",
         "{oops}\n[]\n",
         {"a.jsonl", "no samples", "2 bad"},
         {.format = DataFormat::alpaca, .skip_bad_lines = 5}},
        {"unknown keys", "a.jsonl", R"({"q":"?","a":"!"})", {"a.jsonl:1", "'text'", "'instruction'"}},
        {"chat", "a.jsonl", R"({"messages":[]})", {"a.jsonl:1", "chat", "'messages'"}},
        {"ShareGPT", "a.jsonl", R"({"conversations":[]})", {"a.jsonl:1", "'conversations'"}},
        {"first record malformed", "a.jsonl", "\n{oops\n", {"a.jsonl:2", "not valid JSON"}},
        {"scalar file", "a.json", "3", {"a.json:1", "JSON object"}},
        {"object for an array",
         "a.jsonl",
         "[" + kGood + "]",
         {"a.jsonl:1", "JSON object"},
         {.format = DataFormat::jsonl}},
        {"xz",
         "a.jsonl.xz",
         std::string("\xFD"
                     "7zXZ\0\0\x04",
                     8),
         {"a.jsonl.xz", "xz", "decompress"}},
        {"xz named text",
         "a.txt",
         std::string("\xFD"
                     "7zXZ\0\0\x04",
                     8),
         {"a.txt", "decompress"},
         text},
        {"gzip", "a.jsonl.gz", std::string("\x1F\x8B\x08\0", 4), {"a.jsonl.gz", "gzip"}},
        {"zstd", "a.jsonl.zst", "\x28\xB5\x2F\xFD....", {"a.jsonl.zst", "zstd"}},
        {"Parquet", "a.parquet", "PAR1....", {"a.parquet", "Parquet", "JSONL"}},
        {"UTF-16",
         "a.txt",
         std::string("\xFF\xFE"
                     "a\0",
                     4),
         {"a.txt", "UTF-16"}},
        {"UTF-16 without a mark", "a.txt", std::string("a\0b\0", 4), {"a.txt:1: ", "NUL"}},
        {"bad UTF-8 in text",
         "a.txt",
         "one\ntwo\nthr\xE9"
         "e\n",
         {"a.txt:3: ", "0xe9"}},
        {"bad UTF-8 in a later document", "a.txt", "one\n<|endoftext|>\ntwo\n\xFF", {"a.txt:4: ", "0xff"}},
        {"cut UTF-8 at the end", "a.txt", "one\n\xE2\x82", {"a.txt:2: ", "0xe2"}},
        {"NUL inside a line", "a.txt", std::string("a\n\0\nb\nc\0d", 9), {"a.txt:4: ", "NUL"}},
        {"text over the cap", "a.txt", "0123456789", {"a.txt", "10 bytes", "at most 5"}, {.max_file_bytes = 5}},
    };
}

void check(const std::vector<Case>& cases) {
    for (const Case& c : cases) {
        SCOPED_TRACE(c.what);
        const ScratchDir dir;
        const fs::path path = dir.write(c.name, c.bytes);
        std::vector<std::string> says = c.says;
        says.push_back(path.string());
        expect_refused([&] { read_dataset(path, c.options); }, says);
    }
}

TEST(DatasetMalformed, Records) {
    check(bad_lines());
}
TEST(DatasetMalformed, Files) {
    check(bad_files());
}

TEST(DatasetMalformed, NoRegularFile) {
    const ScratchDir dir;
    ASSERT_EQ(::mkfifo((dir / "fifo.jsonl").c_str(), 0600), 0);
    expect_refused([&] { read_dataset(dir / "fifo.jsonl"); }, {"fifo.jsonl", "regular file"});
    expect_refused([&] { read_dataset(dir / "none.jsonl"); }, {"none.jsonl", "cannot be opened"});
    expect_refused([&] { read_dataset(dir.path()); }, {"regular file"});
}

TEST(Dataset, BadLinesAreSkippedAndCountedWhenAsked) {
    const ScratchDir dir;
    const std::string bytes = kGood + "\n{oops}\n" + std::string(300, 'x') + "\n" + kNoInput + "\n[]";
    const Dataset data = read_dataset(dir.write("a.jsonl", bytes), {.skip_bad_lines = 3, .max_line_bytes = 200});
    EXPECT_EQ(completions(data), (std::vector<std::string>{"3", "Hello"}));
    EXPECT_EQ(data.bad, 3);
    EXPECT_EQ(data.records, 5);
    const Dataset array =
        read_dataset(dir.write("a.json", "[" + kGood + ",7," + kNoInput + "]"), {.skip_bad_lines = 1});
    EXPECT_EQ(array.samples.size(), 2u);
    EXPECT_EQ(array.bad, 1);
    const Dataset text = read_dataset(dir.write("a.txt", "a<|endoftext|>\xFF<|endoftext|>b"), {.skip_bad_lines = 1});
    EXPECT_EQ(completions(text), (std::vector<std::string>{"a", "b"}));
}

TEST(Dataset, LongLinesCrossBlocks) {
    const ScratchDir dir;
    std::string bytes;
    std::vector<std::string> expected;
    for (const size_t length : {1u << 20, 1u, (1u << 21) + 5, (1u << 20) - 11, 7u}) {
        expected.push_back(std::string(length, static_cast<char>('a' + expected.size())));
        bytes += "{\"text\":\"" + expected.back() + "\"}\n";
    }
    EXPECT_EQ(completions(read_dataset(dir.write("a.jsonl", bytes))), expected);
    // A line of 65 MB is refused at the default cap, without being held.
    std::ofstream big(dir / "big.jsonl", std::ios::binary);
    big << kGood << "\n";
    for (int i = 0; i < 65; ++i) big << std::string(1 << 20, 'x');
    big.close();
    expect_refused([&] { read_dataset(dir / "big.jsonl"); }, {"big.jsonl:2", "67108864"});
}

TEST(Dataset, RealFiles) {
    const auto assets = lc::test::assets_dir();
    if (!assets) GTEST_SKIP() << lc::test::kNoAssets;
    const Dataset lines = read_dataset(*assets / "instruct/alpaca.jsonl");
    const Dataset array = read_dataset(*assets / "instruct/alpaca_1k.json");
    EXPECT_EQ(lines.samples.size(), 22643u);
    ASSERT_EQ(array.samples.size(), 1000u);
    for (size_t i = 0; i < 1000; ++i) {
        EXPECT_EQ(array.samples[i].prompt, lines.samples[i].prompt);
        EXPECT_EQ(array.samples[i].completion, lines.samples[i].completion);
    }
    EXPECT_EQ(read_dataset(*assets / "text/books_train.txt").samples.size(), 8u);
    EXPECT_EQ(read_dataset(*assets / "text/books_val.txt").samples.size(), 8u);
    EXPECT_EQ(read_dataset(*assets / "text/tinystories_2MiB.txt").samples.size(), 2317u);
    EXPECT_EQ(read_dataset(*assets / "text/tinyshakespeare.txt").samples.size(), 1u);
    expect_refused([&] { read_dataset(*assets / "text/books_fresh.txt.xz"); }, {"books_fresh.txt.xz", "xz -dk"});
}

}  // namespace
}  // namespace lc::io
