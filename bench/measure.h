// How times are taken: warm-up, then samples until enough of them and enough seconds, then order statistics.
#pragma once
#include <cstdint>
#include <functional>
#include <string>

namespace lc::bench {

struct Timing {
    double median_ms = 0, p10_ms = 0, p90_ms = 0;
    int64_t samples = 0;
};

// Times `fn`. A sample repeats it until it takes at least 0.2 ms, so that the clock does not matter.
Timing measure(const std::function<void()>& fn, double min_seconds);

// What this machine can do with all threads of the pool, measured in this process.
struct Roofline {
    double copy_gbps = 0;    // read + written bytes of a large copy
    double gemm_gflops = 0;  // f32, 1024^3
    // The least time in ms that work of this size can take.
    double floor_ms(double flops, double bytes) const;
};
Roofline measure_roofline(double min_seconds);

// What a result depends on besides the code measured.
struct Environment {
    std::string cpu, compiler, gemm_backend, revision, utc;
    int threads = 0;
};
Environment environment();

}  // namespace lc::bench
