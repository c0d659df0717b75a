// What every .cu file needs on the host side: launch arithmetic, dtype dispatch, workspace.
#pragma once
#include <cuda_bf16.h>

#include <algorithm>
#include <cstdint>
#include <memory>
#include <type_traits>

#include "core/allocator.h"
#include "core/cuda/check.h"
#include "core/tensor.h"

namespace lc::kernels {

constexpr int64_t ceil_div(int64_t a, int64_t b) {
    return (a + b - 1) / b;
}

// CUDA's limits of one grid are 2^31-1 blocks in x and 65535 in y and z; a kernel with more work loops over it.
inline unsigned grid_x(int64_t blocks) {
    return static_cast<unsigned>(std::clamp<int64_t>(blocks, 1, (int64_t{1} << 31) - 1));
}

// f(std::type_identity<T>{}) with T = float or __nv_bfloat16: the types the GPU computes on.
template <class F>
decltype(auto) dispatch_cuda(DType dtype, std::string_view op, F&& f) {
    if (dtype == DType::f32) return f(std::type_identity<float>{});
    if (dtype == DType::bf16) return f(std::type_identity<__nv_bfloat16>{});
    fail(ErrorKind::Internal, "{}: CUDA computes in f32 and bf16, got {}", op, name_of(dtype));
}

// f(std::bool_constant<b>{}): a run-time flag as a template argument.
template <class F>
decltype(auto) dispatch_bool(bool flag, F&& f) {
    if (flag) return f(std::true_type{});
    return f(std::false_type{});
}

// First element of a view as the CUDA type of its dtype.
template <class T>
T* device_data(const TensorView& view) {
    if (!view) return nullptr;
    return reinterpret_cast<T*>(view.base) + view.layout.offset;
}

// Uninitialized device workspace from the caching allocator; reused in stream order when it goes out of scope.
template <class T>
class DeviceScratch {
  public:
    DeviceScratch() = default;
    DeviceScratch(int64_t count, Stream stream)
        : block_(allocator(stream.device).allocate(count * static_cast<int64_t>(sizeof(T)), stream)) {}
    T* data() const { return reinterpret_cast<T*>(block_.get()); }

  private:
    std::shared_ptr<std::byte> block_;
};

// More than 48 KiB of dynamic shared memory must be asked for, once a kernel.
template <class Kernel>
void allow_shared_memory(Kernel kernel, int64_t bytes) {
    if (bytes > 48 * 1024)
        LC_CUDA(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)));
}

}  // namespace lc::kernels
