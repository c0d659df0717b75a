// A tensor as a device kernel sees it when any layout and dtype must do: pointer, strides, dtype tag.
//   load(i)    element i (row-major index over the shape) as float
//   put(i, v)  writes v, or adds it where the slot says Accumulate
// Fast kernels test `flat` first (gap-free, in row-major order) and use typed pointers; this is the form that is always right.
#pragma once
#include "core/cuda/element.cuh"
#include "core/tensor.h"
#include "kernels/common/grad_write.h"

namespace lc::kernels {

struct Operand {
    std::byte* base = nullptr;  // start of the storage; null: absent
    int64_t offset = 0;         // elements
    int64_t shape[kMaxRank] = {}, strides[kMaxRank] = {};
    int rank = 0;
    DType dtype = DType::f32;
    bool flat = false;
    bool accumulate = false;

    __host__ explicit Operand(const TensorView& view, bool add = false)
        : base(view.base),
          offset(view.layout.offset),
          rank(view.rank()),
          dtype(view.dtype),
          flat(view && view.layout.is_contiguous()),
          accumulate(add) {
        for (int axis = 0; axis < rank; ++axis) shape[axis] = view.size(axis), strides[axis] = view.stride(axis);
    }
    __host__ explicit Operand(const GradSlot& slot) : Operand(slot.view, slot.accumulate()) {}
    Operand() = default;

    __host__ __device__ explicit operator bool() const { return base != nullptr; }

    // Where row-major index i lies, in elements from `base`.
    __device__ int64_t at(int64_t i) const {
        if (flat) return offset + i;
        int64_t place = offset;
        for (int axis = rank - 1; axis >= 0; --axis) {
            place += i % shape[axis] * strides[axis];
            i /= shape[axis];
        }
        return place;
    }
    __device__ float load(int64_t i) const { return cuda::load_float(base, at(i), dtype); }
    __device__ int64_t load_id(int64_t i) const { return cuda::load_int(base, at(i), dtype); }
    __device__ void put(int64_t i, float value) const {
        const int64_t place = at(i);
        cuda::store_float(base, place, dtype, accumulate ? cuda::load_float(base, place, dtype) + value : value);
    }
};

}  // namespace lc::kernels
