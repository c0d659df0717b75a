#include "core/device.h"

#include "core/cuda/runtime.h"

namespace lc {
namespace {
thread_local const StreamScope* innermost = nullptr;
}

StreamScope::StreamScope(Stream stream) : stream_(stream), outer_(innermost) { innermost = this; }
StreamScope::~StreamScope() { innermost = outer_; }

Stream current_stream(Device device) {
    if (device.is_cpu()) return {};
    const StreamScope* scope = innermost;
    while (scope && scope->stream_.device != device) scope = scope->outer_;
    const Stream stream = scope ? scope->stream_ : cuda::default_stream(device.index);
    cuda::make_current(device);
    return stream;
}

void synchronize(Device device) {
    if (device.is_cuda()) cuda::synchronize(current_stream(device));
}

}  // namespace lc
