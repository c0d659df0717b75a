// Pieces of text and their ids. Ids may have holes; memory goes with the file's size, not with the largest id times a
// string.
#pragma once
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace lc::io {

inline constexpr int32_t kMaxTokenId = (int32_t{1} << 24) - 1;

class Vocabulary {
  public:
    struct Entry {
        std::string text;
        int32_t id;
    };
    Vocabulary() = default;
    // Ids must be unique and in [0, kMaxTokenId], texts unique: the loader has checked.
    explicit Vocabulary(const std::vector<Entry>& entries);
    Vocabulary(Vocabulary&&) = default;
    Vocabulary& operator=(Vocabulary&&) = default;

    int32_t size() const { return static_cast<int32_t>(slots_.size()); }  // the largest id + 1
    std::optional<int32_t> id(std::string_view text) const;
    std::optional<std::string_view> text(int32_t id) const;  // nullopt for a hole or an id out of range

  private:
    struct Slot {
        uint32_t offset = 0;
        int32_t length = -1;  // -1: hole
    };
    std::vector<char> arena_;  // a vector: moving it leaves the views below valid
    std::vector<Slot> slots_;
    std::unordered_map<std::string_view, int32_t> ids_;
};

}  // namespace lc::io
