// A file that grows by whole lines and can be gone on with: results of long work, one a line.
#pragma once
#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

namespace lc::io {

class LineFile {
  public:
    // Opens `path` for appending, or makes it. What follows the last line end, all that a dying machine can leave of a
    // line, is cut off. One process at a time: throws Usage when another one has it open, BadInput when it is no
    // regular file or larger than `max_bytes`, Resource when it cannot be opened.
    explicit LineFile(const std::filesystem::path& path, int64_t max_bytes = int64_t{16} << 30);
    ~LineFile();
    LineFile(const LineFile&) = delete;
    LineFile& operator=(const LineFile&) = delete;

    // The lines that were there when it was opened, without their ends.
    const std::vector<std::string>& lines() const { return lines_; }
    // `line` and a line end, which it must not contain. When that fails, what was written of it is taken back, and it
    // throws Resource.
    void append(std::string_view line);
    void sync();  // to disk

  private:
    void read_lines(int64_t size);

    std::filesystem::path path_;
    int fd_ = -1;
    int64_t size_ = 0;  // whole lines
    std::vector<std::string> lines_;
};

}  // namespace lc::io
