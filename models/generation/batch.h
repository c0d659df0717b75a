// Many prompts from a file: JSON lines in, one result line each in the same order.
//
//   in   {"prompt": "...", "id": 7 or "x", and any override of request_json.h}
//   out  {"id": 7, "text": "...", "finish_reason": "stop", "prompt_tokens": 5, "new_tokens": 12, "key": "..."}
//   or   {"id": 7, "error": "...", "key": "..."}: a line that cannot be run, or failed while it ran
//
// Sampling options work where the temperature is above 0, by the line's own or the default. A line without an id has
// its line number. Its random numbers are keyed by its id (or number), so that neither batch size
// nor the order of lines changes a sample; a line with a "seed" of its own has those of a single prompt with that seed.
// "key" is a hash of all that the result depends on; a later run compares it before it goes on after such a line.
#pragma once
#include <filesystem>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "io/json.h"
#include "models/generation/engine.h"

namespace lc::models {

struct BatchLine {
    io::Json id;
    std::string prompt;
    GenerateOptions options;
    std::string key;
};

class BatchFile {
  public:
    // Reads and checks every line; blank ones are skipped. `identity` (of model and run) goes into the keys. Throws
    // BadInput "file:line: ..." for one that is no JSON object, has an unknown key or a wrong value, or repeats an id.
    BatchFile(const std::filesystem::path& path, GenerateOptions defaults, int64_t vocab_size, std::string identity);

    int64_t size() const { return std::ssize(lines_); }
    BatchLine line(int64_t index) const;
    // How many results of `results` (lines of an output file) stand. Throws BadInput, naming `source` and line, for one
    // that is not the result of the line in its place under these options.
    int64_t count_done(const std::vector<std::string>& results, const std::string& source) const;

  private:
    struct Place {
        size_t begin, length;
        int64_t number;
    };
    std::string source_of(const Place& place) const;

    std::filesystem::path path_;
    GenerateOptions defaults_;
    int64_t vocab_size_;
    std::string identity_, text_;
    std::vector<Place> lines_;
};

struct BatchProgress {
    int64_t done = 0, running = 0;
    int64_t failed = 0, non_finite = 0;  // lines that got an error; those of them whose logits were not finite
    int64_t tokens_read = 0, tokens_made = 0;
};

struct BatchHooks {
    std::function<void(std::string_view line)> write;         // a result, in order
    std::function<void(const BatchProgress&)> progress = {};  // after every step
    std::function<bool()> stop = {};  // asked before every step; what has no result then has none
};

// Runs the lines from `first` on. Returns how far it came: `file.size()` unless it was stopped.
int64_t run_batch(Engine& engine, const io::Tokenizer& tokenizer, const BatchFile& file, int64_t slots, int64_t first,
                  const BatchHooks& hooks);

}  // namespace lc::models
