// A tensor that a node keeps from forward to backward. It knows its name, counts its bytes, notices when somebody wrote
// into the memory in between, and lets go of it when the engine says so.
#pragma once
#include <cstdint>
#include <string_view>

#include "core/tensor.h"

namespace lc {

class Node;

class SavedTensor {
  public:
    SavedTensor(Node* owner, std::string_view name);  // registers with the owner: SavedTensor x{this, "x"};
    SavedTensor(const SavedTensor&) = delete;
    SavedTensor& operator=(const SavedTensor&) = delete;

    // Keeps the values without autograd metadata, so an output saved by its own node makes no cycle.
    void save(const Tensor& tensor);
    // The tensor; undefined if none was saved. Throws when it was written in place since, or already released.
    const Tensor& get() const;
    TensorView view() const { return get().view(); }

    std::string_view name() const { return name_; }
    int64_t bytes() const { return tensor_.defined() ? tensor_.nbytes() : 0; }
    const Tensor& peek() const { return tensor_; }  // for printing: no checks
    void release();

  private:
    Node* owner_;
    std::string_view name_;
    Tensor tensor_;
    uint64_t version_ = 0;
    bool released_ = false;
};

}  // namespace lc
