#include "models/generation/kv_memory.h"

#include <algorithm>

#include "core/check.h"

namespace lc::models {

int64_t KvMemory::bytes_for(int64_t tokens) const {
    const int64_t layers = std::count(shape_.layers.begin(), shape_.layers.end(), true);
    return 2 * layers * shape_.rows * shape_.kv_heads * tokens * shape_.head_dim * size_of(shape_.dtype);
}

int64_t KvMemory::bytes() const {
    return bytes_for(capacity_);
}

void KvMemory::grow(int64_t tokens) {
    if (tokens <= capacity_) return;
    constexpr int64_t kLeast = 256;
    const int64_t most = tokens <= expected_ ? expected_ : shape_.most;
    reserve(std::max(tokens, std::min(std::max(2 * tokens, kLeast), most)));
}

void KvMemory::reserve(int64_t tokens) {
    if (tokens <= capacity_ || bytes_for(1) == 0) return;
    ++version_;
    const auto enlarge = [&](Tensor& tensor) {
        const Tensor larger =
            Tensor::empty({shape_.rows, shape_.kv_heads, tokens, shape_.head_dim}, shape_.dtype, shape_.device);
        if (capacity_ > 0) larger.sliced(2, 0, capacity_).copy_from(tensor.sliced(2, 0, capacity_));
        tensor = larger;
    };
    try {  // one after the other, so that old and new are never both there whole; those that grew before a failure stay right
        for (size_t i = 0; i < keys_.size(); ++i)
            if (shape_.layers[i]) enlarge(keys_[i]), enlarge(values_[i]);
    } catch (const Error& error) {
        if (error.kind() != ErrorKind::Resource) throw;
        fail(ErrorKind::Resource, "keys and values of {} sequences of up to {} tokens take {:.2f} GiB, all layers: {}",
             shape_.rows, tokens, static_cast<double>(bytes_for(tokens)) / (1 << 30), error.what());
    }
    capacity_ = tokens;
}

void KvMemory::release() {
    if (capacity_ == 0) return;
    for (size_t i = 0; i < keys_.size(); ++i) keys_[i] = values_[i] = {};
    capacity_ = 0, ++version_;
}

}  // namespace lc::models
