// The directory of a run: who may write to it, where it continues, and what it holds in the end.
//
//   config.toml  metrics.jsonl  checkpoints/  summary.json  and the results of the run (models/run.h)
#pragma once
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "train/checkpoint.h"
#include "train/loop.h"
#include "train/metrics.h"

namespace lc::train {

struct ResumeOptions {
    bool automatic = false;      // the newest checkpoint of the run directory; a fresh start when there is none
    std::filesystem::path from;  // this checkpoint; empty: see `automatic`
    std::vector<std::string> allow_change;  // keys of the configuration that may differ from the checkpoint's
};

// `now` against `then`, key by key. Throws Error(Checkpoint) naming the first key that differs and is not allowed to, and
// Error(Usage) for an allowed key that does not exist.
void require_same_config(const io::Json& now, const io::Json& then, const std::vector<std::string>& allow_change,
                         const std::string& source);

class RunDirectory {
  public:
    // Creates it, takes its lock, and refuses (Usage) one that holds a run already unless that is to be resumed.
    RunDirectory(std::filesystem::path path, std::vector<std::string> stages, int64_t keep,
                 const ResumeOptions& resume);

    const std::filesystem::path& path() const { return path_; }
    // What to continue from; nullopt: nothing, start afresh.
    const std::optional<Checkpoint>& resumed() const { return resumed_; }
    const std::string& resumed_source() const { return resumed_source_; }

    // Writes config.toml, opens the metrics where they continue, and fills the context with all of it and with what the
    // checkpoint knows. Throws as require_same_config does.
    void begin(RunContext& context, const io::Json& config, const std::string& model_hash,
               const std::string& config_text);
    void write_summary(const Record& summary) const;

  private:
    std::filesystem::path path_;
    ResumeOptions resume_;
    std::unique_ptr<RunLock> lock_;
    std::optional<CheckpointStore> checkpoints_;
    std::unique_ptr<MetricsLog> metrics_;
    std::optional<Checkpoint> resumed_;
    std::string resumed_source_;
    bool metrics_continue_ = false;
};

}  // namespace lc::train
