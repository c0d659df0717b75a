// What fuzz targets share: files in memory, scratch directories, and what counts as an answer.
#pragma once
#include <sys/mman.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <initializer_list>
#include <string>
#include <string_view>

#include "core/check.h"
#include "io/text.h"

namespace lc::fuzz {

[[noreturn]] inline void finding(const char* what, const std::string& detail) {
    std::fprintf(stderr, "finding: %s: %s\n", what, detail.c_str());
    std::abort();
}

inline void require(bool holds, const char* what, const std::string& detail = {}) {
    if (!holds) finding(what, detail);
}

// Runs `action`. An lc::Error of one of the kinds is an answer, if it is one short line of UTF-8; another one is a finding, and so
// is any other exception, which nothing catches.
template <class Action>
void answer(Action&& action, std::initializer_list<ErrorKind> kinds = {ErrorKind::BadInput}) {
    try {
        action();
    } catch (const Error& error) {
        const std::string message = error.what();
        bool expected = false;
        for (const ErrorKind kind : kinds) expected |= error.kind() == kind;
        require(expected, "an error of another kind", message);
        require(message.find('\n') == std::string::npos && message.size() < 2000, "a message of several lines",
                message);
        require(!io::first_invalid_utf8(message), "a message that is not UTF-8", message);
    }
}

// A file without a disk. Its path is a link to a regular file, as in the cache of Hugging Face.
class MemoryFile {
  public:
    explicit MemoryFile(std::string_view bytes) : fd_(::memfd_create("fuzz", MFD_CLOEXEC)) {
        require(fd_ >= 0 && ::write(fd_, bytes.data(), bytes.size()) == static_cast<ssize_t>(bytes.size()),
                "no memory file");
    }
    ~MemoryFile() { ::close(fd_); }
    MemoryFile(const MemoryFile&) = delete;
    MemoryFile& operator=(const MemoryFile&) = delete;
    std::filesystem::path path() const { return "/proc/self/fd/" + std::to_string(fd_); }

  private:
    int fd_;
};

// A directory that lasts as long as the process.
class Folder {
  public:
    Folder() {
        const std::filesystem::path memory = "/dev/shm";
        std::string pattern =
            (std::filesystem::exists(memory) ? memory : std::filesystem::temp_directory_path()) / "lolcats-fuzz-XXXXXX";
        require(::mkdtemp(pattern.data()) != nullptr, "no scratch directory");
        path_ = pattern;
    }
    ~Folder() {
        std::error_code ignored;
        std::filesystem::remove_all(path_, ignored);
    }
    Folder(const Folder&) = delete;
    Folder& operator=(const Folder&) = delete;
    const std::filesystem::path& path() const { return path_; }
    // Not through a temporary: nobody reads while it is written.
    std::filesystem::path write(const char* name, std::string_view bytes) const {
        const std::filesystem::path target = path_ / name;
        std::FILE* file = std::fopen(target.c_str(), "wb");
        require(file && std::fwrite(bytes.data(), 1, bytes.size(), file) == bytes.size(), "no scratch file");
        std::fclose(file);
        return target;
    }

  private:
    std::filesystem::path path_;
};

}  // namespace lc::fuzz
