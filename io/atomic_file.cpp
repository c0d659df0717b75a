// The writing half of io/file.h.
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <utility>

#include "core/check.h"
#include "core/log.h"
#include "io/file.h"

namespace lc::io {
namespace {

namespace fs = std::filesystem;

constexpr size_t kLargestTransfer = size_t{1} << 30;  // Linux moves at most 2 GiB - 4 KiB a call

fs::path parent_of(const fs::path& path) {
    return path.has_parent_path() ? path.parent_path() : fs::path(".");
}

// The user knows the target, not our temporary: messages name the former.
[[noreturn]] void fail_writing(const fs::path& target, const char* step, int reason) {
    struct statvfs space {};
    const bool disk = reason == ENOSPC || reason == EDQUOT;
    if (disk && ::statvfs(parent_of(target).c_str(), &space) == 0)
        fail(ErrorKind::Resource, "{}: cannot be {}: {} ({} bytes free there)", target.string(), step,
             std::strerror(reason), uint64_t{space.f_bavail} * space.f_frsize);
    fail(ErrorKind::Resource, "{}: cannot be {}: {}", target.string(), step, std::strerror(reason));
}

// A name that no other writer, in this process or another on this machine, uses now.
fs::path temporary_for(const fs::path& target) {
    static std::atomic<uint64_t> counter{0};
    return parent_of(target) /
           fmt::format("{}{}-{}-{}", kTemporaryPrefix, target.filename().string(), ::getpid(), counter.fetch_add(1));
}

void sync_path(const fs::path& path, const fs::path& target) {
    const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
    if (fd < 0) fail_writing(target, "opened to sync it", errno);
    // Some network file systems do not sync directories and say so with EINVAL: nothing more can be done there.
    const int result = ::fsync(fd), reason = errno;
    ::close(fd);
    if (result != 0 && reason != EINVAL) fail_writing(target, "synced to disk", reason);
}

// rename that never replaces. The flag is not known to every file system; the check before it serves those.
void rename_new(const fs::path& from, const fs::path& to) {
    if (::renameat2(AT_FDCWD, from.c_str(), AT_FDCWD, to.c_str(), RENAME_NOREPLACE) == 0) return;
    if (errno == EINVAL || errno == ENOSYS) {
        std::error_code ignored;
        LC_REQUIRE(Usage, !fs::exists(fs::symlink_status(to, ignored)), "{}: already exists", to.string());
        if (::rename(from.c_str(), to.c_str()) == 0) return;
    }
    LC_REQUIRE(Usage, errno != EEXIST && errno != ENOTEMPTY, "{}: already exists", to.string());
    fail_writing(to, "renamed into place", errno);
}

}  // namespace

AtomicFile::AtomicFile(const fs::path& target) : target_(target), temporary_(temporary_for(target)) {
    LC_REQUIRE(Usage, target.has_filename(), "'{}' names no file", target.string());
    fd_ = ::open(temporary_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    if (fd_ < 0) fail_writing(target_, "created", errno);
}

AtomicFile::~AtomicFile() {
    if (fd_ >= 0) ::close(fd_);
    if (!temporary_.empty()) ::unlink(temporary_.c_str());
}

void AtomicFile::write(std::span<const std::byte> bytes) {
    LC_CHECK(fd_ >= 0, "{}: written after commit", target_.string());
    while (!bytes.empty()) {
        const ssize_t put = ::write(fd_, bytes.data(), std::min(bytes.size(), kLargestTransfer));
        if (put < 0 && errno == EINTR) continue;
        if (put < 0) fail_writing(target_, "written", errno);
        bytes = bytes.subspan(static_cast<size_t>(put));
    }
}

void AtomicFile::commit() {
    LC_CHECK(fd_ >= 0, "{}: committed twice", target_.string());
    if (::fsync(fd_) != 0) fail_writing(target_, "synced to disk", errno);
    // close reports errors of delayed writes on network file systems.
    if (::close(std::exchange(fd_, -1)) != 0) fail_writing(target_, "closed", errno);
    if (::rename(temporary_.c_str(), target_.c_str()) != 0) fail_writing(target_, "renamed into place", errno);
    temporary_.clear();
    sync_path(parent_of(target_), target_);
}

void write_file_atomic(const fs::path& path, std::string_view bytes) {
    AtomicFile file(path);
    file.write(bytes);
    file.commit();
}

AtomicDirectory::AtomicDirectory(const fs::path& target)
    // "runs/one/" and "runs/one" name the same directory
    : target_(target.has_filename() ? target : target.parent_path()), temporary_(temporary_for(target_)) {
    LC_REQUIRE(Usage, target_.has_filename(), "'{}' names no directory", target.string());
    std::error_code ignored;
    LC_REQUIRE(Usage, !fs::exists(fs::symlink_status(target_, ignored)), "{}: already exists", target_.string());
    if (::mkdir(temporary_.c_str(), 0777) != 0) fail_writing(target_, "created", errno);
}

AtomicDirectory::~AtomicDirectory() {
    if (committed_) return;
    std::error_code error;
    fs::remove_all(temporary_, error);
    if (error) log_warning("{}: left behind: {}", temporary_.string(), error.message());
}

void AtomicDirectory::commit() {
    LC_CHECK(!committed_, "{}: committed twice", target_.string());
    std::error_code error;
    for (fs::recursive_directory_iterator entry(temporary_, error), end; !error && entry != end; entry.increment(error))
        if (entry->is_regular_file() || entry->is_directory()) sync_path(entry->path(), target_);
    if (error) fail_writing(target_, "listed", error.value());
    sync_path(temporary_, target_);
    rename_new(temporary_, target_);
    committed_ = true;
    sync_path(parent_of(target_), target_);
}

}  // namespace lc::io
