#include "train/metrics.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <string>

#include "core/check.h"
#include "core/log.h"

namespace lc::train {

MetricsLog::MetricsLog(const std::filesystem::path& path, int64_t offset) : path_(path) {
    fd_ = ::open(path.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0666);
    LC_REQUIRE(Resource, fd_ >= 0, "{}: cannot be opened: {}", path.string(), std::strerror(errno));
    const off_t size = ::lseek(fd_, 0, SEEK_END);
    if (size < offset)
        log_warning("{}: has {} bytes, the checkpoint knew {}; some lines are lost", path.string(), int64_t{size},
                    offset);
    offset_ = std::min<int64_t>(size, offset);
    if (::ftruncate(fd_, offset_) != 0)
        log_warning("{}: cannot be cut to {} bytes: {}", path.string(), offset_, std::strerror(errno));
    ::lseek(fd_, offset_, SEEK_SET);
}

MetricsLog::~MetricsLog() {
    ::close(fd_);
}

void MetricsLog::write(const Record& record) {
    const std::string line = record.dump() + "\n";
    const ssize_t put = ::write(fd_, line.data(), line.size());
    if (put == static_cast<ssize_t>(line.size())) {
        offset_ += put;
        return;
    }
    const int reason = put < 0 ? errno : ENOSPC;
    // No half lines: a reader should not have to guess.
    if (::ftruncate(fd_, offset_) == 0) ::lseek(fd_, offset_, SEEK_SET);
    if (!warned_)
        log_warning("{}: cannot be written: {}; training goes on without it", path_.string(), std::strerror(reason));
    warned_ = true;
}

void MetricsLog::sync() {
    if (::fsync(fd_) != 0 && !warned_) log_warning("{}: cannot be synced: {}", path_.string(), std::strerror(errno));
}

Record without_timing(Record record) {
    for (const char* key : {"tokens_per_second", "ms", "timing", "memory"}) record.erase(key);
    return record;
}

}  // namespace lc::train
