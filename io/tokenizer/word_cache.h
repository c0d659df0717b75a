// Words that BPE has seen and their ids: most words of a text are ones that it had before. Direct-mapped, one cache
// line an entry, the newer word replaces the older; so memory is fixed and nothing is ever searched. Longer words are
// not kept.
#pragma once
#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <span>
#include <string_view>
#include <vector>

namespace lc::io {

class WordCache {
  public:
    static constexpr size_t kMaxBytes = 32, kMaxIds = 7;

    // A word made ready for look-up; usable() is false for words that are not kept.
    struct Key {
        std::array<uint64_t, kMaxBytes / 8> bytes{};  // the word, then zeros
        uint8_t length = 0;
        size_t slot = 0;
        bool usable() const { return length > 0; }
    };

    static Key key(std::string_view word) {
        Key key;
        if (word.empty() || word.size() > kMaxBytes) return key;
        std::memcpy(key.bytes.data(), word.data(), word.size());
        key.length = static_cast<uint8_t>(word.size());
        uint64_t hash = key.length;
        for (const uint64_t part : key.bytes) {
            hash = (hash ^ part) * 0x9E3779B97F4A7C15u;
            hash ^= hash >> 32;
        }
        key.slot = hash % kEntries;
        return key;
    }

    // Empty when the word is not there. Valid until the next insert.
    std::span<const int32_t> find(const Key& key) const {
        if (entries_.empty()) return {};
        const Entry& entry = entries_[key.slot];
        if (entry.length != key.length || entry.bytes != key.bytes) return {};
        return {entry.ids.data(), entry.count};
    }

    void insert(const Key& key, std::span<const int32_t> ids) {
        if (ids.empty() || ids.size() > kMaxIds) return;
        if (entries_.empty()) entries_.resize(kEntries);
        Entry& entry = entries_[key.slot];
        entry.bytes = key.bytes;
        entry.length = key.length;
        entry.count = static_cast<uint8_t>(ids.size());
        std::copy(ids.begin(), ids.end(), entry.ids.begin());
    }

  private:
    static constexpr size_t kEntries = size_t{1} << 15;
    struct alignas(64) Entry {
        std::array<uint64_t, kMaxBytes / 8> bytes;
        std::array<int32_t, kMaxIds> ids;
        uint8_t length = 0, count = 0;
    };
    static_assert(sizeof(Entry) == 64);

    std::vector<Entry> entries_;  // allocated on first use: 2 MiB
};

}  // namespace lc::io
