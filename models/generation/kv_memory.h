// Keys and values of the layers that attend by softmax, for all rows of a batch.
//
// One block a layer, [B,H_kv,capacity,D] twice, in which every row is at a position of its own. When one needs more, the capacity
// doubles for all. Pages would waste less where lengths differ much, but every reader would have to follow a table; for rows of about
// one length, and wherever the length is known and reserved, this wastes nothing.
#pragma once
#include <memory>
#include <vector>

#include "core/tensor.h"

namespace lc::models {

class KvMemory {
  public:
    struct Shape {
        std::vector<bool> layers;  // which of them keep keys and values here
        int64_t rows = 1, kv_heads = 1, head_dim = 1;
        int64_t most = 0;  // positions that the model allows: capacities do not grow beyond
        DType dtype = DType::f32;
        Device device;
    };
    explicit KvMemory(Shape shape) : shape_(std::move(shape)), keys_(shape_.layers.size()), values_(keys_.size()) {}

    // Room for `tokens` a row. What is there stays. Throws Error(Resource), saying what it would have taken.
    void reserve(int64_t tokens);  // exactly so many
    void grow(int64_t tokens);     // with room for as many again when it was used up
    void release();                // all of it; nothing is kept
    // No row will need more than this many tokens, as far as is known: capacities do not grow beyond as long as that suffices.
    void expect(int64_t tokens) { expected_ = tokens; }

    bool holds(int64_t layer) const { return shape_.layers[static_cast<size_t>(layer)]; }
    const Tensor& keys(int64_t layer) const { return keys_[static_cast<size_t>(layer)]; }  // [rows,H_kv,capacity,D]
    const Tensor& values(int64_t layer) const {
        return values_[static_cast<size_t>(layer)];
    }  // undefined at capacity 0
    int64_t rows() const { return shape_.rows; }
    int64_t capacity() const { return capacity_; }
    int64_t bytes() const;                        // of all layers and rows
    int64_t bytes_for(int64_t tokens) const;      // the same at a capacity of so many tokens
    int64_t version() const { return version_; }  // other tensors than before

  private:
    Shape shape_;
    std::vector<Tensor> keys_, values_;
    int64_t capacity_ = 0, expected_ = 0, version_ = 0;
};

// Some rows of it, those of one decode state.
struct KvRows {
    std::shared_ptr<KvMemory> memory;
    int64_t first = 0, count = 1;

    Tensor keys(int64_t layer) const { return memory->keys(layer).sliced(0, first, count); }
    Tensor values(int64_t layer) const { return memory->values(layer).sliced(0, first, count); }
    int64_t bytes() const { return memory->bytes() / memory->rows() * count; }
};

}  // namespace lc::models
