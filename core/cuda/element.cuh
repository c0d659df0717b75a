// Elements of every dtype on the device: load as float (or double, int64 where that is what they hold), store rounded to
// nearest even. One runtime branch an access, uniform over the grid: what memory-bound code can afford and what keeps one
// kernel from becoming one for every combination of dtypes.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "core/dtype.h"

namespace lc::cuda {

__device__ inline float load_float(const void* base, int64_t i, DType dtype) {
    switch (dtype) {
        case DType::f32: return static_cast<const float*>(base)[i];
        case DType::bf16: return __bfloat162float(static_cast<const __nv_bfloat16*>(base)[i]);
        case DType::f16: return __half2float(static_cast<const __half*>(base)[i]);
        case DType::f64: return static_cast<float>(static_cast<const double*>(base)[i]);
        case DType::i64: return static_cast<float>(static_cast<const int64_t*>(base)[i]);
        case DType::i32: return static_cast<float>(static_cast<const int32_t*>(base)[i]);
        case DType::u8: return static_cast<const uint8_t*>(base)[i];
        case DType::boolean: return static_cast<const bool*>(base)[i];
    }
    return 0;
}

__device__ inline void store_float(void* base, int64_t i, DType dtype, float value) {
    switch (dtype) {
        case DType::f32: static_cast<float*>(base)[i] = value; break;
        case DType::bf16: static_cast<__nv_bfloat16*>(base)[i] = __float2bfloat16_rn(value); break;
        case DType::f16: static_cast<__half*>(base)[i] = __float2half_rn(value); break;
        case DType::f64: static_cast<double*>(base)[i] = value; break;
        case DType::i64: static_cast<int64_t*>(base)[i] = static_cast<int64_t>(value); break;
        case DType::i32: static_cast<int32_t*>(base)[i] = static_cast<int32_t>(value); break;
        case DType::u8: static_cast<uint8_t*>(base)[i] = static_cast<uint8_t>(value); break;
        case DType::boolean: static_cast<bool*>(base)[i] = value != 0; break;
    }
}

__device__ inline int64_t load_int(const void* base, int64_t i, DType dtype) {
    return dtype == DType::i64 ? static_cast<const int64_t*>(base)[i] : static_cast<const int32_t*>(base)[i];
}

}  // namespace lc::cuda
