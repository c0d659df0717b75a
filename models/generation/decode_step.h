// One token for every sequence of a batch at once, each at a position of its own: the step that a running batch repeats.
#pragma once
#include <memory>
#include <span>
#include <vector>

#include "core/cuda/graph.h"
#include "models/generation/generator.h"

namespace lc::models {

// What differs from step to step, ids and positions, lies in tensors, and every layer keeps a memory of constant size. So on a GPU the
// first step is recorded and the others are one launch each.
class DecodeStep {
  public:
    // Every layer must be linearized. Keeps a reference to the decoder, whose tensors must stay as they are; shares the caches'
    // memory.
    DecodeStep(const Decoder& decoder, std::vector<LayerCache> layers, Terms terms);

    // ids [B,1] on any device: ids[b] joins sequence b as token positions[b]; below 0 the sequence is idle, and its state stays.
    // Returns logits [B,V], which the next call overwrites; those of idle sequences mean nothing.
    // Throws Error(Usage) beyond max_position_embeddings.
    Tensor run(const Tensor& ids, std::span<const int64_t> positions);

  private:
    Tensor compute() const;
    Tensor record();

    const Decoder& decoder_;
    std::vector<LayerCache> layers_;
    Terms terms_;
    Tensor ids_, positions_, logits_;
    std::unique_ptr<cuda::Graph> graph_;
    bool recordable_;
};

}  // namespace lc::models
