// Profiling: named zones with time, FLOPs and bytes, and counters (fallbacks). Off by default and then one branch a zone.
//
//   ProfileZone zone("gemm", flops, bytes);      // until the end of the scope
//   profile_count("fallback hybrid_attention");
//
// Time is wall time; with a GPU named to profile_enable, a zone waits for it at both ends, so that the time is the work's and not
// the launch's. In a build with CUDA, zones and ranges are NVTX ranges too, which Nsight shows and selects by
// (docs/profiling.md). A zone opened inside parallel_for is charged 1/threads of its duration, so that the times of
// sibling zones add up to the wall time of the step. Zones nest: a zone's time includes that of zones opened within it.
#pragma once
#include <chrono>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "core/device.h"

namespace lc {

struct ProfileEntry {
    std::string name;
    int64_t calls = 0;
    double seconds = 0;
    double flops = 0;
    double bytes = 0;
};

void profile_enable(bool on, Device device = {});
bool profile_enabled();
void profile_reset();
// Counts while profiling. A name "fallback <op>" says that a front door took a slower way because the fast one does not cover the
// case: with LC_STRICT=1 in the environment that is an error, profiling or not.
void profile_count(std::string_view name);
std::vector<ProfileEntry> profile_entries();  // longest first
std::string profile_table(double wall_seconds);

class ProfileZone {
  public:
    explicit ProfileZone(const char* name, double flops = 0, double bytes = 0);
    ~ProfileZone();
    ProfileZone(const ProfileZone&) = delete;
    ProfileZone& operator=(const ProfileZone&) = delete;

  private:
    const char* name_;
    bool timed_;
    double flops_ = 0, bytes_ = 0;
    std::chrono::steady_clock::time_point start_;
};

// Where the program is, for Nsight only: "stage transfer", "layer 3". No entry in the table.
class ProfileRange {
  public:
    explicit ProfileRange(std::string_view name);
    ProfileRange(std::string_view name, int64_t index);
    ~ProfileRange();
    ProfileRange(const ProfileRange&) = delete;
    ProfileRange& operator=(const ProfileRange&) = delete;
};

}  // namespace lc
