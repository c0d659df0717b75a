// What the CUDA forms of softmax attention share: the shape, and tensors of heads in any layout.
#pragma once
#include <cmath>

#include "core/cuda/element.cuh"
#include "kernels/common/cuda/launch.h"
#include "kernels/softmax_attention/softmax_attention.h"

namespace lc::kernels {

struct AttentionShape {
    int64_t batch, heads, kv_heads, group, t, keys, cached;  // group query heads read one KV head; cached = keys - t
    int d;
    float scale;
    explicit AttentionShape(const SoftmaxAttentionForward& a)
        : batch(a.q.size(0)),
          heads(a.q.size(1)),
          kv_heads(a.k.size(1)),
          group(a.q.size(1) / a.k.size(1)),
          t(a.q.size(2)),
          keys(a.k.size(2)),
          cached(a.k.size(2) - a.q.size(2)),
          d(static_cast<int>(a.q.size(3))),
          scale(1 / std::sqrt(static_cast<float>(a.q.size(3)))) {}

    // Position i sees the keys [0, visible(i)).
    __device__ int64_t visible(int64_t i) const { return min(i + cached + 1, keys); }
    // The first position that sees key j.
    __device__ int64_t first_seeing(int64_t j) const { return max(j - cached, int64_t{0}); }
};

// [B,H,T,D], or [B,H,T], of f32 or bf16.
struct HeadTensor {
    std::byte* base = nullptr;  // null: absent
    int64_t offset = 0, strides[4] = {};
    DType dtype = DType::f32;
    bool accumulate = false;
    bool pairs = false;  // elements 2c and 2c+1 of a row may be written as one

    HeadTensor() = default;
    explicit HeadTensor(const TensorView& view, bool add = false)
        : base(view.base), offset(view.layout.offset), dtype(view.dtype), accumulate(add) {
        for (int axis = 0; view && axis < view.rank(); ++axis) strides[axis] = view.stride(axis);
        const bool even = offset % 2 == 0 && strides[0] % 2 == 0 && strides[1] % 2 == 0 && strides[2] % 2 == 0;
        pairs = strides[3] == 1 && even && !add;
    }
    explicit HeadTensor(const GradSlot& slot) : HeadTensor(slot.view, slot.accumulate()) {}

    __device__ explicit operator bool() const { return base != nullptr; }
    // Where a row starts, in elements from `base`.
    __device__ int64_t row(int64_t b, int64_t h, int64_t t) const {
        return offset + b * strides[0] + h * strides[1] + t * strides[2];
    }
    __device__ float load(int64_t row, int c = 0) const { return cuda::load_float(base, row + c * strides[3], dtype); }
    __device__ void put(int64_t row, int c, float value) const {
        const int64_t place = row + c * strides[3];
        cuda::store_float(base, place, dtype, accumulate ? cuda::load_float(base, place, dtype) + value : value);
    }
    // Elements c and c + 1, c even.
    __device__ void put_pair(int64_t row, int c, float first, float second) const {
        if (pairs && dtype == DType::bf16)
            reinterpret_cast<__nv_bfloat162*>(base)[(row + c) / 2] = __floats2bfloat162_rn(first, second);
        else if (pairs && dtype == DType::f32)
            reinterpret_cast<float2*>(base)[(row + c) / 2] = make_float2(first, second);
        else
            put(row, c, first), put(row, c + 1, second);
    }
};

}  // namespace lc::kernels
