#include "core/allocator.h"

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <set>
#include <vector>

#include "core/check.h"
#include "core/cuda/runtime.h"

namespace lc {
namespace {

constexpr int64_t kGuardBytes = 256;
constexpr unsigned char kGuardByte = 0xa5;
std::atomic<int> debug_depth{0};
std::atomic<int64_t> violations{0};

// Rounds up to 1/8 of the leading power of two: at most 12.5 % waste, few classes.
int64_t size_class(int64_t bytes, int64_t alignment) {
    int64_t step = alignment;
    while (step * 16 < bytes) step *= 2;
    return std::max<int64_t>((bytes + step - 1) / step * step, alignment);
}

// Where blocks come from and how their bytes are reached: host memory here, device memory below.
struct HostMemory {
    static constexpr int64_t kAlignment = 64;
    Device device;
    std::byte* allocate(int64_t bytes) const {
        return static_cast<std::byte*>(std::aligned_alloc(kAlignment, static_cast<size_t>(bytes)));
    }
    void release(std::byte* block) const { std::free(block); }
    void fill(std::byte* to, int value, int64_t bytes, Stream) const {
        std::memset(to, value, static_cast<size_t>(bytes));
    }
    void read(std::byte* to, const std::byte* from, int64_t bytes, Stream) const {
        std::memcpy(to, from, static_cast<size_t>(bytes));
    }
};

struct CudaMemory {
    static constexpr int64_t kAlignment = 256;
    Device device;
    std::byte* allocate(int64_t bytes) const { return cuda::allocate(device, bytes); }
    void release(std::byte* block) const { cuda::release(device, block); }
    void fill(std::byte* to, int value, int64_t bytes, Stream stream) const {
        cuda::fill_bytes(to, value, bytes, stream);
    }
    void read(std::byte* to, const std::byte* from, int64_t bytes, Stream stream) const {
        cuda::copy_bytes(to, from, bytes, stream);
    }
};

template <class Memory>
class CachingAllocator final : public Allocator {
  public:
    explicit CachingAllocator(Memory memory) : memory_(memory) {}

    std::shared_ptr<std::byte> allocate(int64_t bytes, Stream stream) override {
        LC_CHECK(bytes >= 0, "allocation of {} bytes", bytes);
        LC_CHECK(stream.device == memory_.device, "allocation on {} for a stream of {}", memory_.device.str(),
                 stream.device.str());
        if (debug_depth.load(std::memory_order_relaxed) > 0) return allocate_guarded(bytes, stream);
        const Key key{stream.handle, size_class(bytes, Memory::kAlignment)};
        return {take(key), [this, key](std::byte* p) { give(p, key); }};
    }

    AllocatorStats stats() const override {
        std::lock_guard lock(mutex_);
        return stats_;
    }
    void reset_peak() override {
        std::lock_guard lock(mutex_);
        stats_.peak_bytes = stats_.bytes_in_use;
    }
    void release_cached() override {
        std::lock_guard lock(mutex_);
        release_cached_locked();
    }
    void keep_cached(Stream stream, bool keep) override {
        std::lock_guard lock(mutex_);
        if (keep)
            kept_.insert(stream.handle);
        else
            kept_.erase(stream.handle);
    }

  private:
    using Key = std::pair<void*, int64_t>;  // stream and size class

    std::byte* take(const Key& key) {
        std::lock_guard lock(mutex_);
        std::byte* block = nullptr;
        if (auto it = free_.find(key); it != free_.end() && !it->second.empty()) {
            block = it->second.back();
            it->second.pop_back();
        } else {
            block = ask(key.second);
            stats_.bytes_reserved += key.second;
        }
        stats_.bytes_in_use += key.second;
        stats_.peak_bytes = std::max(stats_.peak_bytes, stats_.bytes_in_use);
        return block;
    }
    std::byte* ask(int64_t bytes) {
        std::byte* block = memory_.allocate(bytes);
        if (!block) {
            release_cached_locked();
            block = memory_.allocate(bytes);
        }
        LC_REQUIRE(Resource, block != nullptr, "out of memory on {}: wanted {} bytes, {} are in use by this process",
                   memory_.device.str(), bytes, stats_.bytes_in_use);
        stats_.system_allocations++;
        return block;
    }
    void give(std::byte* block, const Key& key) {
        std::lock_guard lock(mutex_);
        stats_.bytes_in_use -= key.second;
        free_[key].push_back(block);
    }
    void release_cached_locked() {
        std::erase_if(free_, [this](const auto& entry) {
            const auto& [key, blocks] = entry;
            if (kept_.contains(key.first)) return false;
            for (std::byte* block : blocks) memory_.release(block);
            stats_.bytes_reserved -= key.second * static_cast<int64_t>(blocks.size());
            return true;
        });
    }

    std::shared_ptr<std::byte> allocate_guarded(int64_t bytes, Stream stream) {
        const int64_t body = (bytes + Memory::kAlignment - 1) / Memory::kAlignment * Memory::kAlignment;
        const int64_t total = body + 2 * kGuardBytes;
        std::byte* raw = memory_.allocate(total);
        LC_REQUIRE(Resource, raw != nullptr, "out of memory on {}: wanted {} bytes", memory_.device.str(), bytes);
        memory_.fill(raw, kGuardByte, total, stream);
        memory_.fill(raw + kGuardBytes, 0xff, bytes, stream);
        return {raw + kGuardBytes, [this, raw, bytes, total, stream](std::byte*) {
                    if (!is_intact(raw, bytes, total, stream)) violations++;
                    memory_.release(raw);
                }};
    }
    bool is_intact(const std::byte* raw, int64_t bytes, int64_t total, Stream stream) const noexcept {
        std::vector<std::byte> content(static_cast<size_t>(total));
        try {
            memory_.read(content.data(), raw, total, stream);
        } catch (const Error&) {
            return true;  // a device in fault says so elsewhere, one that went before a static tensor did has no more to say
        }
        const auto is_guard = [](std::byte b) { return b == std::byte{kGuardByte}; };
        return std::all_of(content.begin(), content.begin() + kGuardBytes, is_guard) &&
               std::all_of(content.begin() + kGuardBytes + bytes, content.end(), is_guard);
    }

    const Memory memory_;
    mutable std::mutex mutex_;
    std::map<Key, std::vector<std::byte*>> free_;
    std::set<void*> kept_;  // streams
    AllocatorStats stats_;
};

Allocator& cuda_allocator(Device device) {
    static std::mutex mutex;
    static auto* allocators = new std::map<int, std::unique_ptr<Allocator>>;
    std::lock_guard lock(mutex);
    std::unique_ptr<Allocator>& allocator = (*allocators)[device.index];
    if (!allocator) allocator = std::make_unique<CachingAllocator<CudaMemory>>(CudaMemory{device});
    return *allocator;
}

}  // namespace

Allocator& allocator(Device device) {
    // Never destroyed: tensors with static lifetime may outlive main.
    static auto* cpu = new CachingAllocator<HostMemory>(HostMemory{});
    return device.is_cuda() ? cuda_allocator(device) : *cpu;
}

ScopedMemoryDebug::ScopedMemoryDebug() {
    debug_depth++;
}
ScopedMemoryDebug::~ScopedMemoryDebug() {
    debug_depth--;
}
int64_t ScopedMemoryDebug::guard_violations() {
    return violations.load();
}

}  // namespace lc
