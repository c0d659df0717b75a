// Tensors of heads as a device kernel sees them when any layout must do.
#pragma once
#include "core/cuda/element.cuh"
#include "core/tensor.h"
#include "kernels/common/grad_write.h"

namespace lc::kernels {

// A tensor of rank 2 to 4 in any layout and floating-point dtype, mostly [B,H,T,D] or [B,H,T].
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
