#include "bench/gpu.h"

#include <fstream>

#include "core/cuda/check.h"
#include "kernels/common/cuda/gemm.h"

namespace lc::bench {
namespace {

std::string dotted(int version) {
    return fmt::format("{}.{}", version / 1000, version % 1000 / 10);
}

// "580.65.06", as the kernel module says it.
std::string driver_version() {
    std::string version;
    std::ifstream("/sys/module/nvidia/version") >> version;
    if (!version.empty()) return version;
    std::ifstream file("/proc/driver/nvidia/version");
    for (std::string word; file >> word;)
        if (word.find_first_not_of("0123456789.") == std::string::npos && word.find('.') != std::string::npos)
            return word;
    int newest = 0;  // the module does not show: say what it can run
    LC_CUDA(cudaDriverGetVersion(&newest));
    return "for CUDA " + dotted(newest);
}

}  // namespace

void gpu_gemm(const Tensor& a, const Tensor& b, const Tensor& c) {
    const int64_t n = a.size(0);
    for (const Tensor* x : {&a, &b, &c})
        LC_CHECK(x->shape() == Shape({n, n}) && x->dtype() == a.dtype() && x->device() == a.device(),
                 "gpu_gemm: wants three alike square matrices, got {} and {}", a.shape(), x->shape());
    kernels::gemm(kernels::CudaGemm{.m = n,
                                    .n = n,
                                    .k = n,
                                    .a = a.view().base,
                                    .lda = n,
                                    .b = b.view().base,
                                    .ldb = n,
                                    .c = c.view().base,
                                    .ldc = n,
                                    .dtype = a.dtype(),
                                    .c_dtype = a.dtype()},
                  current_stream(a.device()));
}

GpuVersions gpu_versions() {
    int runtime = 0;
    LC_CUDA(cudaRuntimeGetVersion(&runtime));
    return {driver_version(), dotted(runtime)};
}

}  // namespace lc::bench
