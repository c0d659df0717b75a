// Runs of eight consecutive elements of an f32 or bf16 array, as floats: one or two 16-byte accesses where the run is whole and
// aligned, element by element where not. The dtype is a run-time tag (a branch uniform over the grid), so that one kernel serves
// every mixture of f32 gradients and bf16 activations.
#pragma once
#include <cstdint>

#include "core/dtype.h"
#include "kernels/common/cuda/pack.cuh"
#include "kernels/common/cuda/rows.h"

namespace lc::kernels {

inline constexpr int kRun = 8;

struct Elements {
    std::byte* base = nullptr;  // first element; null: absent
    DType dtype = DType::f32;   // f32 or bf16
    bool packed = false;        // every run that will be asked for starts on a 16-byte boundary

    __host__ __device__ explicit operator bool() const { return base != nullptr; }
    __device__ float load(int64_t i) const {
        if (dtype == DType::bf16) return __bfloat162float(reinterpret_cast<const __nv_bfloat16*>(base)[i]);
        return reinterpret_cast<const float*>(base)[i];
    }
    __device__ void store(int64_t i, float value) const {
        if (dtype == DType::bf16)
            reinterpret_cast<__nv_bfloat16*>(base)[i] = __float2bfloat16_rn(value);
        else
            reinterpret_cast<float*>(base)[i] = value;
    }
};

// values[j] = element first + j for j < count, 0 beyond.
__device__ __forceinline__ void load_run(const Elements& from, int64_t first, int count, float (&values)[kRun]) {
    if (!from.packed || count < kRun) {
#pragma unroll
        for (int j = 0; j < kRun; ++j) values[j] = j < count ? from.load(first + j) : 0.0f;
    } else if (from.dtype == DType::bf16) {
        const auto pack = load_pack(reinterpret_cast<const __nv_bfloat16*>(from.base) + first);
#pragma unroll
        for (int j = 0; j < kRun; ++j) values[j] = pack.get(j);
    } else {
        const float* data = reinterpret_cast<const float*>(from.base) + first;
        const auto low = load_pack(data), high = load_pack(data + 4);
#pragma unroll
        for (int j = 0; j < 4; ++j) values[j] = low.get(j), values[j + 4] = high.get(j);
    }
}

// Element first + j = values[j] (plus what is there, where `add`) for j < count.
__device__ __forceinline__ void store_run(const Elements& to, int64_t first, int count, bool add,
                                          float (&values)[kRun]) {
    if (add) {
        float before[kRun];
        load_run(to, first, count, before);
#pragma unroll
        for (int j = 0; j < kRun; ++j) values[j] += before[j];
    }
    if (!to.packed || count < kRun) {
#pragma unroll
        for (int j = 0; j < kRun; ++j)
            if (j < count) to.store(first + j, values[j]);
    } else if (to.dtype == DType::bf16) {
        Pack<__nv_bfloat16> pack;
#pragma unroll
        for (int j = 0; j < kRun; ++j) pack.set(j, values[j]);
        store_pack(reinterpret_cast<__nv_bfloat16*>(to.base) + first, pack);
    } else {
        Pack<float> low, high;
#pragma unroll
        for (int j = 0; j < 4; ++j) low.set(j, values[j]), high.set(j, values[j + 4]);
        float* data = reinterpret_cast<float*>(to.base) + first;
        store_pack(data, low), store_pack(data + 4, high);
    }
}

// A matrix whose rows are read and written in runs that start at multiples of kRun.
struct RowElements {
    Elements elements;
    int64_t stride = 0;
    bool add = false;  // writes go on top of what is there

    RowElements() = default;
    RowElements(const void* data, DType dtype, int64_t row_stride, bool accumulate = false)
        : elements{static_cast<std::byte*>(const_cast<void*>(data)), dtype,
                   is_pack_aligned(static_cast<const std::byte*>(data)) && row_stride % kRun == 0},
          stride(row_stride),
          add(accumulate) {}
    explicit RowElements(const DeviceRows& rows) : RowElements(rows.data, rows.dtype, rows.stride) {}
    explicit RowElements(const DeviceOutRows& rows) : RowElements(rows.data, rows.dtype, rows.stride, rows.beta != 0) {}

    __host__ __device__ explicit operator bool() const { return elements.base != nullptr; }
    __device__ void load(int64_t row, int64_t column, int count, float (&values)[kRun]) const {
        load_run(elements, row * stride + column, count, values);
    }
    __device__ void store(int64_t row, int64_t column, int count, float (&values)[kRun]) const {
        store_run(elements, row * stride + column, count, add, values);
    }
};

}  // namespace lc::kernels
