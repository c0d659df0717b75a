// A heap of 64-bit numbers, the smallest on top, eight children a node: for millions of entries the binary heap of the
// standard library spends its time waiting for memory, and eight children are one or two cache lines.
#pragma once
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

namespace lc::io {

class MinHeap {
  public:
    void clear() { values_.clear(); }
    bool empty() const { return values_.empty(); }
    size_t capacity() const { return values_.capacity(); }

    // Appends without order; heapify() makes a heap of all at once.
    void append(uint64_t value) { values_.push_back(value); }
    void heapify() {
        if (values_.size() < 2) return;
        for (size_t at = (values_.size() - 2) / kChildren + 1; at-- > 0;) sift_down(at, values_[at]);
    }

    void push(uint64_t value) {
        size_t at = values_.size();
        values_.push_back(value);
        for (; at > 0 && value < values_[(at - 1) / kChildren]; at = (at - 1) / kChildren)
            values_[at] = values_[(at - 1) / kChildren];
        values_[at] = value;
    }

    uint64_t pop() {
        const uint64_t top = values_.front();
        const uint64_t last = values_.back();
        values_.pop_back();
        if (!values_.empty()) sift_down(0, last);
        return top;
    }

  private:
    static constexpr size_t kChildren = 8;

    // Puts `value` into the hole at `at` or below it.
    void sift_down(size_t at, uint64_t value) {
        for (;;) {
            const size_t first = at * kChildren + 1, end = std::min(first + kChildren, values_.size());
            if (first >= end) break;
            size_t least = first;
            for (size_t child = first + 1; child < end; ++child)
                if (values_[child] < values_[least]) least = child;
            if (values_[least] >= value) break;
            values_[at] = values_[least];
            at = least;
        }
        values_[at] = value;
    }

    std::vector<uint64_t> values_;
};

}  // namespace lc::io
