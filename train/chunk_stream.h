// The endless sequence of training chunks: epoch after epoch, each in an order of its own. A place in it is one number,
// so that a resumed run reads on exactly where the stopped one was.
#pragma once
#include <cstdint>
#include <vector>

#include "core/tensor.h"
#include "train/packing.h"

namespace lc::train {

// Micro-batch: ids and labels [B,T] i32; labels stand at the token they ask for (not shifted).
struct Batch {
    Tensor ids, labels;
    std::vector<int64_t> predicted;  // labels that count, chunk by chunk
    int64_t tokens() const { return ids.numel(); }
    int64_t predicted_total() const;
};

// Rows `chunks` of the packed data as one batch.
Batch make_batch(const PackedChunks& data, std::span<const int64_t> chunks);

// labels [B,T] moved one to the left, so that row t holds what hidden row t must predict; the last column is ignored.
Tensor shifted_labels(const Tensor& labels);

class ChunkStream {
  public:
    // Order of epoch e: a Fisher-Yates shuffle by Philox(seed, e); file order when `shuffle` is off. Keeps a pointer.
    ChunkStream(const PackedChunks& data, uint64_t seed, bool shuffle);

    int64_t position() const { return position_; }  // chunks handed out since the beginning
    void seek(int64_t position) { position_ = position; }
    int64_t epoch() const { return position_ / data_->size(); }
    Batch next(int64_t batch_size);
    // Index into the data of the chunk at a position of the stream.
    int64_t chunk_at(int64_t position);

  private:
    const PackedChunks* data_;
    uint64_t seed_;
    bool shuffle_;
    int64_t position_ = 0;
    int64_t order_epoch_ = -1;
    std::vector<int64_t> order_;  // of order_epoch_
};

}  // namespace lc::train
