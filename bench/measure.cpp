#include "bench/measure.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>
#include <ctime>
#include <fstream>
#include <vector>

#include "core/parallel.h"
#include "core/tensor.h"
#include "kernels/common/gemm.h"

namespace lc::bench {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_of(const std::function<void()>& fn, int64_t repeats) {
    const auto start = Clock::now();
    for (int64_t i = 0; i < repeats; ++i) fn();
    return std::chrono::duration<double>(Clock::now() - start).count();
}

std::string cpu_model() {
    std::ifstream file("/proc/cpuinfo");
    for (std::string line; std::getline(file, line);)
        if (line.starts_with("model name"))
            if (const size_t colon = line.find(": "); colon != std::string::npos) return line.substr(colon + 2);
    return "unknown";
}

}  // namespace

Timing measure(const std::function<void()>& fn, double min_seconds) {
    constexpr double kSampleSeconds = 2e-4, kMaxSamples = 10000;
    constexpr size_t kMinSamples = 5;
    fn();  // touches memory, fills the allocator's cache
    const double once = seconds_of(fn, 1);
    const int64_t repeats = std::max<int64_t>(1, std::llround(std::ceil(kSampleSeconds / std::max(once, 1e-9))));
    std::vector<double> samples;
    for (double total = 0; samples.size() < kMinSamples || (total < min_seconds && samples.size() < kMaxSamples);) {
        const double seconds = seconds_of(fn, repeats);
        total += seconds;
        samples.push_back(1e3 * seconds / static_cast<double>(repeats));
    }
    std::sort(samples.begin(), samples.end());
    const auto at = [&](double q) {
        return samples[static_cast<size_t>(std::llround(q * static_cast<double>(samples.size() - 1)))];
    };
    return {at(0.5), at(0.1), at(0.9), static_cast<int64_t>(samples.size())};
}

double Roofline::floor_ms(double flops, double bytes) const {
    return 1e3 * std::max(flops / (gemm_gflops * 1e9), bytes / (copy_gbps * 1e9));
}

Roofline measure_roofline(double min_seconds) {
    Roofline roofline;
    constexpr int64_t kBytes = int64_t{256} << 20, kSide = 1024;  // larger than the caches
    {
        const Tensor from = Tensor::zeros({kBytes}, DType::u8), to = Tensor::zeros({kBytes}, DType::u8);
        const Timing copy = measure(
            [&] {
                parallel_for(kBytes, 1 << 20, [&](int64_t begin, int64_t end) {
                    std::memcpy(to.data<uint8_t>() + begin, from.data<uint8_t>() + begin,
                                static_cast<size_t>(end - begin));
                });
            },
            min_seconds);
        roofline.copy_gbps = 2.0 * kBytes / (copy.median_ms * 1e-3) * 1e-9;
    }
    const Tensor a = Tensor::full({kSide, kSide}, 0.5, DType::f32), c = Tensor::zeros({kSide, kSide}, DType::f32);
    const Timing product = measure(
        [&] {
            kernels::gemm(kernels::Gemm<float>{.m = kSide,
                                               .n = kSide,
                                               .k = kSide,
                                               .a = a.data<float>(),
                                               .lda = kSide,
                                               .b = a.data<float>(),
                                               .ldb = kSide,
                                               .c = c.data<float>(),
                                               .ldc = kSide});
        },
        min_seconds);
    roofline.gemm_gflops = 2.0 * kSide * kSide * kSide / (product.median_ms * 1e-3) * 1e-9;
    return roofline;
}

Environment environment() {
    const std::time_t now = std::time(nullptr);
    std::tm utc{};
    gmtime_r(&now, &utc);
    char text[32];
    std::strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%SZ", &utc);
    return {cpu_model(), LC_COMPILER, kernels::gemm_backend(), LC_GIT_REVISION, text, num_threads()};
}

}  // namespace lc::bench
