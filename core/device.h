// Where memory lives and work is queued. Explicit everywhere: no global device.
#pragma once
#include <cstdint>
#include <string>

namespace lc {

enum class DeviceType : uint8_t { cpu, cuda };

struct Device {
    DeviceType type = DeviceType::cpu;
    int index = 0;
    bool is_cpu() const { return type == DeviceType::cpu; }
    bool operator==(const Device&) const = default;
    std::string str() const { return is_cpu() ? "cpu" : "cuda:" + std::to_string(index); }
};

// An ordered queue of work. On the CPU work is done when a call returns, so the handle is empty.
struct Stream {
    Device device;
    void* handle = nullptr;
};

// The stream that ops of this thread use.
Stream current_stream();

}  // namespace lc
