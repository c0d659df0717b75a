// Which kind of data file this is.
#include <array>

#include "core/check.h"
#include "io/dataset/dataset.h"
#include "io/dataset/line_reader.h"
#include "io/dataset/records.h"
#include "io/json.h"
#include "io/text.h"

namespace lc::io {
namespace {

struct Magic {
    std::string_view bytes;
    const char* what;
};
constexpr std::array<Magic, 8> kForeign = {{
    {"\xFD"
     "7zXZ",
     "xz: decompress it first (xz -dk)"},
    {"\x1F\x8B", "gzip: decompress it first (gzip -dk)"},
    {"\x28\xB5\x2F\xFD", "zstd: decompress it first (zstd -d)"},
    {"BZh91AY", "bzip2: decompress it first (bzip2 -dk)"},
    {"PK\x03\x04", "zip: unpack it first"},
    {"PAR1", "Parquet, which is not read: convert it to JSONL"},
    {"ARROW1", "Arrow, which is not read: convert it to JSONL"},
    {"\xFF\xFE", "UTF-16: convert it to UTF-8"},
}};

constexpr std::string_view kSpace = " \t\r\n";

DetectedFormat kind_of(const Json& record, const std::string& source) {
    LC_REQUIRE(BadInput, record.is_object(), "{}: a record must be a JSON object, got {}", source, describe(record));
    if (record.contains("instruction") && record.contains("output"))
        return {DataFormat::alpaca, "its first record has 'instruction' and 'output'"};
    if (record.contains("prompt") && record.contains("completion"))
        return {DataFormat::completions, "its first record has 'prompt' and 'completion'"};
    if (record.contains("text")) return {DataFormat::jsonl, "its first record has 'text'"};
    for (const char* key : {"messages", "conversations"})
        LC_REQUIRE(BadInput, !record.contains(key), "{}: chat records ('{}') are not supported", source, key);
    fail(ErrorKind::BadInput,
         "{}: a record must have 'text', or 'instruction' and 'output', or 'prompt' and 'completion'", source);
}

}  // namespace

std::string_view without_byte_order_mark(std::string_view text) {
    return text.starts_with(kByteOrderMark) ? text.substr(kByteOrderMark.size()) : text;
}

void refuse_foreign_files(const InputFile& file) {
    std::string head(static_cast<size_t>(std::min<int64_t>(file.size(), 8)), '\0');
    file.read_at(0, std::as_writable_bytes(std::span(head)));
    for (const Magic& magic : kForeign)
        LC_REQUIRE(BadInput, !head.starts_with(magic.bytes), "{}: is {}", file.path().string(), magic.what);
}

bool begins_with_bracket(const InputFile& file) {
    LineReader lines(file, DatasetOptions{}.max_line_bytes);
    std::string line;
    while (lines.next(line)) {
        const size_t first = line.find_first_not_of(kSpace);
        if (first != std::string::npos) return line[first] == '[';
    }
    return false;
}

DetectedFormat detect_format(const std::filesystem::path& path) {
    const InputFile file(path);
    refuse_foreign_files(file);
    const std::string extension = path.extension().string();
    if (extension == ".txt" || extension == ".md") return {DataFormat::text, "its name ends in " + extension};
    LineReader lines(file, DatasetOptions{}.max_line_bytes);
    std::string line;
    size_t first = std::string::npos;
    while (first == std::string::npos && lines.next(line)) {
        LC_REQUIRE(BadInput, !lines.too_long(), "{}:{}: line is longer than {} bytes", path.string(), lines.number(),
                   DatasetOptions{}.max_line_bytes);
        first = line.find_first_not_of(kSpace);
    }
    LC_REQUIRE(BadInput, first != std::string::npos, "{}: holds no samples", path.string());
    const bool json_name = extension == ".json" || extension == ".jsonl" || extension == ".ndjson";
    // Only alpaca comes as an array; that its records are so is found when they are read.
    if (line[first] == '[' && json_name) return {DataFormat::alpaca, "it is a JSON array"};
    if (line[first] == '{' || json_name) {
        const std::string source = fmt::format("{}:{}", path.string(), lines.number());
        return kind_of(parse_json(line, source, {.max_bytes = std::ssize(line)}), source);
    }
    return {DataFormat::text, "it does not look like JSON"};
}

}  // namespace lc::io
