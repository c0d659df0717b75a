// The CUDA runtime of a build without CUDA.
#include "core/cuda/graph.h"
#include "core/cuda/runtime.h"
#include "core/cuda/stream.h"

namespace lc::cuda {
namespace {
[[noreturn]] void refuse() {
    fail(ErrorKind::Resource, "this build has no CUDA; it computes on the CPU");
}
}  // namespace

int device_count() { return 0; }
DeviceInfo device_info(int) { refuse(); }
std::byte* allocate(Device, int64_t) { refuse(); }
void release(Device, std::byte*) {}
std::byte* allocate_pinned(int64_t) { refuse(); }
void release_pinned(std::byte*) {}
void push_range(const char*) {}
void pop_range() {}
void profiler_start() { refuse(); }
void profiler_stop() { refuse(); }
Stream default_stream(int) { refuse(); }
void make_current(Device) { refuse(); }
void synchronize(Stream) { refuse(); }
void fill_bytes(std::byte*, int, int64_t, Stream) { refuse(); }
void copy_bytes(std::byte*, const std::byte*, int64_t, Stream) { refuse(); }
void copy_strided(const TensorView&, const TensorView&, Stream) { refuse(); }
void fill(const TensorView&, double, Stream) { refuse(); }
void fill_normal(const TensorView&, double, const Random&, Stream) { refuse(); }

OwnedStream::OwnedStream(int, Priority) { refuse(); }
OwnedStream::~OwnedStream() = default;
Event::Event(bool) { refuse(); }
Event::~Event() = default;
void Event::record(Stream) { refuse(); }
bool Event::reached() const { refuse(); }
void Event::wait() { refuse(); }
void Event::block(Stream) { refuse(); }
double Event::ms_since(const Event&) const { refuse(); }

Graph::Graph(Device device) : stream_(device.index) {}
Graph::~Graph() = default;
void Graph::record(const std::function<void()>&) { refuse(); }
void Graph::launch(Stream) const { refuse(); }
bool Graph::possible() { return false; }

}  // namespace lc::cuda
