#include "io/line_file.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "core/check.h"

namespace lc::io {
namespace {

[[noreturn]] void fail_on(const std::filesystem::path& path, const char* step) {
    fail(ErrorKind::Resource, "{}: cannot be {}: {}", path.string(), step, std::strerror(errno));
}

}  // namespace

LineFile::LineFile(const std::filesystem::path& path, int64_t max_bytes) : path_(path) {
    fd_ = ::open(path.c_str(), O_RDWR | O_CREAT | O_APPEND | O_CLOEXEC | O_NONBLOCK, 0666);
    if (fd_ < 0) fail_on(path_, "opened");
    try {
        struct stat info {};
        if (::fstat(fd_, &info) != 0) fail_on(path_, "examined");
        LC_REQUIRE(BadInput, S_ISREG(info.st_mode), "{}: is no regular file", path.string());
        LC_REQUIRE(BadInput, info.st_size <= max_bytes, "{}: has {} bytes, more than {}", path.string(), info.st_size,
                   max_bytes);
        LC_REQUIRE(Usage, ::flock(fd_, LOCK_EX | LOCK_NB) == 0, "{}: another process writes to it", path.string());
        read_lines(info.st_size);
    } catch (...) {
        ::close(fd_);
        throw;
    }
}

LineFile::~LineFile() {
    ::close(fd_);
}

void LineFile::read_lines(int64_t size) {
    std::string text(static_cast<size_t>(size), '\0');
    for (size_t got = 0; got < text.size();) {
        const ssize_t part = ::pread(fd_, text.data() + got, text.size() - got, static_cast<off_t>(got));
        if (part < 0 && errno == EINTR) continue;
        if (part <= 0) fail_on(path_, "read");
        got += static_cast<size_t>(part);
    }
    size_t start = 0;
    for (size_t end; (end = text.find('\n', start)) != std::string::npos; start = end + 1)
        lines_.push_back(text.substr(start, end - start));
    size_ = static_cast<int64_t>(start);
    if (start < text.size() && ::ftruncate(fd_, size_) != 0) fail_on(path_, "cut to whole lines");
}

void LineFile::append(std::string_view line) {
    LC_CHECK(line.find('\n') == std::string_view::npos, "{}: a line with a line end in it", path_.string());
    const std::string whole = std::string(line) + '\n';
    for (size_t put = 0; put < whole.size();) {
        const ssize_t part = ::write(fd_, whole.data() + put, whole.size() - put);
        if (part < 0 && errno == EINTR) continue;
        if (part < 0) {
            const int reason = errno;
            if (::ftruncate(fd_, size_) != 0) errno = reason;  // the next start cuts it
            errno = reason;
            fail_on(path_, "written");
        }
        put += static_cast<size_t>(part);
    }
    size_ += std::ssize(whole);
}

void LineFile::sync() {
    if (::fsync(fd_) != 0) fail_on(path_, "synced to disk");
}

}  // namespace lc::io
