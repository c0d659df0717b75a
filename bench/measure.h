// How times are taken: warm-up, then samples until there are enough, then order statistics.
#pragma once
#include <cstdint>
#include <functional>

#include "core/device.h"

namespace lc::bench {

struct Plan {
    double min_seconds = 0.5, warmup_seconds = 0.3;
    int64_t min_samples = 50;
};

struct Timing {
    double median_us = 0, p10_us = 0, p90_us = 0;  // of one call
    int64_t samples = 0, calls = 0;                // calls in a sample
    // On a GPU:
    bool cold = false;     // the L2 cache was overwritten before each sample
    double host_us = 0;    // what the host takes to queue one call
    bool starved = false;  // the host was slower than the device: times include waiting for it
};

// Times `fn`. On the CPU a sample repeats it until it takes at least 0.2 ms, so that the clock does not matter. On a GPU, whose
// current stream `fn` must use, a sample is the device's own time for one call (or, under 50 us, for a batch of calls) that is
// queued behind other work.
Timing measure(const std::function<void()>& fn, Device device, const Plan& plan);

}  // namespace lc::bench
