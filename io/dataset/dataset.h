// Text to train on, from the files people have. Tokenizing and packing are the business of train/.
//
//   alpaca       a JSON array, or JSONL, of {"instruction", "input", "output"}; no "input" means an empty one
//   completions  JSONL {"prompt", "completion"}
//   jsonl        JSONL {"text"}
//   text         a plain text file; documents are separated by a line that holds one NUL byte ("\n\0\n"), else by
//                <|endoftext|> (with the newline before and after it), else the file is one document
//
// JSONL: one object a line; blank lines are skipped, CRLF line ends are fine, other keys are ignored. All files are
// strict UTF-8; a byte order mark at the start is skipped. Compressed files are refused: decompress them first.
#pragma once
#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

namespace lc::io {

enum class DataFormat : uint8_t { automatic, alpaca, completions, jsonl, text };
std::string_view name_of(DataFormat format);         // "auto", "alpaca", ...
DataFormat data_format_from(std::string_view name);  // throws Usage for an unknown one

struct Sample {
    std::string prompt;      // not trained on; empty for plain text
    std::string completion;  // trained on
};

struct DatasetOptions {
    DataFormat format = DataFormat::automatic;
    int64_t skip_bad_lines = 0;  // this many bad records are skipped and counted; one more throws
    int64_t max_line_bytes = int64_t{64} << 20;
    int64_t max_file_bytes = int64_t{4} << 30;  // of a JSON array or a text file, which are read whole
};

// "stop" is 0, "skip:N" is N; anything else throws Usage.
int64_t bad_lines_from(std::string_view text);

struct Dataset {
    DataFormat format = DataFormat::text;
    std::vector<Sample> samples;  // in file order
    int64_t records = 0;          // seen: samples + bad + empty
    int64_t bad = 0;              // skipped, at most skip_bad_lines
    int64_t empty = 0;            // documents without any text, left out
};

struct DetectedFormat {
    DataFormat format;
    std::string reason;  // for people: "its first record has 'instruction' and 'output'"
};

// Decides from the first record (and, for text, the file's name). Throws BadInput: compressed or binary files, a first
// record of no known kind, an empty file.
DetectedFormat detect_format(const std::filesystem::path& path);

// Reads the whole file. Logs the decision when the format is automatic, and each of the bad records it skips.
// Throws BadInput as "file:line: reason" ("file: record 17: reason" in a JSON array), and when no sample is left.
Dataset read_dataset(const std::filesystem::path& path, const DatasetOptions& options = {});

}  // namespace lc::io
