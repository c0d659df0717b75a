#include "core/allocator.h"

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <vector>

#include "core/check.h"

namespace lc {
namespace {

constexpr int64_t kAlignment = 64;
constexpr int64_t kGuardBytes = 256;
constexpr unsigned char kGuardByte = 0xa5;
std::atomic<int> debug_depth{0};
std::atomic<int64_t> violations{0};

// Rounds up to 1/8 of the leading power of two: at most 12.5 % waste, few classes.
int64_t size_class(int64_t bytes) {
    int64_t step = kAlignment;
    while (step * 16 < bytes) step *= 2;
    return std::max<int64_t>((bytes + step - 1) / step * step, kAlignment);
}

class CpuAllocator final : public Allocator {
  public:
    std::shared_ptr<std::byte> allocate(int64_t bytes, Stream) override {
        LC_CHECK(bytes >= 0, "allocation of {} bytes", bytes);
        if (debug_depth.load(std::memory_order_relaxed) > 0) return allocate_guarded(bytes);
        const int64_t size = size_class(bytes);
        std::byte* block = take(size);
        return {block, [this, size](std::byte* p) { give(p, size); }};
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
        for (auto& [size, blocks] : free_) {
            for (std::byte* block : blocks) std::free(block);
            stats_.bytes_reserved -= size * static_cast<int64_t>(blocks.size());
        }
        free_.clear();
    }

  private:
    std::byte* take(int64_t size) {
        std::lock_guard lock(mutex_);
        std::byte* block = nullptr;
        if (auto it = free_.find(size); it != free_.end() && !it->second.empty()) {
            block = it->second.back();
            it->second.pop_back();
        } else {
            block = static_cast<std::byte*>(std::aligned_alloc(kAlignment, static_cast<size_t>(size)));
            LC_REQUIRE(Resource, block != nullptr, "out of host memory: wanted {} bytes, {} in use, {} cached", size,
                       stats_.bytes_in_use, stats_.bytes_reserved - stats_.bytes_in_use);
            stats_.system_allocations++;
            stats_.bytes_reserved += size;
        }
        stats_.bytes_in_use += size;
        stats_.peak_bytes = std::max(stats_.peak_bytes, stats_.bytes_in_use);
        return block;
    }
    void give(std::byte* block, int64_t size) {
        std::lock_guard lock(mutex_);
        stats_.bytes_in_use -= size;
        free_[size].push_back(block);
    }

    static std::shared_ptr<std::byte> allocate_guarded(int64_t bytes) {
        const int64_t body = (bytes + kAlignment - 1) / kAlignment * kAlignment;
        auto* raw = static_cast<std::byte*>(std::aligned_alloc(kAlignment, static_cast<size_t>(body + 2 * kGuardBytes)));
        LC_REQUIRE(Resource, raw != nullptr, "out of host memory: wanted {} bytes", bytes);
        std::memset(raw, kGuardByte, static_cast<size_t>(body + 2 * kGuardBytes));
        std::memset(raw + kGuardBytes, 0xff, static_cast<size_t>(bytes));
        return {raw + kGuardBytes, [raw, bytes, body](std::byte*) {
                    const auto* p = reinterpret_cast<const unsigned char*>(raw);
                    const auto is_guard = [](unsigned char c) { return c == kGuardByte; };
                    const bool intact = std::all_of(p, p + kGuardBytes, is_guard) &&
                                        std::all_of(p + kGuardBytes + bytes, p + body + 2 * kGuardBytes, is_guard);
                    if (!intact) violations++;
                    std::free(raw);
                }};
    }

    mutable std::mutex mutex_;
    std::map<int64_t, std::vector<std::byte*>> free_;
    AllocatorStats stats_;
};

}  // namespace

Allocator& allocator(Device device) {
    static CpuAllocator* cpu = new CpuAllocator;  // never destroyed: tensors with static lifetime may outlive main
    LC_REQUIRE(Resource, device.is_cpu(), "no allocator for {}: this build computes on the CPU", device.str());
    return *cpu;
}

Stream current_stream() { return {}; }

ScopedMemoryDebug::ScopedMemoryDebug() { debug_depth++; }
ScopedMemoryDebug::~ScopedMemoryDebug() { debug_depth--; }
int64_t ScopedMemoryDebug::guard_violations() { return violations.load(); }

}  // namespace lc
