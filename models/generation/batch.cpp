#include "models/generation/batch.h"

#include <charconv>
#include <map>
#include <unordered_map>

#include "core/check.h"
#include "io/file.h"
#include "models/generation/request_json.h"

namespace lc::models {
namespace {

constexpr int64_t kMaxFileBytes = int64_t{8} << 30;
// Results wait for those before them; this many per slot may.
constexpr int64_t kAhead = 64;

// 64 bits of the hash of a line's name.
uint64_t request_of(const io::Json& id) {
    const std::string hex = io::xxh3_128_hex(id.dump());
    uint64_t value = 0;
    std::from_chars(hex.data(), hex.data() + 16, value, 16);
    return value;
}

std::string result_line(const BatchLine& line, const Generation& result, int64_t prompt_tokens) {
    return nlohmann::ordered_json{{"id", line.id},
                                  {"text", result.text},
                                  {"finish_reason", result.finish_reason},
                                  {"prompt_tokens", prompt_tokens},
                                  {"new_tokens", result.ids.size()},
                                  {"key", line.key}}
        .dump();
}

std::string error_line(const BatchLine& line, const std::string& error) {
    return nlohmann::ordered_json{{"id", line.id}, {"error", error}, {"key", line.key}}.dump();
}

}  // namespace

BatchFile::BatchFile(const std::filesystem::path& path, GenerateOptions defaults, int64_t vocab_size,
                     std::string identity)
    : path_(path),
      defaults_(std::move(defaults)),
      vocab_size_(vocab_size),
      identity_(std::move(identity)),
      text_(io::read_file(path, kMaxFileBytes)) {
    std::unordered_map<std::string, int64_t> number_of;  // id -> line
    const size_t start = text_.starts_with("\xEF\xBB\xBF") ? 3 : 0;
    int64_t number = 0;
    for (size_t begin = start, end; begin < text_.size(); begin = end + 1) {
        end = std::min(text_.find('\n', begin), text_.size());
        ++number;
        const std::string_view line = std::string_view(text_).substr(begin, end - begin);
        if (line.find_first_not_of(" \t\r") == std::string_view::npos) continue;
        lines_.push_back({begin, end - begin, number});
        const std::string id = this->line(size() - 1).id.dump();
        const auto [earlier, fresh] = number_of.try_emplace(id, number);
        LC_REQUIRE(BadInput, fresh, "{}: id {} is also that of line {}", source_of(lines_.back()), id, earlier->second);
    }
    LC_REQUIRE(BadInput, !lines_.empty(), "{}: holds no prompt", path.string());
}

std::string BatchFile::source_of(const Place& place) const {
    return fmt::format("{}:{}", path_.string(), place.number);
}

BatchLine BatchFile::line(int64_t index) const {
    const Place& place = lines_.at(static_cast<size_t>(index));
    const std::string source = source_of(place);
    const io::Json json = io::parse_json(std::string_view(text_).substr(place.begin, place.length), source);
    const io::JsonObject object(json, source);
    for (const auto& [key, value] : json.items())
        if (key != "prompt" && key != "id" && !is_override(key))
            object.fail_key(key, "absent, as it means nothing here");
    BatchLine line{.id = place.number, .prompt = object.get_string("prompt"), .options = defaults_, .key = {}};
    if (object.has("id")) {
        line.id = object.get("id");
        if (!line.id.is_string() && !io::as_int(line.id)) object.fail_key("id", "a string or an integer");
    }
    apply_overrides(object, vocab_size_, line.options);
    line.options.sampling.request = object.has("seed") ? 0 : request_of(line.id);
    line.key = io::xxh3_128_hex(io::Json{line.id, line.prompt, to_json(line.options), identity_}.dump());
    return line;
}

int64_t BatchFile::count_done(const std::vector<std::string>& results, const std::string& source) const {
    LC_REQUIRE(BadInput, std::ssize(results) <= size(), "{}: has {} results, {} has {} prompts", source, results.size(),
               path_.string(), size());
    for (size_t i = 0; i < results.size(); ++i) {
        const std::string where = fmt::format("{}:{}", source, i + 1);
        const io::Json json = io::parse_json(results[i], where);
        LC_REQUIRE(BadInput, io::JsonObject(json, where).get_string("key") == line(static_cast<int64_t>(i)).key,
                   "{}: is not the result of {} with this model and these options — start anew with another file",
                   where, source_of(lines_[i]));
    }
    return std::ssize(results);
}

int64_t run_batch(Engine& engine, const io::Tokenizer& tokenizer, const BatchFile& file, int64_t slots, int64_t first,
                  const BatchHooks& hooks) {
    struct Pending {
        int64_t index, prompt_tokens;
        BatchLine line;
    };
    std::unordered_map<int64_t, Pending> pending;  // by the engine's id
    std::map<int64_t, std::string> ready;          // by index
    BatchProgress progress{.done = first};
    int64_t next = first;
    const auto submit = [&](int64_t index) {
        BatchLine line = file.line(index);
        try {
            std::vector<int32_t> prompt = tokenizer.encode(line.prompt, true);
            const auto tokens = std::ssize(prompt);
            const int64_t id = engine.submit({.prompt = std::move(prompt), .options = line.options});
            pending.emplace(id, Pending{index, tokens, std::move(line)});
        } catch (const Error& error) {
            if (error.kind() != ErrorKind::Usage) throw;
            ready[index] = error_line(line, error.what());
            ++progress.failed;
        }
    };
    while (progress.done < file.size() && !(hooks.stop && hooks.stop())) {
        while (next < file.size() && engine.waiting() < slots && next - progress.done < kAhead * slots) submit(next++);
        engine.step();
        for (const Finished& finished : engine.take_finished()) {
            const Pending& of = pending.at(finished.id);
            const bool failed = !finished.error.empty();
            ready[of.index] =
                failed ? error_line(of.line, finished.error) : result_line(of.line, finished.result, of.prompt_tokens);
            progress.failed += failed;
            progress.non_finite += failed && finished.kind == ErrorKind::Numerics;
            pending.erase(finished.id);
        }
        for (; !ready.empty() && ready.begin()->first == progress.done; ready.erase(ready.begin()), ++progress.done)
            hooks.write(ready.begin()->second);
        progress.running = engine.running();
        progress.tokens_read = engine.tokens_read(), progress.tokens_made = engine.tokens_made();
        if (hooks.progress) hooks.progress(progress);
    }
    return progress.done;
}

}  // namespace lc::models
