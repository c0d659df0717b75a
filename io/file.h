// Files: opened once and read by position, written so that a reader sees the old content or the new one, never a
// mixture. Errors are one line that names the path, what was done, and the system's reason.
#pragma once
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>

namespace lc::io {

struct OpenOptions {
    bool follow_symlinks = true;  // false: a path whose last part is a symbolic link is refused
};

// A regular file, opened once and read by pread. Not mapped on purpose: when the file is cut while it is in use, pread
// returns short and we report it, where a mapping would end the process with SIGBUS. Reads are thread-safe.
class InputFile {
  public:
    // Throws BadInput when `path` cannot be opened or is no regular file (a FIFO would block, a device never end);
    // Resource when the process is out of descriptors or memory.
    explicit InputFile(const std::filesystem::path& path, OpenOptions options = {});
    ~InputFile();
    InputFile(InputFile&& other) noexcept;
    InputFile& operator=(InputFile&& other) noexcept;

    const std::filesystem::path& path() const { return path_; }
    int64_t size() const { return size_; }  // bytes, when it was opened

    // Fills `bytes` from `offset`. Throws BadInput when the file ends before, Resource on a device error.
    void read_at(int64_t offset, std::span<std::byte> bytes) const;
    // Throws BadInput when the file no longer has the size it was opened with.
    void check_unchanged() const;

  private:
    std::filesystem::path path_;
    int fd_ = -1;
    int64_t size_ = 0;
};

// All of it. Throws BadInput when it is larger than `max_bytes`.
std::string read_all(const InputFile& file, int64_t max_bytes);

// The whole of a regular file. Throws as InputFile does, and BadInput when it is larger than `max_bytes`.
std::string read_file(const std::filesystem::path& path, int64_t max_bytes, OpenOptions options = {});

// A file that appears under its name complete or not at all: written beside the target, synced, then renamed over it.
// Every failure (no space, no permission, ...) throws Resource and leaves the target as it was.
class AtomicFile {
  public:
    explicit AtomicFile(const std::filesystem::path& target);
    ~AtomicFile();  // removes the temporary unless committed
    AtomicFile(const AtomicFile&) = delete;
    AtomicFile& operator=(const AtomicFile&) = delete;

    void write(std::span<const std::byte> bytes);
    void write(std::string_view text) { write(std::as_bytes(std::span(text))); }
    void commit();

  private:
    std::filesystem::path target_, temporary_;
    int fd_ = -1;
};

void write_file_atomic(const std::filesystem::path& path, std::string_view bytes);

// A directory that appears under its name complete or not at all. Fill path(), then commit(): every file in it is
// synced, the directory renamed, its parent synced. Throws Usage when the target exists, else Resource.
class AtomicDirectory {
  public:
    explicit AtomicDirectory(const std::filesystem::path& target);
    ~AtomicDirectory();  // removes the temporary and all in it unless committed
    AtomicDirectory(const AtomicDirectory&) = delete;
    AtomicDirectory& operator=(const AtomicDirectory&) = delete;

    const std::filesystem::path& path() const { return temporary_; }
    void commit();

  private:
    std::filesystem::path target_, temporary_;
    bool committed_ = false;
};

// What the temporaries of AtomicFile and AtomicDirectory begin with; a crash may leave some, and they are safe to
// delete.
inline constexpr std::string_view kTemporaryPrefix = ".tmp-";

// XXH3-128 as 32 hex digits, the notation of `xxh128sum`.
std::string xxh3_128_hex(std::span<const std::byte> bytes);
std::string xxh3_128_hex(std::string_view bytes);
std::string xxh3_128_hex_of_file(const std::filesystem::path& path);

}  // namespace lc::io
