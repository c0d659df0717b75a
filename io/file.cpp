#include "io/file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <memory>
#include <utility>
#include <vector>

#include "core/check.h"

namespace lc::io {
namespace {

constexpr size_t kLargestTransfer = size_t{1} << 30;  // Linux moves at most 2 GiB - 4 KiB a call

std::string hex_of(const XXH128_hash_t& hash) {
    XXH128_canonical_t canonical;
    XXH128_canonicalFromHash(&canonical, hash);
    std::string result;
    for (const unsigned char byte : canonical.digest) result += fmt::format("{:02x}", byte);
    return result;
}

int64_t size_of_regular_file(int fd, const std::filesystem::path& path) {
    struct stat status {};
    LC_REQUIRE(BadInput, ::fstat(fd, &status) == 0, "{}: cannot be examined: {}", path.string(), std::strerror(errno));
    LC_REQUIRE(BadInput, S_ISREG(status.st_mode), "{}: must be a regular file", path.string());
    return status.st_size;
}

}  // namespace

InputFile::InputFile(const std::filesystem::path& path, OpenOptions options) : path_(path) {
    // O_NONBLOCK: opening a FIFO must not wait for a writer. It does nothing to a regular file.
    const int flags = O_RDONLY | O_CLOEXEC | O_NONBLOCK | (options.follow_symlinks ? 0 : O_NOFOLLOW);
    fd_ = ::open(path.c_str(), flags);
    const int reason = errno;
    if (fd_ < 0) {
        LC_REQUIRE(BadInput, options.follow_symlinks || reason != ELOOP,
                   "{}: is a symbolic link, and these are not to be followed", path.string());
        const bool exhausted = reason == EMFILE || reason == ENFILE || reason == ENOMEM;
        fail(exhausted ? ErrorKind::Resource : ErrorKind::BadInput, "{}: cannot be opened: {}", path.string(),
             std::strerror(reason));
    }
    try {
        size_ = size_of_regular_file(fd_, path_);
    } catch (...) {
        ::close(fd_);
        throw;
    }
}

InputFile::~InputFile() {
    if (fd_ >= 0) ::close(fd_);
}

InputFile::InputFile(InputFile&& other) noexcept
    : path_(std::move(other.path_)), fd_(std::exchange(other.fd_, -1)), size_(other.size_) {}

InputFile& InputFile::operator=(InputFile&& other) noexcept {
    std::swap(path_, other.path_);
    std::swap(fd_, other.fd_);
    std::swap(size_, other.size_);
    return *this;
}

void InputFile::read_at(int64_t offset, std::span<std::byte> bytes) const {
    size_t done = 0;
    while (done < bytes.size()) {
        const int64_t position = offset + static_cast<int64_t>(done);
        const ssize_t got =
            ::pread(fd_, bytes.data() + done, std::min(bytes.size() - done, kLargestTransfer), position);
        if (got < 0 && errno == EINTR) continue;
        LC_REQUIRE(Resource, got >= 0, "{}: cannot be read at byte {}: {}", path_.string(), position,
                   std::strerror(errno));
        LC_REQUIRE(BadInput, got > 0, "{}: ends at byte {}, expected {} (was it cut while in use?)", path_.string(),
                   position, offset + std::ssize(bytes));
        done += static_cast<size_t>(got);
    }
}

void InputFile::check_unchanged() const {
    const int64_t now = size_of_regular_file(fd_, path_);
    LC_REQUIRE(BadInput, now == size_, "{}: changed while in use: had {} bytes, has {}", path_.string(), size_, now);
}

std::string read_all(const InputFile& file, int64_t max_bytes) {
    LC_REQUIRE(BadInput, file.size() <= max_bytes, "{}: has {} bytes, at most {} are read", file.path().string(),
               file.size(), max_bytes);
    std::string bytes(static_cast<size_t>(file.size()), '\0');
    file.read_at(0, std::as_writable_bytes(std::span(bytes)));
    file.check_unchanged();
    return bytes;
}

std::string read_file(const std::filesystem::path& path, int64_t max_bytes, OpenOptions options) {
    return read_all(InputFile(path, options), max_bytes);
}

std::string xxh3_128_hex(std::span<const std::byte> bytes) {
    return hex_of(XXH3_128bits(bytes.data(), bytes.size()));
}

std::string xxh3_128_hex(std::string_view bytes) {
    return xxh3_128_hex(std::as_bytes(std::span(bytes)));
}

std::string xxh3_128_hex_of_file(const std::filesystem::path& path) {
    const InputFile file(path);
    const std::unique_ptr<XXH3_state_t, decltype(&XXH3_freeState)> state(XXH3_createState(), &XXH3_freeState);
    LC_REQUIRE(Resource, state != nullptr, "{}: no memory to hash it", path.string());
    XXH3_128bits_reset(state.get());
    std::vector<std::byte> block(size_t{4} << 20);
    for (int64_t offset = 0; offset < file.size();) {
        const auto part = std::span(block).first(
            static_cast<size_t>(std::min(file.size() - offset, static_cast<int64_t>(block.size()))));
        file.read_at(offset, part);
        XXH3_128bits_update(state.get(), part.data(), part.size());
        offset += std::ssize(part);
    }
    file.check_unchanged();
    return hex_of(XXH3_128bits_digest(state.get()));
}

}  // namespace lc::io
