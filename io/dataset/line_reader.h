// Private to io: the lines of a file, with a cap.
#pragma once
#include <algorithm>
#include <string>
#include <string_view>

#include "io/file.h"

namespace lc::io {

inline constexpr std::string_view kByteOrderMark = "\xEF\xBB\xBF";

class LineReader {
  public:
    LineReader(const InputFile& file, int64_t max_line_bytes) : file_(file), max_bytes_(max_line_bytes) {}

    // The next line without its LF; false at the end of the file. A line longer than the cap is passed over: too_long()
    // is then true and `line` empty. A byte order mark at the start of the file is dropped.
    bool next(std::string& line) {
        line.clear();
        too_long_ = false;
        bool any = false;
        while (fill()) {
            any = true;
            const std::string_view rest = std::string_view(block_).substr(used_);
            const size_t end = rest.find('\n');
            append(line, rest.substr(0, end));
            used_ += end == std::string_view::npos ? rest.size() : end + 1;
            if (end != std::string_view::npos) break;
        }
        if (!any) return false;
        if (number_++ == 0 && line.starts_with(kByteOrderMark)) line.erase(0, kByteOrderMark.size());
        return true;
    }
    int64_t number() const { return number_; }  // of the line read last, from 1
    bool too_long() const { return too_long_; }

  private:
    bool fill() {
        if (used_ < block_.size()) return true;
        const int64_t left = file_.size() - offset_;
        if (left == 0) return false;
        block_.resize(static_cast<size_t>(std::min(left, int64_t{1} << 20)));
        file_.read_at(offset_, std::as_writable_bytes(std::span(block_)));
        offset_ += std::ssize(block_);
        used_ = 0;
        return true;
    }
    void append(std::string& line, std::string_view part) {
        if (too_long_ || std::ssize(line) + std::ssize(part) > max_bytes_) {
            too_long_ = true;
            std::string().swap(line);
            return;
        }
        line += part;
    }

    const InputFile& file_;
    int64_t max_bytes_;
    std::string block_;
    size_t used_ = 0;
    int64_t offset_ = 0;
    int64_t number_ = 0;
    bool too_long_ = false;
};

}  // namespace lc::io
