#include "core/cuda/runtime.h"

#include <cuda_profiler_api.h>
#include <nvtx3/nvToolsExt.h>

#include <algorithm>
#include <cstdlib>
#include <map>
#include <memory>
#include <mutex>

#include "core/cuda/check.h"
#include "core/cuda/stream.h"
#include "core/log.h"

namespace lc::cuda {
namespace {

// Destructors must not throw; at process exit the driver may be gone already.
void log_failure(cudaError_t error, const char* what) {
    if (error != cudaSuccess && error != cudaErrorCudartUnloading)
        log_line(LogLevel::Error, fmt::format("{}: {}", what, cudaGetErrorString(error)));
}

cudaEvent_t event(void* handle) {
    return static_cast<cudaEvent_t>(handle);
}

}  // namespace

void fail_cuda(cudaError_t error, const char* what, const char* file, int line) {
    const bool resource = error == cudaErrorMemoryAllocation || error == cudaErrorNoDevice ||
                          error == cudaErrorInsufficientDriver || error == cudaErrorInvalidDevice;
    fail(resource ? ErrorKind::Resource : ErrorKind::Internal, "CUDA: {} ({}) in {} at {}:{}", cudaGetErrorString(error),
         cudaGetErrorName(error), what, file, line);
}

bool waits_for_launches() {
    static const bool on = [] {
        const char* value = std::getenv("LC_DEBUG_SYNC");
        return value && *value && *value != '0';
    }();
    return on;
}

void check_launch(const char* op, cudaStream_t stream) {
    cudaError_t error = cudaGetLastError();
    if (error == cudaSuccess && waits_for_launches()) error = cudaStreamSynchronize(stream);
    if (error != cudaSuccess) [[unlikely]]
        fail(ErrorKind::Internal, "{}: CUDA kernel failed: {} ({})", op, cudaGetErrorString(error),
             cudaGetErrorName(error));
}

int device_count() {
    int count = 0;
    if (cudaGetDeviceCount(&count) == cudaSuccess) return count;
    cudaGetLastError();  // no driver is an answer, not an error to be found by the next launch
    return 0;
}

DeviceInfo device_info(int index) {
    const int count = device_count();
    LC_REQUIRE(Resource, index >= 0 && index < count, "cuda:{}: this machine has {} CUDA devices", index, count);
    cudaDeviceProp properties{};
    LC_CUDA(cudaGetDeviceProperties(&properties, index));
    make_current({DeviceType::cuda, index});
    size_t free = 0, total = 0;
    LC_CUDA(cudaMemGetInfo(&free, &total));
    return {.name = properties.name,
            .major = properties.major,
            .minor = properties.minor,
            .memory_bytes = static_cast<int64_t>(total),
            .free_bytes = static_cast<int64_t>(free),
            .l2_bytes = properties.l2CacheSize,
            .multiprocessors = properties.multiProcessorCount};
}

std::byte* allocate(Device device, int64_t bytes) {
    make_current(device);
    void* block = nullptr;
    const cudaError_t error = cudaMalloc(&block, static_cast<size_t>(bytes));
    if (error == cudaErrorMemoryAllocation) {
        cudaGetLastError();
        return nullptr;
    }
    LC_CUDA(error);
    return static_cast<std::byte*>(block);
}

void release(Device device, std::byte* block) {
    make_current(device);
    log_failure(cudaFree(block), "cudaFree");
}

std::byte* allocate_pinned(int64_t bytes) {
    void* block = nullptr;
    LC_CUDA(cudaMallocHost(&block, static_cast<size_t>(bytes)));
    return static_cast<std::byte*>(block);
}

void release_pinned(std::byte* block) {
    log_failure(cudaFreeHost(block), "cudaFreeHost");
}

void push_range(const char* name) {
    nvtxRangePushA(name);
}
void pop_range() {
    nvtxRangePop();
}
void profiler_start() {
    LC_CUDA(cudaProfilerStart());
}
void profiler_stop() {
    LC_CUDA(cudaProfilerStop());
}

Stream default_stream(int index) {
    static std::mutex mutex;
    static auto* streams = new std::map<int, std::unique_ptr<OwnedStream>>;  // never destroyed: the driver may go first
    std::lock_guard lock(mutex);
    std::unique_ptr<OwnedStream>& stream = (*streams)[index];
    if (!stream) {
        device_info(index);  // says in words when there is no such device
        stream = std::make_unique<OwnedStream>(index);
    }
    return stream->get();
}

void make_current(Device device) {
    thread_local int current = -1;
    if (current == device.index) return;
    LC_CUDA(cudaSetDevice(device.index));
    current = device.index;
}

void synchronize(Stream stream) {
    LC_CUDA(cudaStreamSynchronize(handle_of(stream)));
}

void fill_bytes(std::byte* to, int value, int64_t bytes, Stream stream) {
    if (bytes > 0) LC_CUDA(cudaMemsetAsync(to, value, static_cast<size_t>(bytes), handle_of(stream)));
}

void copy_bytes(std::byte* to, const std::byte* from, int64_t bytes, Stream stream) {
    if (bytes == 0) return;
    LC_CUDA(cudaMemcpyAsync(to, from, static_cast<size_t>(bytes), cudaMemcpyDefault, handle_of(stream)));
    // A copy from pageable memory may still be reading it, one into it may not have arrived: wait for those.
    const auto pageable = [](const void* p) {
        cudaPointerAttributes attributes{};
        const cudaError_t error = cudaPointerGetAttributes(&attributes, p);
        if (error != cudaSuccess) cudaGetLastError();
        return error != cudaSuccess || attributes.type == cudaMemoryTypeUnregistered;
    };
    if (pageable(to) || pageable(from)) synchronize(stream);
}

OwnedStream::OwnedStream(int device_index, Priority priority) : stream_{{DeviceType::cuda, device_index}, nullptr} {
    make_current(stream_.device);
    // Numbers fall as priorities rise. What a stream has by default is the lowest, so a normal one is a step above that.
    int lowest = 0, highest = 0;
    LC_CUDA(cudaDeviceGetStreamPriorityRange(&lowest, &highest));
    const int value = priority == Priority::low ? lowest : std::max(lowest - 1, highest);
    cudaStream_t handle = nullptr;
    LC_CUDA(cudaStreamCreateWithPriority(&handle, cudaStreamNonBlocking, value));
    stream_.handle = handle;
}
OwnedStream::~OwnedStream() {
    log_failure(cudaStreamDestroy(handle_of(stream_)), "cudaStreamDestroy");
}

Event::Event(bool timed) {
    cudaEvent_t handle = nullptr;
    LC_CUDA(cudaEventCreateWithFlags(&handle, timed ? cudaEventDefault : cudaEventDisableTiming | cudaEventBlockingSync));
    handle_ = handle;
}
Event::~Event() {
    log_failure(cudaEventDestroy(event(handle_)), "cudaEventDestroy");
}
void Event::record(Stream stream) {
    LC_CUDA(cudaEventRecord(event(handle_), handle_of(stream)));
}
bool Event::reached() const {
    const cudaError_t status = cudaEventQuery(event(handle_));
    if (status == cudaErrorNotReady) {
        cudaGetLastError();  // an answer, not an error to be found by the next launch
        return false;
    }
    LC_CUDA(status);
    return true;
}
void Event::wait() {
    LC_CUDA(cudaEventSynchronize(event(handle_)));
}
void Event::block(Stream stream) {
    LC_CUDA(cudaStreamWaitEvent(handle_of(stream), event(handle_), 0));
}
double Event::ms_since(const Event& start) const {
    float ms = 0;
    LC_CUDA(cudaEventElapsedTime(&ms, event(start.handle_), event(handle_)));
    return ms;
}

}  // namespace lc::cuda
