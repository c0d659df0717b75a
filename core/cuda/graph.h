// Work that is recorded once and queued again with one call: what a decode step costs the host.
#pragma once
#include <functional>

#include "core/cuda/stream.h"

namespace lc::cuda {

// The recorded work reads and writes the same addresses in every launch, so whatever differs from launch to launch lies in
// tensors that the caller made before and fills between launches. Memory that the work itself asks for comes from the
// graph's own stream, whose blocks the allocator hands to nobody else and keeps for as long as the graph lives.
class Graph {
  public:
    explicit Graph(Device device);
    ~Graph();
    Graph(const Graph&) = delete;
    Graph& operator=(const Graph&) = delete;

    // Calls `work` twice on this thread: once to run, behind what the current stream holds, so that memory and algorithms are
    // there; and once to be recorded, which runs nothing. It must queue the same both times and wait for nothing. Throws what
    // `work` throws, and Error(Internal) for what cannot be recorded.
    void record(const std::function<void()>& work);
    bool recorded() const { return executable_ != nullptr; }
    // Queues the recorded work. Launches of one graph must be ordered, as those on one stream are.
    void launch(Stream stream) const;

    // False where each launch shall be waited for (LC_DEBUG_SYNC=1), which nothing recorded can be.
    static bool possible();

  private:
    OwnedStream stream_;
    void* executable_ = nullptr;  // cudaGraphExec_t
};

}  // namespace lc::cuda
