// What the benchmarks ask of CUDA and core does not have. In a build without CUDA (gpu_absent.cpp) they refuse in words.
#pragma once
#include <optional>
#include <string>

#include "core/tensor.h"

namespace lc::bench {

// c = a b through cuBLASLt: square matrices of one dtype on one device.
void gpu_gemm(const Tensor& a, const Tensor& b, const Tensor& c);

struct GpuVersions {
    std::string driver, cuda;
};
GpuVersions gpu_versions();

// The device as its management library (NVML) sees it now; nothing where that library is not to be found.
struct GpuState {
    unsigned sm_mhz = 0, watts = 0, celsius = 0;
};
std::optional<GpuState> gpu_state(Device device);

}  // namespace lc::bench
