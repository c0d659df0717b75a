#include "train/packing.h"

#include <algorithm>
#include <utility>

#include "core/check.h"

namespace lc::train {

void PackedChunks::truncate(int64_t chunks) {
    if (chunks >= size()) return;
    ids.resize(static_cast<size_t>(chunks * seq_len));
    labels.resize(static_cast<size_t>(chunks * seq_len));
}

Packer::Packer(int64_t seq_len) {
    LC_REQUIRE(Usage, seq_len >= 2, "seq-len must be at least 2, got {}", seq_len);
    chunks_.seq_len = seq_len;
}

void Packer::add(const TokenSample& sample) {
    add(sample.ids, sample.labels);
}

void Packer::add(std::span<const int32_t> ids, std::span<const int32_t> labels) {
    LC_CHECK(ids.size() == labels.size(), "packing: {} ids and {} labels", ids.size(), labels.size());
    ids_.insert(ids_.end(), ids.begin(), ids.end());
    labels_.insert(labels_.end(), labels.begin(), labels.end());
    cut();
}

void Packer::cut() {
    const size_t length = static_cast<size_t>(chunks_.seq_len);
    while (ids_.size() - begin_ > length) {
        const auto label = labels_.begin() + static_cast<std::ptrdiff_t>(begin_);
        const auto id = ids_.begin() + static_cast<std::ptrdiff_t>(begin_);
        const auto end = static_cast<std::ptrdiff_t>(length);
        if (std::any_of(label, label + end, [](int32_t l) { return l != kIgnoreLabel; })) {
            chunks_.ids.insert(chunks_.ids.end(), id, id + end);
            chunks_.labels.insert(chunks_.labels.end(), label, label + end);
        } else {
            ++chunks_.masked_chunks;
        }
        begin_ += length;
    }
    // The buffer is moved up only when most of it is behind us: each token is copied a constant number of times.
    if (begin_ > ids_.size() / 2) {
        ids_.erase(ids_.begin(), ids_.begin() + static_cast<std::ptrdiff_t>(begin_));
        labels_.erase(labels_.begin(), labels_.begin() + static_cast<std::ptrdiff_t>(begin_));
        begin_ = 0;
    }
}

PackedChunks Packer::finish() {
    chunks_.dropped_tokens = static_cast<int64_t>(ids_.size() - begin_);
    ids_.clear(), labels_.clear(), begin_ = 0;
    PackedChunks empty;
    empty.seq_len = chunks_.seq_len;
    return std::exchange(chunks_, std::move(empty));
}

int64_t predicted_tokens(std::span<const int32_t> labels) {
    return std::count_if(labels.begin() + 1, labels.end(), [](int32_t l) { return l != kIgnoreLabel; });
}

}  // namespace lc::train
