// Streams and events with an owner.
#pragma once
#include "core/cuda/check.h"

namespace lc::cuda {

class OwnedStream {
  public:
    explicit OwnedStream(int device_index);
    ~OwnedStream();
    OwnedStream(const OwnedStream&) = delete;
    OwnedStream& operator=(const OwnedStream&) = delete;
    Stream get() const { return {{DeviceType::cuda, device_index_}, handle_}; }

  private:
    int device_index_;
    cudaStream_t handle_ = nullptr;
};

// A point in a stream's work. `timed` events can be subtracted.
class Event {
  public:
    explicit Event(bool timed = false);
    ~Event();
    Event(const Event&) = delete;
    Event& operator=(const Event&) = delete;
    void record(Stream stream);
    void wait();                     // the host waits
    void block(Stream stream);       // later work of `stream` waits
    double ms_since(const Event& start) const;  // both timed and reached

  private:
    cudaEvent_t handle_ = nullptr;
};

}  // namespace lc::cuda
