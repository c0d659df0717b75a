// What the tensor-core forms of softmax attention, forward and backward, share.
#pragma once
#include "kernels/common/cuda/mma.cuh"
#include "kernels/common/cuda/pack.cuh"
#include "kernels/common/cuda/reduce.cuh"
#include "kernels/softmax_attention/softmax_attention_device.cuh"

namespace lc::kernels {

inline constexpr float kLog2E = 1.44269504088896340736f;
inline constexpr int kOwned = 128;  // queries or keys of a block
inline constexpr int kOther = 64;   // keys or queries of a step

// [B,H,T,D] in bf16 with rows that cp.async can copy.
struct AlignedHeads {
    __nv_bfloat16* data = nullptr;
    int64_t strides[3] = {};
    explicit AlignedHeads(const TensorView& view) : data(device_data<__nv_bfloat16>(view)) {
        for (int axis = 0; axis < 3; ++axis) strides[axis] = view.stride(axis);
    }
    __device__ __nv_bfloat16* head(int64_t b, int64_t h) const { return data + b * strides[0] + h * strides[1]; }
};

__device__ __forceinline__ float exp2_approx(float x) {
    float result;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
    return result;
}
// Over the four lanes that share a row of an accumulator.
__device__ __forceinline__ float quad_max(float x) {
    x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 1));
    return fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 2));
}
__device__ __forceinline__ float quad_sum(float x) {
    x += __shfl_xor_sync(0xffffffffu, x, 1);
    return x + __shfl_xor_sync(0xffffffffu, x, 2);
}
// How many of `count` keys from k0 on the query at position i sees.
__device__ __forceinline__ int seen_keys(const AttentionShape& s, int64_t i, int64_t k0, int count) {
    return static_cast<int>(max(min(s.visible(i) - k0, int64_t{count}), int64_t{0}));
}
// How many of them lie in front of its window.
__device__ __forceinline__ int hidden_keys(const AttentionShape& s, int64_t i, int64_t k0, int count) {
    return static_cast<int>(max(min(s.first_visible(i) - k0, int64_t{count}), int64_t{0}));
}
// Whether some query of [q0, q0 + queries) sees only a part of the `count` keys from k0 on.
__device__ __forceinline__ bool is_masked(const AttentionShape& s, int64_t q0, int queries, int64_t k0, int count) {
    return s.visible(q0) < k0 + count || s.first_visible(q0 + queries - 1) > k0;
}

template <class F>
void dispatch_head_dim(int d, F&& f) {
    if (d == 64) return f(std::integral_constant<int, 64>{});
    f(std::integral_constant<int, 128>{});
}

}  // namespace lc::kernels
