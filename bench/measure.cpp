#include "bench/measure.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <vector>

#include "core/cuda/runtime.h"
#include "core/cuda/stream.h"
#include "core/tensor.h"

namespace lc::bench {
namespace {

using Clock = std::chrono::steady_clock;
using Fn = std::function<void()>;

constexpr size_t kMaxSamples = 10000;

double seconds_since(Clock::time_point start) {
    return std::chrono::duration<double>(Clock::now() - start).count();
}

double at_quantile(const std::vector<double>& sorted, double q) {
    return sorted[static_cast<size_t>(std::llround(q * static_cast<double>(sorted.size() - 1)))];
}

// Draws samples (in us) until there are enough of them and of their time. Slow calls: a few samples in two seconds will do.
Timing summarize(const std::function<double()>& sample, int64_t calls, const Plan& plan) {
    constexpr size_t kFewest = 5;
    constexpr double kPatience = 2;
    std::vector<double> samples;
    const double patience = std::max(plan.min_seconds, kPatience);
    const auto enough = [&](double seconds) {
        if (samples.size() < kFewest) return false;
        if (samples.size() >= kMaxSamples || seconds >= patience) return true;
        return static_cast<int64_t>(samples.size()) >= plan.min_samples && seconds >= plan.min_seconds;
    };
    for (double seconds = 0; !enough(seconds);) {
        samples.push_back(sample());
        seconds += samples.back() * 1e-6 * static_cast<double>(calls);
    }
    std::sort(samples.begin(), samples.end());
    return {.median_us = at_quantile(samples, 0.5),
            .p10_us = at_quantile(samples, 0.1),
            .p90_us = at_quantile(samples, 0.9),
            .samples = static_cast<int64_t>(samples.size()),
            .calls = calls};
}

Timing measure_on_cpu(const Fn& fn, const Plan& plan) {
    constexpr double kSampleSeconds = 2e-4;
    const auto seconds_of = [&](int64_t calls) {
        const auto start = Clock::now();
        for (int64_t i = 0; i < calls; ++i) fn();
        return seconds_since(start);
    };
    fn();  // touches memory, fills the allocator's cache
    const auto calls = static_cast<int64_t>(std::ceil(kSampleSeconds / std::max(seconds_of(1), 1e-9)));
    Plan few = plan;
    few.min_samples = 5;
    return summarize([&] { return 1e6 * seconds_of(calls) / static_cast<double>(calls); }, calls, few);
}

class GpuSampler {
  public:
    GpuSampler(const Fn& fn, Device device)
        : fn_(fn), stream_(current_stream(device)), scratch_(Tensor::empty({kScratchBytes}, DType::u8, device)) {}

    // At least 20 calls and `seconds`, so that caches of memory are filled and the clock is what it is under load.
    void warm_up(double seconds) {
        const auto start = Clock::now();
        do {
            for (int i = 0; i < 20; ++i) fn_();
            cuda::synchronize(stream_);
        } while (seconds_since(start) < seconds);
        overwrite(4);
        begin_.record(stream_);
        overwrite(kCovers);
        end_.record(stream_);
        cover_us_ = wait_us() / kCovers;
    }

    Timing run(const Plan& plan) {
        constexpr double kShort = 50, kBatch = 1000;
        covers_ = kCovers;
        sample(1);
        const double once = sample(5);
        const int64_t calls = once < kShort ? std::clamp<int64_t>(std::llround(kBatch / once), 20, 100) : 1;
        covers_ =
            std::clamp<int64_t>(std::llround(1.5 * host_us_ * static_cast<double>(calls) / cover_us_), 1, kCovers);
        std::vector<double> host;
        Timing timing = summarize(
            [&] {
                const double us = sample(calls);
                host.push_back(host_us_);
                return us;
            },
            calls, plan);
        std::sort(host.begin(), host.end());
        timing.cold = calls == 1;
        timing.host_us = at_quantile(host, 0.5);
        timing.starved = timing.host_us * static_cast<double>(calls) > cover_us_ * static_cast<double>(covers_);
        return timing;
    }

  private:
    static constexpr int64_t kScratchBytes = int64_t{256} << 20, kCovers = 32;

    void overwrite(int64_t times) {
        for (int64_t i = 0; i < times; ++i)
            cuda::fill_bytes(scratch_.view().base, static_cast<int>(i), kScratchBytes, stream_);
    }

    // us of one of `calls`. Overwriting the scratch empties L2 of the inputs and keeps the device busy while the host queues.
    double sample(int64_t calls) {
        overwrite(covers_);
        const auto start = Clock::now();
        begin_.record(stream_);
        for (int64_t i = 0; i < calls; ++i) fn_();
        end_.record(stream_);
        host_us_ = 1e6 * seconds_since(start) / static_cast<double>(calls);
        return wait_us() / static_cast<double>(calls);
    }

    double wait_us() {
        end_.wait();
        return 1e3 * end_.ms_since(begin_);
    }

    const Fn& fn_;
    Stream stream_;
    cuda::Event begin_{true}, end_{true};
    Tensor scratch_;
    int64_t covers_ = kCovers;
    double cover_us_ = 0, host_us_ = 0;
};

}  // namespace

Timing measure(const std::function<void()>& fn, Device device, const Plan& plan) {
    if (device.is_cpu()) return measure_on_cpu(fn, plan);
    GpuSampler sampler(fn, device);
    sampler.warm_up(plan.warmup_seconds);
    return sampler.run(plan);
}

}  // namespace lc::bench
