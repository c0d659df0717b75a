// Does the device run this build's code for sm_90a?
//
// MATHS    none: a kernel that is asked for its size and never launched.
// TILING   its static shared memory is there in code for sm_90a alone.
// COST     one question to the runtime a call.
// NUMERICS none.
// LADDER   1 this.
// SOURCE   CUDA runtime API, cudaFuncGetAttributes.
#include "kernels/common/cuda/hopper.h"

#include <cstdlib>
#include <string_view>

#include "core/cuda/check.h"

namespace lc::kernels {
namespace {

// Its body, and with it the static shared memory, is there in code for sm_90a alone.
__global__ void probe_kernel(int* out) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
    __shared__ int here;
    if (threadIdx.x == 0) here = *out;
    __syncthreads();
    out[threadIdx.x] = here;
#endif
}

bool device_runs_sm90() {
    cudaFuncAttributes attributes{};
    if (cudaFuncGetAttributes(&attributes, probe_kernel) == cudaSuccess) return attributes.sharedSizeBytes > 0;
    cudaGetLastError();  // no code at all for this device: the launch that follows says so
    return false;
}

}  // namespace

bool hopper_applies(std::initializer_list<TensorView> copied) {
    static const std::string_view forced = [] {
        const char* value = std::getenv("LC_ATTENTION");
        return std::string_view(value == nullptr ? "" : value);
    }();
    LC_CHECK(forced.empty() || forced == "portable" || forced == "sm90",
             "LC_ATTENTION must be portable or sm90, got '{}'", forced);
    if (forced == "portable") return false;
    bool fits = device_runs_sm90();
    LC_CHECK(fits || forced.empty(), "LC_ATTENTION=sm90: this build has no sm_90a code that this device runs");
    constexpr int64_t kMostPositions = int64_t{1} << 30;
    for (const TensorView& x : copied) {
        fits = fits && x.numel() > 0 && x.size(2) <= kMostPositions;
        for (int axis = 0; axis < 3; ++axis) fits = fits && (x.size(axis) == 1 || x.stride(axis) != 0);
    }
    return fits;
}

bool clears_results() {
    static const bool clears = [] {
        const char* value = std::getenv("LC_DEBUG_INIT");
        return value && std::string_view(value) == "1";
    }();
    return clears;
}

void clear_result(const TensorView& rows, Stream stream) {
    if (!clears_results()) return;
    const int64_t width = size_of(rows.dtype);
    std::byte* start = rows.base + rows.layout.offset * width;
    for (int64_t b = 0; b < rows.size(0); ++b)
        for (int64_t h = 0; h < rows.size(1); ++h)
            for (int64_t t = 0; t < rows.size(2); ++t) {
                const int64_t place = b * rows.stride(0) + h * rows.stride(1) + t * rows.stride(2);
                LC_CUDA(cudaMemsetAsync(start + place * width, 0, static_cast<size_t>(rows.size(3) * width),
                                        cuda::handle_of(stream)));
            }
}

}  // namespace lc::kernels
