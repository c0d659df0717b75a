// Kernels of one stream that overlap (compute capability 9.0): blocks of the next one begin where blocks of this one have ended.
//
//   host     launch_early(kernel, {blocks, threads, shared bytes}, stream, args...)
//   device   start_successor();       // when all blocks have said so or ended, the next kernel may begin, if launched early
//            wait_for_predecessor();  // the kernel before has ended, and what it wrote is there
//
// A kernel that was launched early waits before it reads what others write and before it writes. As all wait, kernels further back have
// ended then, too.
//
//   device   join_stream();           // both, first of all: only the start of the kernel and of the next one are early
//   host     launch_joining(kernel, blocks, threads, stream, args...)   // for such a kernel, where the device runs code that waits
//
// join_stream() waits before it lets the next kernel begin, so that one may rely, from its first instruction on, on all that came before
// this kernel; what this kernel writes it awaits as ever.
//
// SOURCE  PTX ISA, "griddepcontrol"; CUDA runtime API, cudaLaunchAttributeProgrammaticStreamSerialization.
#pragma once
#include "kernels/common/cuda/hopper.h"
#include "kernels/common/cuda/launch.h"

namespace lc::kernels {

struct EarlyLaunch {
    int64_t blocks;
    int threads;
    int64_t shared_bytes = 0;
    int cluster = 1;    // blocks of a cluster
    bool early = true;  // false: as any other; on devices before 9.0
};

template <class... Parameters, class... Arguments>
void launch_early(void (*kernel)(Parameters...), const EarlyLaunch& shape, cudaStream_t queue,
                  const Arguments&... arguments) {
    allow_shared_memory(kernel, shape.shared_bytes);
    cudaLaunchAttribute attributes[2] = {};
    cudaLaunchConfig_t config{};
    config.gridDim = dim3(grid_x(shape.blocks)), config.blockDim = dim3(static_cast<unsigned>(shape.threads));
    config.dynamicSmemBytes = static_cast<size_t>(shape.shared_bytes), config.stream = queue, config.attrs = attributes;
    if (shape.early) {
        cudaLaunchAttribute& overlap = attributes[config.numAttrs++];
        overlap.id = cudaLaunchAttributeProgrammaticStreamSerialization;
        overlap.val.programmaticStreamSerializationAllowed = 1;
    }
    if (shape.cluster > 1) {
        cudaLaunchAttribute& size = attributes[config.numAttrs++];
        size.id = cudaLaunchAttributeClusterDimension;
        size.val.clusterDim = {static_cast<unsigned>(shape.cluster), 1, 1};
    }
    LC_CUDA(cudaLaunchKernelEx(&config, kernel, arguments...));
}

__device__ __forceinline__ void wait_for_predecessor() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
__device__ __forceinline__ void start_successor() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

__device__ __forceinline__ void join_stream() {
    wait_for_predecessor();
    start_successor();
}

template <class... Parameters, class... Arguments>
void launch_joining(void (*kernel)(Parameters...), int64_t blocks, int threads, cudaStream_t queue,
                    const Arguments&... arguments) {
    launch_early(kernel, {.blocks = blocks, .threads = threads, .early = hopper_applies({})}, queue, arguments...);
}

}  // namespace lc::kernels
