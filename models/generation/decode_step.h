// One token for every sequence of a batch at once, each at a position of its own: the step that a running batch repeats.
#pragma once
#include <array>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "core/cuda/graph.h"
#include "core/cuda/runtime.h"
#include "models/generation/device_sampler.h"
#include "models/generation/generator.h"

namespace lc::models {

// What differs from step to step, ids and positions, lies in tensors. So on a GPU the first step is recorded and the others are one
// launch each; where softmax layers keep keys and values, it is recorded anew when their memory grows.
class DecodeStep {
  public:
    // Keeps a reference to the decoder, whose tensors must stay as they are; shares the memory of caches, keys and values.
    DecodeStep(const Decoder& decoder, std::vector<LayerCache> layers, KvRows kv, Terms terms);

    // ids [B,1] on any device: ids[b] joins sequence b as token positions[b]; below 0 the sequence is idle, and its state stays.
    // Returns logits [B,V], which the next call overwrites; those of idle sequences mean nothing.
    // Throws Error(Usage) beyond max_position_embeddings.
    Tensor run(const Tensor& ids, std::span<const int64_t> positions);
    // The same for the ids that the sampler drew last, whose place the next ones take. Waits for nothing, so that the host can queue
    // a step while it reads the results of the one before. The sampler must outlive this.
    void draw(DeviceSampler& sampler, std::span<const int64_t> positions);

  private:
    using Recording = std::unique_ptr<cuda::Graph>;
    Tensor compute(const Tensor& ids) const;
    void place(std::span<const int64_t> positions);
    void play(Recording& recording, const std::function<void()>& work);
    void forget(Recording& recording);

    const Decoder& decoder_;
    std::vector<LayerCache> layers_;
    KvRows kv_;
    int64_t kv_version_ = 0;
    Terms terms_;
    Tensor ids_, positions_, logits_;
    Recording run_, draw_;
    const DeviceSampler* sampler_ = nullptr;  // whose draw was recorded
    int64_t sampler_version_ = 0;
    bool recordable_;

    // Positions on their way to a GPU.
    struct Mail {
        cuda::PinnedBuffer pinned;
        std::unique_ptr<cuda::Event> arrived;
    };
    std::array<Mail, DeviceSampler::kInFlight + 1> mail_;
    size_t next_mail_ = 0;
};

}  // namespace lc::models
