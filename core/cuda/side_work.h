// Work beside other work: on a stream of lower priority, which a device serves where the rest leaves room, in the last wave of a
// product or under a kernel that waits for memory.
#pragma once
#include <functional>
#include <memory>

#include "core/cuda/stream.h"

namespace lc::cuda {

// The stream of such work, for as long as its owner has some. On a CPU there is one queue and this is it.
class SideQueue {
  public:
    explicit SideQueue(Device device);

  private:
    friend class SideWork;
    Device device_;
    std::unique_ptr<OwnedStream> stream_;  // null: none beside the current one
    std::unique_ptr<Event> ready_, done_;
};

// Calls `work`, and lets what it queues begin when all that the current stream holds is done. When this goes, the current stream
// waits for it: until then what `work` reads must stay alive and as it is. Memory that `work` asks for comes from the side's cache
// (core/allocator.h) and may outlive this; whoever writes to it must be on the side, too, or come after.
// In place on a CPU, and while zones are timed (core/profile.h), which must not overlap. Throws what `work` throws.
class SideWork {
  public:
    SideWork(SideQueue& queue, const std::function<void()>& work);
    ~SideWork();
    SideWork(const SideWork&) = delete;
    SideWork& operator=(const SideWork&) = delete;

  private:
    void join() noexcept;
    SideQueue* queue_ = nullptr;  // null: nothing to wait for
};

}  // namespace lc::cuda
