// Streams and events with an owner, without a CUDA header. A build without CUDA refuses to make them.
#pragma once
#include <cstdint>

#include "core/device.h"

namespace lc::cuda {

// Waiting kernels of a low stream get multiprocessors that no waiting kernel of a normal one wants.
enum class Priority : uint8_t { normal, low };

class OwnedStream {
  public:
    explicit OwnedStream(int device_index, Priority priority = Priority::normal);
    ~OwnedStream();
    OwnedStream(const OwnedStream&) = delete;
    OwnedStream& operator=(const OwnedStream&) = delete;
    Stream get() const { return stream_; }

  private:
    Stream stream_;
};

// A point in a stream's work, on the device that is the calling thread's current one when the event is made (make_current).
// `timed` events can be subtracted; those that are not let the host sleep while it waits.
class Event {
  public:
    explicit Event(bool timed = false);
    ~Event();
    Event(const Event&) = delete;
    Event& operator=(const Event&) = delete;
    void record(Stream stream);
    bool reached() const;                       // does not wait; true before the first record
    void wait();                                // the host waits
    void block(Stream stream);                  // later work of `stream` waits
    double ms_since(const Event& start) const;  // both timed and reached

  private:
    void* handle_ = nullptr;  // cudaEvent_t
};

}  // namespace lc::cuda
