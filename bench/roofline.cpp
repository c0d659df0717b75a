#include "bench/roofline.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "bench/gpu.h"
#include "core/cuda/runtime.h"
#include "core/parallel.h"
#include "core/random_tensor.h"
#include "kernels/common/gemm.h"

namespace lc::bench {
namespace {

// Larger than the caches by far.
int64_t copy_bytes_on(Device device) {
    return device.is_cpu() ? int64_t{256} << 20 : int64_t{1} << 30;
}

void copy(const Tensor& from, const Tensor& to) {
    if (from.device().is_cuda())
        return cuda::copy_bytes(to.view().base, from.view().base, from.nbytes(), current_stream(from.device()));
    parallel_for(from.nbytes(), 1 << 20, [&](int64_t begin, int64_t end) {
        std::memcpy(to.data<uint8_t>() + begin, from.data<uint8_t>() + begin, static_cast<size_t>(end - begin));
    });
}

void product(const Tensor& a, const Tensor& b, const Tensor& c) {
    if (a.device().is_cuda()) return gpu_gemm(a, b, c);
    const int64_t n = a.size(0);
    kernels::gemm(kernels::Gemm<float>{.m = n,
                                       .n = n,
                                       .k = n,
                                       .a = a.data<float>(),
                                       .lda = n,
                                       .b = b.data<float>(),
                                       .ldb = n,
                                       .c = c.data<float>(),
                                       .ldc = n});
}

}  // namespace

double Roofline::floor_us(double flops, double bytes) const {
    return 1e-3 * std::max(flops / gemm_gflops, bytes / copy_gbps);
}

double drift(const Roofline& before, const Roofline& after) {
    const auto ratio = [](double a, double b) { return std::max(a, b) / std::min(a, b) - 1; };
    return std::max(ratio(before.copy_gbps, after.copy_gbps), ratio(before.gemm_gflops, after.gemm_gflops));
}

Roofline mean(const Roofline& before, const Roofline& after) {
    return {(before.copy_gbps + after.copy_gbps) / 2, (before.gemm_gflops + after.gemm_gflops) / 2};
}

RooflineProbe::RooflineProbe(Device device, DType dtype)
    : device_(device),
      side_(device.is_cpu() ? 1024 : 8192),
      from_(Tensor::full({copy_bytes_on(device)}, 1, DType::u8, device)),
      to_(Tensor::zeros({copy_bytes_on(device)}, DType::u8, device)),
      a_(normal_tensor({side_, side_}, 1, Random(1, 0), dtype, device)),
      b_(normal_tensor({side_, side_}, 1, Random(1, 1), dtype, device)),
      c_(Tensor::zeros({side_, side_}, dtype, device)) {}

Roofline RooflineProbe::measure(const Plan& plan) const {
    const Timing copied = bench::measure([&] { copy(from_, to_); }, device_, plan);
    const Timing multiplied = bench::measure([&] { product(a_, b_, c_); }, device_, plan);
    return {2e-3 * static_cast<double>(from_.nbytes()) / copied.median_us,
            2e-3 * std::pow(static_cast<double>(side_), 3) / multiplied.median_us};
}

}  // namespace lc::bench
