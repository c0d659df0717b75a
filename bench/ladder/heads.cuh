// Tensors [B,H,T,D] of bf16 as the ladder's kernels see them: rows of D numbers side by side.
#pragma once
#include "kernels/common/cuda/launch.h"
#include "kernels/common/cuda/pack.cuh"
#include "kernels/common/cuda/reduce.cuh"

namespace lc::bench {

struct Heads {
    __nv_bfloat16* data = nullptr;
    int64_t strides[3] = {};
    int64_t heads = 0;

    explicit Heads(const TensorView& x) : data(kernels::device_data<__nv_bfloat16>(x)), heads(x.size(1)) {
        LC_CHECK(x.dtype == DType::bf16 && x.stride(3) == 1, "ladder: bf16 with rows side by side");
        for (int axis = 0; axis < 3; ++axis) strides[axis] = x.stride(axis);
    }
    // Row t of head h, or of the key-value head that query head h of `all` reads.
    __device__ __nv_bfloat16* row(int64_t b, int64_t h, int64_t all, int64_t t) const {
        return data + b * strides[0] + h / (all / heads) * strides[1] + t * strides[2];
    }
};

template <class F>
void dispatch_size(int64_t d, F&& f) {
    LC_CHECK(d == 64 || d == 128, "ladder: heads of 64 or 128, got {}", d);
    if (d == 64) return f(std::integral_constant<int, 64>{});
    f(std::integral_constant<int, 128>{});
}

}  // namespace lc::bench
