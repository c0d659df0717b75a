// ZIP archives as torch.save writes them: stored members only, one disk, less than 4 GiB. Everything is read from the
// central directory; a local header must agree with it. Specification: PKWARE APPNOTE 6.3.
#pragma once
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "io/file.h"

namespace lc::io {

struct ZipMember {
    std::string name;                          // 1..512 bytes of UTF-8 without NUL
    int64_t header = 0, offset = 0, size = 0;  // local header, first byte and bytes of the content
    uint32_t crc = 0;
};

class ZipArchive {
  public:
    // Throws BadInput for a file that is not such an archive: compressed, encrypted or duplicate members, members that
    // overlap or leave the file, comments, several disks, 4 GiB and more.
    explicit ZipArchive(const std::filesystem::path& path, OpenOptions options = {});

    const std::filesystem::path& path() const { return file_.path(); }
    int64_t bytes() const { return file_.size(); }
    const std::vector<ZipMember>& members() const { return members_; }  // sorted by name
    const ZipMember* find(std::string_view name) const;                 // nullptr when there is none

    // Fills `bytes`, which must have the member's size. Throws BadInput when the content does not have its CRC-32.
    void read(const ZipMember& member, std::span<std::byte> bytes) const;
    // The same as text. Throws BadInput when it is larger than `max_bytes`.
    std::string read_text(const ZipMember& member, int64_t max_bytes) const;

  private:
    struct Directory {
        int64_t count = 0, offset = 0, size = 0, end = 0;  // entries, first byte, bytes; where the end records begin
        bool operator==(const Directory&) const = default;
    };
    Directory read_end() const;
    void read_directory();
    void locate(ZipMember& member, int64_t directory) const;
    void check_apart() const;

    InputFile file_;
    std::vector<ZipMember> members_;
};

// CRC-32 as in ZIP (reflected polynomial 0xEDB88320).
uint32_t crc32(std::span<const std::byte> bytes);

}  // namespace lc::io
