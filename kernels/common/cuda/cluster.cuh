// Barriers in shared memory, and the blocks of one cluster: launched together (compute capability 9.0), they meet and write into each
// other's shared memory.
//
//   host     launch_clusters(kernel, blocks, clusters, threads, shared bytes, stream, args)
//   device   Barrier full;                         // shared memory; one thread: full.init(1), fence_barriers()
//            full.expect(bytes);                   // one thread
//            send(&slot, value, full, rank);       // into the same place of block `rank`; its `full` counts eight bytes
//            full.wait(phase);                     // phase 0, then 1, 0, ...
//            cluster_arrive(), cluster_wait();     // all threads of all blocks meet; a fence of the whole GPU, for start and end
//
// A barrier counts arrivals and bytes; when both are complete its phase ends. wait(p) returns once the phase of parity
// p has ended, so on a fresh barrier wait(1) returns at once.
//
// SOURCE  PTX ISA, "mbarrier", "barrier.cluster", "mapa", "st.async".
#pragma once
#include "core/cuda/check.h"
#include "kernels/common/cuda/mma.cuh"

namespace lc::kernels {

template <class... Parameters, class... Arguments>
void launch_clusters(void (*kernel)(Parameters...), int blocks, unsigned clusters, int threads, int64_t shared_bytes,
                     cudaStream_t queue, const Arguments&... arguments) {
    cudaLaunchAttribute size{};
    size.id = cudaLaunchAttributeClusterDimension;
    size.val.clusterDim = {static_cast<unsigned>(blocks), 1, 1};
    cudaLaunchConfig_t config{};
    config.gridDim = dim3(clusters * static_cast<unsigned>(blocks)),
    config.blockDim = dim3(static_cast<unsigned>(threads));
    config.dynamicSmemBytes = static_cast<size_t>(shared_bytes), config.stream = queue;
    config.attrs = &size, config.numAttrs = 1;
    LC_CUDA(cudaLaunchKernelEx(&config, kernel, arguments...));
}

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900

__device__ __forceinline__ void cluster_arrive() {
    asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
}
__device__ __forceinline__ void cluster_wait() {
    asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
}
struct Barrier {
    uint64_t state;

    __device__ __forceinline__ void init(int arrivals) {
        asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(&state)), "r"(arrivals) : "memory");
    }
    __device__ __forceinline__ void arrive() {
        asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(&state)) : "memory");
    }
    // At the barrier in the same place of block `rank` of this cluster. Orders nothing but what this block has read through wgmma
    // (.release.cluster is a fence of the whole GPU, a microsecond each time).
    __device__ __forceinline__ void arrive_at(int rank) {
        asm volatile(
            "{\n.reg .b32 there;\nmapa.shared::cluster.u32 there, %0, %1;\n"
            "mbarrier.arrive.shared::cluster.b64 _, [there];\n}" ::"r"(shared_address(&state)),
            "r"(rank)
            : "memory");
    }
    // Arrives, and lets the phase end only after that many bytes.
    __device__ __forceinline__ void expect(int bytes) {
        asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(&state)), "r"(bytes)
                     : "memory");
    }
    __device__ __forceinline__ void wait(int phase) {
        asm volatile(
            "{\n.reg .pred done;\nagain:\nmbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n@!done bra "
            "again;\n}" ::"r"(shared_address(&state)),
            "r"(phase)
            : "memory");
    }
};

// By the thread that made barriers, before the __syncthreads() that shows them to the others and to the copy engine.
__device__ __forceinline__ void fence_barriers() {
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

__device__ __forceinline__ void send(float2* slot, float2 value, const Barrier& full, int rank) {
    uint64_t bits;
    asm("mov.b64 %0, {%1, %2};" : "=l"(bits) : "f"(value.x), "f"(value.y));
    asm volatile(
        "{\n.reg .b32 there, counts;\nmapa.shared::cluster.u32 there, %0, %3;\nmapa.shared::cluster.u32 counts, %2, "
        "%3;\n"
        "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.b64 [there], %1, [counts];\n}" ::"r"(
            shared_address(slot)),
        "l"(bits), "r"(shared_address(&full.state)), "r"(rank)
        : "memory");
}

#endif

}  // namespace lc::kernels
