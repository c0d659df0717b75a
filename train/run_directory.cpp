#include "train/run_directory.h"

#include <algorithm>

#include "core/log.h"
#include "io/file.h"

namespace lc::train {

namespace fs = std::filesystem;

void require_same_config(const io::Json& now, const io::Json& then, const std::vector<std::string>& allow_change,
                         const std::string& source) {
    for (const std::string& key : allow_change)
        LC_REQUIRE(Usage, now.contains(key), "--allow-config-change {}: no such key; a resumed run is held to: {}", key,
                   fmt::join(
                       [&] {
                           std::vector<std::string> keys;
                           for (const auto& [name, value] : now.items()) keys.push_back(name);
                           return keys;
                       }(),
                       ", "));
    io::Json all = then;
    all.update(now);
    for (const auto& [key, value] : all.items()) {
        if (std::ranges::find(allow_change, key) != allow_change.end()) continue;
        const io::Json before = then.value(key, io::Json()), after = now.value(key, io::Json());
        LC_REQUIRE(Checkpoint, before == after,
                   "{}: '{}' was {} and is {} now — repeat the old value, start in another directory, or pass "
                   "--allow-config-change {}",
                   source, key, before.dump(), after.dump(), key);
    }
}

RunDirectory::RunDirectory(fs::path path, std::vector<std::string> stages, int64_t keep, const ResumeOptions& resume)
    : path_(std::move(path)), resume_(resume) {
    std::error_code error;
    fs::create_directories(path_, error);
    LC_REQUIRE(Resource, fs::is_directory(path_), "{}: cannot be created: {}", path_.string(), error.message());
    lock_ = std::make_unique<RunLock>(path_);
    checkpoints_.emplace(path_ / "checkpoints", std::move(stages), keep);
    const bool resuming = resume.automatic || !resume.from.empty();
    LC_REQUIRE(Usage, resuming || (checkpoints_->list().empty() && !fs::exists(path_ / "summary.json")),
               "{}: holds a run already; continue it with --resume auto, or choose another --out", path_.string());
    if (!resume.from.empty()) {
        resumed_ = read_checkpoint(resume.from);
        resumed_source_ = resume.from.string();
        for (const CheckpointStore::Entry& entry : checkpoints_->list()) {
            if (!fs::equivalent(entry.path, resume.from, error)) continue;
            checkpoints_->discard_after(entry);  // history is written anew from here
            metrics_continue_ = true;
            break;
        }
        LC_REQUIRE(Usage, metrics_continue_ || checkpoints_->list().empty(),
                   "{}: holds checkpoints of another run than {}; choose another --out", path_.string(),
                   resumed_source_);
    } else if (resume.automatic) {
        if (auto found = checkpoints_->newest()) {
            resumed_source_ = found->first.path.string();
            resumed_ = std::move(found->second);
            metrics_continue_ = true;
        }
        log_info("{}", resumed_ ? "resuming from " + resumed_source_ : "no checkpoint yet: a fresh start");
    }
}

void RunDirectory::begin(RunContext& context, const io::Json& config, const std::string& model_hash,
                         const std::string& config_text) {
    int64_t offset = 0;
    if (resumed_) {
        const io::JsonObject state(resumed_->state, resumed_source_);
        require_same_config(config, state.get_object("config").json(), resume_.allow_change, resumed_source_);
        context.results = state.get_object("results").json();
        context.seconds = state.get_double("seconds", 0, 1e12);
        if (metrics_continue_) offset = state.get_int("metrics_offset", 0, std::numeric_limits<int64_t>::max());
    }
    io::write_file_atomic(path_ / "config.toml", config_text);
    metrics_ = std::make_unique<MetricsLog>(path_ / "metrics.jsonl", offset);
    context.checkpoints = &*checkpoints_;
    context.metrics = metrics_.get();
    context.config = config;
    context.model_hash = model_hash;
}

void RunDirectory::write_summary(const Record& summary) const {
    io::write_file_atomic(path_ / "summary.json", summary.dump(2) + "\n");
}

}  // namespace lc::train
