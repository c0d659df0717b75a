#include "core/cuda/side_work.h"

#include "core/check.h"
#include "core/cuda/runtime.h"
#include "core/log.h"
#include "core/profile.h"

namespace lc::cuda {

SideQueue::SideQueue(Device device) : device_(device) {
    if (device.is_cpu()) return;
    stream_ = std::make_unique<OwnedStream>(device.index, Priority::low);
    ready_ = std::make_unique<Event>(), done_ = std::make_unique<Event>();
}

SideWork::SideWork(SideQueue& queue, const std::function<void()>& work) {
    if (!queue.stream_ || profile_enabled()) {
        work();
        return;
    }
    queue_ = &queue;
    const Stream side = queue.stream_->get();
    queue.ready_->record(current_stream(queue.device_)), queue.ready_->block(side);
    try {
        const StreamScope scope(side);
        work();
    } catch (...) {
        join();
        throw;
    }
}

SideWork::~SideWork() {
    if (queue_) join();
}

void SideWork::join() noexcept {
    try {
        queue_->done_->record(queue_->stream_->get()), queue_->done_->block(current_stream(queue_->device_));
    } catch (const Error& error) {
        log_line(LogLevel::Error, error.what());  // of a device in fault; the next call meets it again
    }
}

}  // namespace lc::cuda
