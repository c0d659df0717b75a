// Memory for tensors. One caching allocator a device: freed blocks are kept in size classes and handed out again, so that
// a warm training or decode step asks the system for nothing (`system_allocations` stays put; a test asserts it).
#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>

#include "core/device.h"

namespace lc {

struct AllocatorStats {
    int64_t bytes_in_use = 0;
    int64_t peak_bytes = 0;
    int64_t bytes_reserved = 0;       // in use or cached
    int64_t system_allocations = 0;   // how often the system was asked
};

class Allocator {
  public:
    virtual ~Allocator() = default;
    // Shared ownership of `bytes` bytes, aligned to 64 bytes on the CPU and 256 on a GPU; returned to the cache when the
    // last owner goes. On a GPU a cached block is handed out again on the same stream only, whose order makes reuse safe
    // without waiting. Throws Error(Resource) when the system has no more, after giving back what was cached.
    virtual std::shared_ptr<std::byte> allocate(int64_t bytes, Stream stream) = 0;
    virtual AllocatorStats stats() const = 0;
    virtual void reset_peak() = 0;
    virtual void release_cached() = 0;
    // While kept, blocks cached for `stream` are not given back to the system: something recorded still uses them.
    virtual void keep_cached(Stream stream, bool keep) = 0;
};

Allocator& allocator(Device device);

// While one lives, new blocks are filled with NaN bytes (0xff) and carry guard bands, which are checked when the
// block is freed. Tests use it to prove that ops write every element of their outputs and nothing beside them.
class ScopedMemoryDebug {
  public:
    ScopedMemoryDebug();
    ~ScopedMemoryDebug();
    ScopedMemoryDebug(const ScopedMemoryDebug&) = delete;
    ScopedMemoryDebug& operator=(const ScopedMemoryDebug&) = delete;
    static int64_t guard_violations();  // since the process started
};

}  // namespace lc
