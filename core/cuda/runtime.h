// What the library asks of the CUDA runtime, without a CUDA header: allocation, copies, streams. Defined in runtime.cpp and
// copy.cu, or, in a build without CUDA, in absent.cpp: no device there, and a plain refusal.
#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "core/tensor.h"

namespace lc {
class Random;
}

namespace lc::cuda {

// Front doors of ops reach for a CUDA kernel only where it was compiled: if constexpr (cuda::kBuilt) ...
#if LOLCATS_HAVE_CUDA
inline constexpr bool kBuilt = true;
#else
inline constexpr bool kBuilt = false;
#endif

// Devices that this process can use; 0 without a driver.
int device_count();

struct DeviceInfo {
    std::string name;
    int major = 0, minor = 0;  // compute capability
    int64_t memory_bytes = 0, free_bytes = 0;
    int64_t l2_bytes = 0;
    int multiprocessors = 0;
};
DeviceInfo device_info(int index);

// --- memory: raw blocks from the driver, for core's allocator only ---
std::byte* allocate(Device device, int64_t bytes);  // null when the device has no more
void release(Device device, std::byte* block);
// Host memory that the device can copy from and to without staging.
std::byte* allocate_pinned(int64_t bytes);
void release_pinned(std::byte* block);
struct ReleasePinned {
    void operator()(std::byte* block) const { release_pinned(block); }
};
using PinnedBuffer = std::unique_ptr<std::byte[], ReleasePinned>;  // PinnedBuffer(allocate_pinned(bytes))

// --- profilers: what Nsight shows; nothing in a build without CUDA ---
void push_range(const char* name);
void pop_range();
// cudaProfilerStart and Stop: what lies between is what `nsys -c cudaProfilerApi` records.
void profiler_start();
void profiler_stop();

// --- streams ---
// The stream on which this process queues work for a device by default; made on first use.
Stream default_stream(int index);
// Makes `stream`'s device the calling thread's current one, as launches need.
void make_current(Device device);
// Waits for all work queued on one stream.
void synchronize(Stream stream);

// --- data ---
// All are queued on `stream`. A copy that touches pageable host memory is finished when it returns.
void fill_bytes(std::byte* to, int value, int64_t bytes, Stream stream);
void copy_bytes(std::byte* to, const std::byte* from, int64_t bytes, Stream stream);
// Same shape, any layouts and dtypes, both on the stream's device.
void copy_strided(const TensorView& from, const TensorView& to, Stream stream);
void fill(const TensorView& to, double value, Stream stream);
// A contiguous tensor of N(0, deviation^2): element i is random.normal(i), rounded to f32 and then to the dtype.
void fill_normal(const TensorView& to, double deviation, const Random& random, Stream stream);

}  // namespace lc::cuda
