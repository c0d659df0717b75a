// The GPU side of a build without CUDA.
#include "bench/gpu.h"

namespace lc::bench {
namespace {
[[noreturn]] void refuse() {
    fail(ErrorKind::Resource, "this build has no CUDA; it measures on the CPU");
}
}  // namespace

void gpu_gemm(const Tensor&, const Tensor&, const Tensor&) {
    refuse();
}
GpuVersions gpu_versions() {
    refuse();
}
std::optional<GpuState> gpu_state(Device) {
    refuse();
}

}  // namespace lc::bench
