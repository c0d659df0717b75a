// Checkpoints of a run: directories RUN/checkpoints/step-<stage>-XXXXXXXX that are there complete or not at all.
//
//   state.safetensors   parameters, moments, best parameters
//   state.json          step, data position, schedule, selection, results so far, metrics offset, config
//   manifest.json       size and XXH3-128 of both, config hash, model hash, and a hash of itself
//
// The newest one is found by scanning; there is no pointer that could go stale. Every byte is covered by a hash, so a
// flipped bit is found and the one before is used instead.
#pragma once
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "core/tensor.h"
#include "io/json.h"

namespace lc::train {

struct Checkpoint {
    std::string stage;
    int64_t step = 0;  // optimizer steps done in this stage
    std::string model_hash;
    std::vector<std::pair<std::string, Tensor>> tensors;
    io::Json state;

    const Tensor& tensor(const std::string& name) const;  // throws Error(Checkpoint) when there is none
};

// Reads and verifies one checkpoint directory. Throws Error(Checkpoint) naming the file that is missing, cut or
// changed.
Checkpoint read_checkpoint(const std::filesystem::path& directory);

class CheckpointStore {
  public:
    // `stages` in the order in which a run goes through them. Creates the directory.
    CheckpointStore(std::filesystem::path directory, std::vector<std::string> stages, int64_t keep);

    struct Entry {
        std::filesystem::path path;
        std::string stage;
        int64_t step = 0;
    };
    std::vector<Entry> list() const;  // newest first, complete or damaged

    // The newest checkpoint that verifies; a damaged newer one is warned of. nullopt when there are none at all; throws
    // Error(Checkpoint), naming the file, when there are some but none verifies.
    std::optional<std::pair<Entry, Checkpoint>> newest() const;

    // Commits a checkpoint, then removes old ones: all but the last `keep` and the one of step `best_step` of this
    // stage. A verified one that is already there under this name is left as it is: a run is deterministic, it would be
    // the same.
    void save(const Checkpoint& checkpoint, int64_t best_step);
    // Removes what is newer than `entry`: the run continues from there and history is written anew.
    void discard_after(const Entry& entry);

  private:
    std::filesystem::path path_of(const std::string& stage, int64_t step) const;
    void remove(const std::filesystem::path& path) const;
    void purge(const Checkpoint& latest, int64_t best_step) const;

    std::filesystem::path directory_;
    std::vector<std::string> stages_;
    int64_t keep_;
};

// Holds a run directory for this process; a second one is refused, as Error(Checkpoint). Ends with the object or with
// the process, however it ends.
class RunLock {
  public:
    explicit RunLock(const std::filesystem::path& run);
    ~RunLock();
    RunLock(const RunLock&) = delete;
    RunLock& operator=(const RunLock&) = delete;

  private:
    int fd_ = -1;
};

}  // namespace lc::train
