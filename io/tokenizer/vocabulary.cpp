#include "io/tokenizer/vocabulary.h"

#include <algorithm>

namespace lc::io {

Vocabulary::Vocabulary(const std::vector<Entry>& entries) {
    size_t bytes = 0;
    int32_t largest = -1;
    for (const Entry& entry : entries) {
        bytes += entry.text.size();
        largest = std::max(largest, entry.id);
    }
    arena_.reserve(bytes);
    slots_.resize(static_cast<size_t>(largest + 1));
    ids_.reserve(entries.size());
    for (const Entry& entry : entries) {
        const size_t offset = arena_.size();
        arena_.insert(arena_.end(), entry.text.begin(), entry.text.end());
        slots_[static_cast<size_t>(entry.id)] = {static_cast<uint32_t>(offset),
                                                 static_cast<int32_t>(entry.text.size())};
        ids_.emplace(std::string_view(arena_.data() + offset, entry.text.size()), entry.id);
    }
}

std::optional<int32_t> Vocabulary::id(std::string_view text) const {
    const auto found = ids_.find(text);
    return found == ids_.end() ? std::nullopt : std::optional(found->second);
}

std::optional<std::string_view> Vocabulary::text(int32_t id) const {
    if (id < 0 || id >= size()) return std::nullopt;
    const Slot& slot = slots_[static_cast<size_t>(id)];
    if (slot.length < 0) return std::nullopt;
    return std::string_view(arena_.data() + slot.offset, static_cast<size_t>(slot.length));
}

}  // namespace lc::io
