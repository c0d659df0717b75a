// metrics.jsonl: one JSON object a line, a step or an evaluation each. Fields appear in the order they were added; all
// that depends on the clock lies under "tokens_per_second" and "ms", so that two runs can be compared without them.
#pragma once
#include <cstdint>
#include <filesystem>
#include <nlohmann/json.hpp>

namespace lc::train {

using Record = nlohmann::ordered_json;

class MetricsLog {
  public:
    // Continues a file at byte `offset`: what a killed process wrote beyond it is cut off. 0 begins anew.
    MetricsLog(const std::filesystem::path& path, int64_t offset);
    ~MetricsLog();
    MetricsLog(const MetricsLog&) = delete;
    MetricsLog& operator=(const MetricsLog&) = delete;

    // A full disk does not stop training: it is said once, and the lines that do not fit are lost.
    void write(const Record& record);
    int64_t offset() const { return offset_; }  // bytes of whole lines
    void sync();                                // before a checkpoint refers to offset()

  private:
    std::filesystem::path path_;
    int fd_ = -1;
    int64_t offset_ = 0;
    bool warned_ = false;
};

// The record without what depends on the clock.
Record without_timing(Record record);

}  // namespace lc::train
