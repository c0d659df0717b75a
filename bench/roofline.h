// What the machine at hand can do, measured in the same process as the ops.
#pragma once
#include "bench/measure.h"
#include "core/tensor.h"

namespace lc::bench {

struct Roofline {
    double copy_gbps = 0;    // read + written bytes of a large copy
    double gemm_gflops = 0;  // a square product: f32 1024^3 on the CPU, 8192^3 in the run's dtype on a GPU
    // The least time in us that work of this size can take.
    double floor_us(double flops, double bytes) const;
};
// How far apart two measurements are: the larger of the two ratios, less 1. Beyond the limit, what was timed between them should
// be timed again.
inline constexpr double kDriftLimit = 0.03;
double drift(const Roofline& before, const Roofline& after);
Roofline mean(const Roofline& before, const Roofline& after);

class RooflineProbe {
  public:
    RooflineProbe(Device device, DType dtype);
    Roofline measure(const Plan& plan) const;

  private:
    Device device_;
    int64_t side_;
    Tensor from_, to_, a_, b_, c_;
};

}  // namespace lc::bench
