// Errors of the CUDA runtime become lc::Error.
//   LC_CUDA(cudaMemsetAsync(p, 0, n, stream));
//   kernel<<<grid, block, 0, stream>>>(args);  LC_LAUNCHED("rms_norm", stream);
#pragma once
#include <cuda_runtime_api.h>

#include "core/check.h"
#include "core/device.h"

namespace lc::cuda {

// Throws Resource for a lack of memory or device, Internal for anything else.
[[noreturn]] void fail_cuda(cudaError_t error, const char* what, const char* file, int line);

// After a launch: a bad configuration is reported at once. With LC_DEBUG_SYNC=1 in the environment it also waits for the
// kernel, so that a fault inside is reported under the op's name and not at some later call.
void check_launch(const char* op, cudaStream_t stream);
bool waits_for_launches();  // LC_DEBUG_SYNC=1

inline cudaStream_t handle_of(Stream stream) {
    return static_cast<cudaStream_t>(stream.handle);
}

}  // namespace lc::cuda

#define LC_CUDA(call)                                                                     \
    do {                                                                                  \
        const cudaError_t lc_error = (call);                                              \
        if (lc_error != cudaSuccess) [[unlikely]]                                         \
            ::lc::cuda::fail_cuda(lc_error, #call, __FILE__, __LINE__);                   \
    } while (false)
#define LC_LAUNCHED(op, stream) ::lc::cuda::check_launch(op, stream)
