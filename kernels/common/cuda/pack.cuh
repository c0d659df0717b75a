// Sixteen bytes of one element type: the unit in which memory-bound kernels load and store.
//   Pack<__nv_bfloat16> p = load_pack(x + i);  p.get(j) -> float;  p.set(j, value);  store_pack(y + i, p);
#pragma once
#include <cuda_bf16.h>

#include <cstdint>

namespace lc::kernels {

__device__ __forceinline__ float to_float(float value) {
    return value;
}
__device__ __forceinline__ float to_float(__nv_bfloat16 value) {
    return __bfloat162float(value);
}
template <class T>
__device__ __forceinline__ T from_float(float value) {
    if constexpr (sizeof(T) == 4)
        return value;
    else
        return __float2bfloat16_rn(value);
}

template <class T>
struct alignas(16) Pack {
    static constexpr int kSize = 16 / sizeof(T);
    T values[kSize];
    __device__ __forceinline__ float get(int i) const { return to_float(values[i]); }
    __device__ __forceinline__ void set(int i, float value) { values[i] = from_float<T>(value); }
};

template <class T>
__device__ __forceinline__ Pack<T> load_pack(const T* from) {
    return *reinterpret_cast<const Pack<T>*>(from);
}
template <class T>
__device__ __forceinline__ void store_pack(T* to, const Pack<T>& pack) {
    *reinterpret_cast<Pack<T>*>(to) = pack;
}
template <class T>
__host__ __device__ bool is_pack_aligned(const T* pointer) {
    return reinterpret_cast<uintptr_t>(pointer) % 16 == 0;
}

}  // namespace lc::kernels
