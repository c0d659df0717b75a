// The merges of a BPE model: a pair of ids -> its rank (the smaller the earlier) and the id of the merged piece. One
// flat table with linear probing, at most half full, so that a look-up, most of which find nothing, touches one cache
// line.
#pragma once
#include <bit>
#include <cstdint>
#include <limits>
#include <vector>

namespace lc::io {

class MergeTable {
  public:
    static constexpr uint32_t kNoRank = std::numeric_limits<uint32_t>::max();
    struct Merge {
        uint32_t rank = kNoRank;
        int32_t id = -1;
    };

    explicit MergeTable(size_t count = 0) : slots_(std::bit_ceil(2 * count + 2)) {
        shift_ = 64 - std::countr_zero(slots_.size());
    }

    // A pair that is set twice keeps what was set last. At most `count` (of the constructor) different pairs.
    void set(int32_t left, int32_t right, Merge merge) { slots_[place(key(left, right))] = {key(left, right), merge}; }
    Merge find(int32_t left, int32_t right) const { return slots_[place(key(left, right))].merge; }

  private:
    static constexpr uint64_t kEmpty = std::numeric_limits<uint64_t>::max();
    struct Slot {
        uint64_t key = kEmpty;
        Merge merge;
    };
    static uint64_t key(int32_t left, int32_t right) {
        return static_cast<uint64_t>(static_cast<uint32_t>(left)) << 32 | static_cast<uint32_t>(right);
    }
    // The slot of `wanted`, or the empty one where it would go.
    size_t place(uint64_t wanted) const {
        size_t at = (wanted * 0x9E3779B97F4A7C15u) >> shift_;
        while (slots_[at].key != wanted && slots_[at].key != kEmpty) at = (at + 1) & (slots_.size() - 1);
        return at;
    }

    std::vector<Slot> slots_;
    int shift_;
};

}  // namespace lc::io
