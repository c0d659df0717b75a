#include "io/zip_archive.h"

#include <algorithm>
#include <array>
#include <cstring>

#include "core/check.h"
#include "io/text.h"

namespace lc::io {
namespace {

constexpr int64_t kEndBytes = 22, kCentralBytes = 46, kLocalBytes = 30;
constexpr int64_t kWideRecordBytes = 56, kWideEndBytes = kWideRecordBytes + 20;  // ZIP64 end record, and its locator
constexpr uint32_t kEndSignature = 0x06054b50, kCentralSignature = 0x02014b50, kLocalSignature = 0x04034b50;
constexpr uint32_t kWideEndSignature = 0x06064b50, kLocatorSignature = 0x07064b50;
constexpr uint32_t kLarge = 0xFFFFFFFF;                     // "see the ZIP64 record"
constexpr int64_t kMaxDirectory = int64_t{16} << 20;        // bytes; a checkpoint of 126 layers has 0.2 MB
constexpr uint32_t kSizesFollow = 1 << 3, kUtf8 = 1 << 11;  // flags that torch.save sets
constexpr size_t kMaxName = 512;

// Little-endian fields at fixed places of a record.
class Record {
  public:
    explicit Record(std::string_view bytes) : bytes_(bytes) {}
    uint32_t u16(size_t at) const { return static_cast<uint32_t>(byte(at) | byte(at + 1) << 8); }
    uint32_t u32(size_t at) const { return u16(at) | u16(at + 2) << 16; }
    int64_t i64(size_t at) const { return static_cast<int64_t>(u32(at) | uint64_t{u32(at + 4)} << 32); }

  private:
    uint32_t byte(size_t at) const { return static_cast<unsigned char>(bytes_[at]); }
    std::string_view bytes_;
};

std::string bytes_at(const InputFile& file, int64_t offset, int64_t count) {
    std::string bytes(static_cast<size_t>(count), '\0');
    file.read_at(offset, std::as_writable_bytes(std::span(bytes)));
    return bytes;
}

constexpr std::array<uint32_t, 256> make_crc_table() {
    std::array<uint32_t, 256> table{};
    for (uint32_t i = 0; i < 256; ++i) {
        uint32_t value = i;
        for (int bit = 0; bit < 8; ++bit) value = value >> 1 ^ (value & 1 ? 0xEDB88320u : 0u);
        table[i] = value;
    }
    return table;
}
constexpr std::array<uint32_t, 256> kCrcTable = make_crc_table();

}  // namespace

uint32_t crc32(std::span<const std::byte> bytes) {
    uint32_t crc = 0xFFFFFFFF;
    for (const std::byte b : bytes) crc = crc >> 8 ^ kCrcTable[(crc ^ std::to_integer<uint32_t>(b)) & 0xFF];
    return ~crc;
}

ZipArchive::ZipArchive(const std::filesystem::path& path, OpenOptions options) : file_(path, options) {
    read_directory();
    std::ranges::sort(members_, {}, &ZipMember::name);
    const auto twice = std::ranges::adjacent_find(members_, {}, &ZipMember::name);
    LC_REQUIRE(BadInput, twice == members_.end(), "{}: member '{}' occurs twice", path.string(),
               printable(twice->name));
    check_apart();
    file_.check_unchanged();
}

// What the end record, and the ZIP64 one before it that torch.save adds from some 25 members on, say of the directory.
ZipArchive::Directory ZipArchive::read_end() const {
    const std::string source = path().string();
    LC_REQUIRE(BadInput, file_.size() >= kEndBytes, "{}: not a zip archive: has {} bytes, at least {} are needed",
               source, file_.size(), kEndBytes);
    const int64_t position = file_.size() - kEndBytes;
    const std::string end_bytes = bytes_at(file_, position, kEndBytes);
    const Record end(end_bytes);
    LC_REQUIRE(BadInput, end.u32(0) == kEndSignature && end.u16(20) == 0,
               "{}: not a zip archive that torch.save wrote: it does not end with the end record (is it cut?)", source);
    LC_REQUIRE(BadInput, end.u16(4) == 0 && end.u16(6) == 0 && end.u16(8) == end.u16(10),
               "{}: is a part of an archive of several files, which is not supported", source);
    Directory directory{.count = end.u16(10), .offset = end.u32(16), .size = end.u32(12), .end = position};
    const std::string wide_bytes = position >= kWideEndBytes ? bytes_at(file_, position - kWideEndBytes, kWideEndBytes)
                                                             : std::string(kWideEndBytes, 0);
    const Record wide(wide_bytes);
    if (wide.u32(kWideRecordBytes) == kLocatorSignature) {
        directory.end = position - kWideEndBytes;
        const Directory said{.count = wide.i64(32), .offset = wide.i64(48), .size = wide.i64(40), .end = directory.end};
        LC_REQUIRE(BadInput,
                   wide.u32(0) == kWideEndSignature && wide.i64(4) == kWideRecordBytes - 12 &&
                       wide.i64(kWideRecordBytes + 8) == directory.end && wide.u32(16) == 0 && wide.u32(20) == 0 &&
                       wide.i64(24) == said.count && said == directory,
                   "{}: its ZIP64 end record does not say what its end record says (archives above 4 GiB are not "
                   "supported)",
                   source);
    }
    LC_REQUIRE(
        BadInput, directory.offset + directory.size == directory.end,
        "{}: the zip directory must end at byte {}, where the end record begins, but is said to have bytes {} to {}",
        source, directory.end, directory.offset, directory.offset + directory.size);
    LC_REQUIRE(BadInput, directory.size <= kMaxDirectory, "{}: the zip directory has {} bytes, at most {}", source,
               directory.size, kMaxDirectory);
    return directory;
}

void ZipArchive::read_directory() {
    const std::string source = path().string();
    const auto [count, offset, size, end] = read_end();
    const std::string directory = bytes_at(file_, offset, size);
    std::string_view rest = directory;
    for (int64_t i = 0; i < count; ++i) {
        const Record entry(rest);
        LC_REQUIRE(BadInput, std::ssize(rest) >= kCentralBytes && entry.u32(0) == kCentralSignature,
                   "{}: the zip directory is malformed at entry {} of {}", source, i, count);
        const size_t name = entry.u16(28), length = kCentralBytes + name + entry.u16(30) + entry.u16(32);
        LC_REQUIRE(BadInput, length <= rest.size(), "{}: entry {} of the zip directory leaves it", source, i);
        ZipMember member{.name = std::string(rest.substr(kCentralBytes, name)),
                         .header = entry.u32(42),
                         .size = entry.u32(24),
                         .crc = entry.u32(16)};
        LC_REQUIRE(BadInput,
                   name >= 1 && name <= kMaxName && !first_invalid_utf8(member.name) &&
                       member.name.find('\0') == std::string::npos,
                   "{}: entry {} of the zip directory has the name '{}', which is not 1 to {} bytes of text", source, i,
                   printable(member.name), kMaxName);
        const std::string shown = printable(member.name);
        LC_REQUIRE(BadInput, (entry.u16(8) & ~(kSizesFollow | kUtf8)) == 0,
                   "{}: member '{}' has the flags {:#06x} (is it encrypted?), which are not supported", source, shown,
                   entry.u16(8));
        LC_REQUIRE(BadInput, entry.u16(10) == 0,
                   "{}: member '{}' is compressed (method {}), torch.save stores members as they are", source, shown,
                   entry.u16(10));
        LC_REQUIRE(BadInput, entry.u32(20) == entry.u32(24) && entry.u32(24) != kLarge && entry.u32(42) != kLarge,
                   "{}: member '{}' is stored, but takes {} bytes for {}", source, shown, entry.u32(20), entry.u32(24));
        LC_REQUIRE(BadInput, entry.u16(34) == 0, "{}: member '{}' is on another disk", source, shown);
        locate(member, offset);
        members_.push_back(std::move(member));
        rest.remove_prefix(length);
    }
    LC_REQUIRE(BadInput, rest.empty(), "{}: {} bytes of the zip directory belong to no entry", source, rest.size());
}

// Where the content begins, from the local header, which must be of the same member.
void ZipArchive::locate(ZipMember& member, int64_t directory) const {
    const std::string source = path().string(), shown = printable(member.name);
    LC_REQUIRE(BadInput, member.header + kLocalBytes <= directory, "{}: member '{}' begins at byte {} of {}", source,
               shown, member.header, directory);
    const std::string bytes = bytes_at(file_, member.header, kLocalBytes);
    const Record local(bytes);
    const int64_t name = local.u16(26);
    member.offset = member.header + kLocalBytes + name + local.u16(28);
    LC_REQUIRE(BadInput,
               local.u32(0) == kLocalSignature && local.u16(8) == 0 && name == std::ssize(member.name) &&
                   member.header + kLocalBytes + name <= directory &&
                   bytes_at(file_, member.header + kLocalBytes, name) == member.name,
               "{}: member '{}' has another local header at byte {}", source, shown, member.header);
    LC_REQUIRE(BadInput, member.offset + member.size <= directory, "{}: member '{}' ends at byte {} of {}", source,
               shown, member.offset + member.size, directory);
}

void ZipArchive::check_apart() const {
    std::vector<const ZipMember*> order;
    for (const ZipMember& member : members_) order.push_back(&member);
    std::ranges::sort(order, {}, [](const ZipMember* m) { return m->header; });
    for (size_t i = 1; i < order.size(); ++i)
        LC_REQUIRE(BadInput, order[i - 1]->offset + order[i - 1]->size <= order[i]->header,
                   "{}: members '{}' and '{}' overlap", path().string(), printable(order[i - 1]->name),
                   printable(order[i]->name));
}

const ZipMember* ZipArchive::find(std::string_view name) const {
    const auto position = std::ranges::lower_bound(members_, name, {}, &ZipMember::name);
    return position != members_.end() && position->name == name ? &*position : nullptr;
}

void ZipArchive::read(const ZipMember& member, std::span<std::byte> bytes) const {
    LC_CHECK(std::ssize(bytes) == member.size, "{}: member '{}' has {} bytes, wanted {}", path().string(), member.name,
             member.size, bytes.size());
    file_.read_at(member.offset, bytes);
    const uint32_t crc = crc32(bytes);
    LC_REQUIRE(BadInput, crc == member.crc, "{}: member '{}' is damaged: its CRC-32 is {:08x}, expected {:08x}",
               path().string(), printable(member.name), crc, member.crc);
}

std::string ZipArchive::read_text(const ZipMember& member, int64_t max_bytes) const {
    LC_REQUIRE(BadInput, member.size <= max_bytes, "{}: member '{}' has {} bytes, at most {} are read", path().string(),
               printable(member.name), member.size, max_bytes);
    std::string text(static_cast<size_t>(member.size), '\0');
    read(member, std::as_writable_bytes(std::span(text)));
    return text;
}

}  // namespace lc::io
