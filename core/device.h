// Where memory lives and work is queued. Explicit everywhere: no global device.
#pragma once
#include <cstdint>
#include <string>

// Marks what kernels may call on the device too.
#ifdef __CUDACC__
#define LC_HOST_DEVICE __host__ __device__
#else
#define LC_HOST_DEVICE
#endif

namespace lc {

enum class DeviceType : uint8_t { cpu, cuda };

struct Device {
    DeviceType type = DeviceType::cpu;
    int index = 0;
    bool is_cpu() const { return type == DeviceType::cpu; }
    bool is_cuda() const { return type == DeviceType::cuda; }
    bool operator==(const Device&) const = default;
    std::string str() const { return is_cpu() ? "cpu" : "cuda:" + std::to_string(index); }
};

// An ordered queue of work. On the CPU work is done when a call returns, so the handle is empty.
struct Stream {
    Device device;
    void* handle = nullptr;
};

// The stream that this thread's ops use for tensors on `device`: that of the innermost StreamScope for the device, else
// the device's default one. Throws Error(Resource) when there is no such device.
Stream current_stream(Device device);

// While one lives, ops of this thread queue their work for `stream.device` on `stream`.
class StreamScope {
  public:
    explicit StreamScope(Stream stream);
    ~StreamScope();
    StreamScope(const StreamScope&) = delete;
    StreamScope& operator=(const StreamScope&) = delete;

  private:
    Stream stream_;
    const StreamScope* outer_;
    friend Stream current_stream(Device);
};

// Waits until the work queued on the current stream of `device` is done.
void synchronize(Device device);

}  // namespace lc
