#include "io/dataset/dataset.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <utility>

#include "core/check.h"
#include "core/log.h"
#include "io/dataset/alpaca.h"
#include "io/dataset/line_reader.h"
#include "io/dataset/records.h"
#include "io/json.h"
#include "io/text.h"

namespace lc::io {
namespace {

constexpr std::array<std::pair<DataFormat, std::string_view>, 5> kNames = {{
    {DataFormat::automatic, "auto"},
    {DataFormat::alpaca, "alpaca"},
    {DataFormat::completions, "completions"},
    {DataFormat::jsonl, "jsonl"},
    {DataFormat::text, "text"},
}};

constexpr std::string_view kNulSeparator("\n\0\n", 3);
constexpr std::string_view kEndOfText = "<|endoftext|>";

Sample sample_of(const Json& record, DataFormat format, const std::string& source) {
    const JsonObject json(record, source);
    switch (format) {
        case DataFormat::alpaca: {
            const AlpacaRecord alpaca{json.get_string("instruction"), json.find_string("input").value_or(""),
                                      json.get_string("output")};
            return {alpaca_prompt(alpaca), alpaca.output};
        }
        case DataFormat::completions:
            return {json.get_string("prompt"), json.get_string("completion")};
        case DataFormat::jsonl:
            return {"", json.get_string("text")};
        case DataFormat::automatic:
        case DataFormat::text:
            break;
    }
    fail(ErrorKind::Internal, "records are not of format {}", name_of(format));
}

// Collects samples, and keeps the account of what is skipped.
class Collector {
  public:
    Collector(DataFormat format, const DatasetOptions& options) : options_(options) { result_.format = format; }

    // Runs `make` (which throws BadInput for a bad record) and keeps its sample.
    template <class Make>
    void add(Make&& make) {
        ++result_.records;
        try {
            Sample sample = make();
            if (sample.prompt.empty() && sample.completion.empty())
                ++result_.empty;
            else
                result_.samples.push_back(std::move(sample));
        } catch (const Error& error) {
            if (error.kind() != ErrorKind::BadInput || options_.skip_bad_lines == 0) throw;
            LC_REQUIRE(BadInput, result_.bad < options_.skip_bad_lines, "{} (and {} bad records before it)",
                       error.what(), result_.bad);
            ++result_.bad;
            log_warning("{}; skipped", error.what());
        }
    }
    Dataset take() { return std::move(result_); }

  private:
    const DatasetOptions& options_;
    Dataset result_;
};

void read_lines(const InputFile& file, DataFormat format, const DatasetOptions& options, Collector& collector) {
    LineReader lines(file, options.max_line_bytes);
    std::string line;
    while (lines.next(line)) {
        if (!lines.too_long() && line.find_first_not_of(" \t\r") == std::string::npos) continue;
        const std::string source = fmt::format("{}:{}", file.path().string(), lines.number());
        collector.add([&] {
            LC_REQUIRE(BadInput, !lines.too_long(), "{}: line is longer than {} bytes", source, options.max_line_bytes);
            return sample_of(parse_json(line, source, {.max_bytes = options.max_line_bytes}), format, source);
        });
    }
}

void read_array(const InputFile& file, DataFormat format, const DatasetOptions& options, Collector& collector) {
    const std::string source = file.path().string(), text = read_all(file, options.max_file_bytes);
    parse_json_array(without_byte_order_mark(text), source,
                     [&](Json&& record, int64_t index) {
                         const std::string where = fmt::format("{}: record {}", source, index + 1);
                         collector.add([&] { return sample_of(record, format, where); });
                     },
                     {.max_bytes = options.max_file_bytes});
}

void check_document(std::string_view document, int64_t line, const std::string& source) {
    const auto line_of = [&](size_t offset) { return line + std::ranges::count(document.substr(0, offset), '\n'); };
    if (const auto bad = first_invalid_utf8(document))
        fail(ErrorKind::BadInput, "{}:{}: not UTF-8: byte 0x{:02x}", source, line_of(*bad),
             static_cast<unsigned char>(document[*bad]));
    // Legal UTF-8, but in a text it means binary data, UTF-16, or a separator gone wrong.
    if (const size_t nul = document.find('\0'); nul != std::string_view::npos)
        fail(ErrorKind::BadInput, "{}:{}: a NUL byte that is not alone on its line", source, line_of(nul));
}

void read_text(const InputFile& file, const DatasetOptions& options, Collector& collector) {
    const std::string bytes = read_all(file, options.max_file_bytes), source = file.path().string();
    std::string_view rest = without_byte_order_mark(bytes);
    const bool by_nul = rest.find(kNulSeparator) != std::string_view::npos;
    const std::string_view separator = by_nul ? kNulSeparator : kEndOfText;
    int64_t line = 1;
    for (bool last = false; !last;) {
        const size_t end = rest.find(separator);
        last = end == std::string_view::npos;
        std::string_view document = rest.substr(0, end);
        const std::string_view taken = last ? rest : rest.substr(0, end + separator.size());
        const int64_t first_line = line;
        line += std::ranges::count(taken, '\n');
        rest.remove_prefix(taken.size());
        if (!by_nul && !last) {  // the newlines that set the marker off belong to it
            if (document.ends_with('\n')) document.remove_suffix(1);
            if (rest.starts_with('\n')) rest.remove_prefix(1), ++line;
        }
        if (last && document.empty()) break;  // the file ends with a separator, or is empty
        collector.add([&] {
            check_document(document, first_line, source);
            return Sample{"", std::string(document)};
        });
    }
}

}  // namespace

std::string_view name_of(DataFormat format) {
    return std::ranges::find(kNames, format, [](const auto& entry) { return entry.first; })->second;
}

DataFormat data_format_from(std::string_view name) {
    const auto found = std::ranges::find(kNames, name, [](const auto& entry) { return entry.second; });
    LC_REQUIRE(Usage, found != kNames.end(),
               "unknown data format '{}': must be auto, alpaca, completions, jsonl or text", printable(name));
    return found->first;
}

int64_t bad_lines_from(std::string_view text) {
    if (text == "stop") return 0;
    int64_t count = -1;
    if (text.starts_with("skip:")) {
        const std::string_view digits = text.substr(5);
        const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), count);
        if (error != std::errc() || end != digits.data() + digits.size()) count = -1;
    }
    LC_REQUIRE(Usage, count >= 0, "bad lines: must be 'stop' or 'skip:N', got '{}'", printable(text));
    return count;
}

Dataset read_dataset(const std::filesystem::path& path, const DatasetOptions& options) {
    DataFormat format = options.format;
    if (format == DataFormat::automatic) {
        const DetectedFormat detected = detect_format(path);
        format = detected.format;
        log_info("{}: read as {}: {}", path.string(), name_of(format), detected.reason);
    }
    const InputFile file(path);
    refuse_foreign_files(file);
    Collector collector(format, options);
    if (format == DataFormat::text)
        read_text(file, options, collector);
    else if (format == DataFormat::alpaca && begins_with_bracket(file))
        read_array(file, format, options, collector);
    else
        read_lines(file, format, options, collector);
    file.check_unchanged();
    Dataset dataset = collector.take();
    LC_REQUIRE(BadInput, !dataset.samples.empty(), "{}: holds no samples ({} bad, {} empty)", path.string(),
               dataset.bad, dataset.empty);
    if (dataset.bad > 0)
        log_warning("{}: {} of {} records were bad and skipped", path.string(), dataset.bad, dataset.records);
    return dataset;
}

}  // namespace lc::io
