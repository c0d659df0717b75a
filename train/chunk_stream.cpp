#include "train/chunk_stream.h"

#include <algorithm>
#include <numeric>
#include <utility>

#include "core/check.h"
#include "core/rng.h"

namespace lc::train {
namespace {
// Keeps the orders of epochs apart from other uses of the seed: ASCII "data" above the epoch's 32 bits.
constexpr uint64_t kShuffleStream = uint64_t{0x64617461} << 32;
}  // namespace

int64_t Batch::predicted_total() const {
    return std::accumulate(predicted.begin(), predicted.end(), int64_t{0});
}

Batch make_batch(const PackedChunks& data, std::span<const int64_t> chunks) {
    const Shape shape{static_cast<int64_t>(chunks.size()), data.seq_len};
    Batch batch{Tensor::empty(shape, DType::i32), Tensor::empty(shape, DType::i32), {}};
    for (size_t row = 0; row < chunks.size(); ++row) {
        const auto offset = static_cast<int64_t>(row) * data.seq_len;
        const auto labels = data.labels_of(chunks[row]);
        std::ranges::copy(data.ids_of(chunks[row]), batch.ids.data<int32_t>() + offset);
        std::ranges::copy(labels, batch.labels.data<int32_t>() + offset);
        batch.predicted.push_back(predicted_tokens(labels));
    }
    return batch;
}

Tensor shifted_labels(const Tensor& labels) {
    const int64_t rows = labels.size(0), length = labels.size(1);
    Tensor shifted = Tensor::empty({rows * length}, DType::i32);
    const int32_t* from = labels.data<int32_t>();
    int32_t* to = shifted.data<int32_t>();
    for (int64_t b = 0; b < rows; ++b, from += length, to += length) {
        std::copy(from + 1, from + length, to);
        to[length - 1] = kIgnoreLabel;
    }
    return shifted;
}

ChunkStream::ChunkStream(const PackedChunks& data, uint64_t seed, bool shuffle)
    : data_(&data), seed_(seed), shuffle_(shuffle) {
    LC_REQUIRE(BadInput, data.size() > 0,
               "the training data make no chunk of {} tokens; give more text or a smaller --seq-len", data.seq_len);
}

int64_t ChunkStream::chunk_at(int64_t position) {
    const int64_t n = data_->size(), epoch = position / n;
    if (epoch != order_epoch_) {
        order_.resize(static_cast<size_t>(n));
        std::iota(order_.begin(), order_.end(), int64_t{0});
        const Random random(seed_, kShuffleStream + static_cast<uint64_t>(epoch));
        for (int64_t i = n - 1; shuffle_ && i > 0; --i) {
            const uint64_t j = random.below(static_cast<uint64_t>(i) + 1, static_cast<uint64_t>(i));
            std::swap(order_[static_cast<size_t>(i)], order_[j]);
        }
        order_epoch_ = epoch;
    }
    return order_[static_cast<size_t>(position % n)];
}

Batch ChunkStream::next(int64_t batch_size) {
    std::vector<int64_t> chunks;
    for (int64_t i = 0; i < batch_size; ++i) chunks.push_back(chunk_at(position_++));
    return make_batch(*data_, chunks);
}

}  // namespace lc::train
