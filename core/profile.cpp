#include "core/profile.h"

#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <map>
#include <mutex>

#include "core/cuda/runtime.h"
#include "core/log.h"
#include "core/parallel.h"

namespace lc {
namespace {

std::atomic<bool> enabled{false};
Device waited_for;  // written while no zone is open
std::mutex mutex;
std::map<std::string, ProfileEntry, std::less<>> table;

void record(std::string_view name, double seconds, double flops, double bytes) {
    std::lock_guard lock(mutex);
    auto it = table.find(name);
    if (it == table.end()) it = table.emplace(std::string(name), ProfileEntry{std::string(name), 0, 0, 0, 0}).first;
    it->second.calls++;
    it->second.seconds += seconds;
    it->second.flops += flops;
    it->second.bytes += bytes;
}

}  // namespace

void profile_enable(bool on, Device device) {
    waited_for = device;
    enabled = on;
}
bool profile_enabled() { return enabled.load(std::memory_order_relaxed); }

void profile_reset() {
    std::lock_guard lock(mutex);
    table.clear();
}

void profile_count(std::string_view name) {
    constexpr std::string_view kFallback = "fallback ";
    if (name.starts_with(kFallback)) {
        const char* strict = std::getenv("LC_STRICT");
        LC_REQUIRE(Resource, strict == nullptr || std::string_view(strict) != "1",
                   "{}: no fast path covers this case (LC_STRICT=1 forbids the slower one)", name.substr(kFallback.size()));
    }
    if (profile_enabled()) record(name, 0, 0, 0);
}

std::vector<ProfileEntry> profile_entries() {
    std::lock_guard lock(mutex);
    std::vector<ProfileEntry> entries;
    for (const auto& [name, entry] : table) entries.push_back(entry);
    std::stable_sort(entries.begin(), entries.end(), [](const auto& a, const auto& b) { return a.seconds > b.seconds; });
    return entries;
}

std::string profile_table(double wall_seconds) {
    std::string text = fmt::format("{:<36} {:>9} {:>10} {:>7} {:>10} {:>8}\n", "zone", "calls", "seconds", "share",
                                   "GFLOP/s", "GB/s");
    for (const ProfileEntry& e : profile_entries()) {
        const double per_second = e.seconds > 0 ? 1e-9 / e.seconds : 0;
        text += fmt::format("{:<36} {:>9} {:>10.3f} {:>6.1f}% {:>10.1f} {:>8.1f}\n", e.name, e.calls, e.seconds,
                            wall_seconds > 0 ? 100 * e.seconds / wall_seconds : 0, e.flops * per_second,
                            e.bytes * per_second);
    }
    return text;
}

ProfileZone::ProfileZone(const char* name, double flops, double bytes)
    : name_(name), timed_(profile_enabled()), flops_(flops), bytes_(bytes) {
    cuda::push_range(name);
    if (!timed_) return;
    synchronize(waited_for);
    start_ = std::chrono::steady_clock::now();
}

ProfileZone::~ProfileZone() {
    cuda::pop_range();
    if (!timed_) return;
    try {
        synchronize(waited_for);
    } catch (const Error& error) {
        log_line(LogLevel::Error, error.what());
    }
    const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
    record(name_, in_parallel() ? seconds / num_threads() : seconds, flops_, bytes_);
}

ProfileRange::ProfileRange(std::string_view name) { cuda::push_range(std::string(name).c_str()); }
ProfileRange::ProfileRange(std::string_view name, int64_t index) { cuda::push_range(fmt::format("{} {}", name, index).c_str()); }
ProfileRange::~ProfileRange() { cuda::pop_range(); }

}  // namespace lc
