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

// A whole, aligned run as it came from memory: kernels load all they need in this form before they make floats of any of it, so
// that every load is under way before the first wait.
template <class T>
struct RunBits {
    Pack<T> packs[kRun / Pack<T>::kSize];

    __device__ __forceinline__ static RunBits load(const T* from) {
        RunBits bits;
#pragma unroll
        for (int i = 0; i < kRun / Pack<T>::kSize; ++i) bits.packs[i] = load_pack(from + i * Pack<T>::kSize);
        return bits;
    }
    __device__ __forceinline__ void store(T* to) const {
#pragma unroll
        for (int i = 0; i < kRun / Pack<T>::kSize; ++i) store_pack(to + i * Pack<T>::kSize, packs[i]);
    }
    __device__ __forceinline__ float get(int j) const {
        return packs[j / Pack<T>::kSize].get(j % Pack<T>::kSize);
    }
    __device__ __forceinline__ void set(int j, float value) {
        packs[j / Pack<T>::kSize].set(j % Pack<T>::kSize, value);
    }
};

// A whole run of a packed array, whichever dtype that has.
__device__ __forceinline__ void load_packed(const Elements& from, int64_t first, float (&values)[kRun]) {
    if (from.dtype == DType::bf16) {
        const auto bits = RunBits<__nv_bfloat16>::load(reinterpret_cast<const __nv_bfloat16*>(from.base) + first);
#pragma unroll
        for (int j = 0; j < kRun; ++j) values[j] = bits.get(j);
    } else {
        const auto bits = RunBits<float>::load(reinterpret_cast<const float*>(from.base) + first);
#pragma unroll
        for (int j = 0; j < kRun; ++j) values[j] = bits.get(j);
    }
}

// `add`: on top of what is there.
__device__ __forceinline__ void store_packed(const Elements& to, int64_t first, bool add, float (&values)[kRun]) {
    if (add) {
        float before[kRun];
        load_packed(to, first, before);
#pragma unroll
        for (int j = 0; j < kRun; ++j) values[j] += before[j];
    }
    if (to.dtype == DType::bf16) {
        RunBits<__nv_bfloat16> bits;
#pragma unroll
        for (int j = 0; j < kRun; ++j) bits.set(j, values[j]);
        bits.store(reinterpret_cast<__nv_bfloat16*>(to.base) + first);
    } else {
        RunBits<float> bits;
#pragma unroll
        for (int j = 0; j < kRun; ++j) bits.set(j, values[j]);
        bits.store(reinterpret_cast<float*>(to.base) + first);
    }
}

// values[j] = element first + j for j < count, 0 beyond.
__device__ __forceinline__ void load_run(const Elements& from, int64_t first, int count, float (&values)[kRun]) {
    if (from.packed && count >= kRun) return load_packed(from, first, values);
#pragma unroll
    for (int j = 0; j < kRun; ++j) values[j] = j < count ? from.load(first + j) : 0.0f;
}

// Element first + j = values[j] (plus what is there, where `add`) for j < count.
__device__ __forceinline__ void store_run(const Elements& to, int64_t first, int count, bool add,
                                          float (&values)[kRun]) {
    if (to.packed && count >= kRun) return store_packed(to, first, add, values);
    if (add) {
        float before[kRun];
        load_run(to, first, count, before);
#pragma unroll
        for (int j = 0; j < kRun; ++j) values[j] += before[j];
    }
#pragma unroll
    for (int j = 0; j < kRun; ++j)
        if (j < count) to.store(first + j, values[j]);
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
