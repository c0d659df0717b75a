// Dense matrix product on the GPU through cuBLASLt.
//
//   C[M,N] = alpha * op(A)[M,K] op(B)[K,N] + beta * C       op(X) = X or X^T; row-major; ld = elements from row to row
//
// f32 (TF32 is off) or bf16 inputs; accumulation is f32; C is the inputs' dtype or f32. Or e4m3 codes (kernels/weight_code) with a
// scale for each row of A and column of op(B), on compute capability 9.0: A as it lies, B transposed, C bf16, K and ld multiples of 16; their
// sums are kept to fewer bits than f32 has (seen on an H200: 1.4e-4 of the sum of magnitudes). beta = 0 never reads C. `batch` products of one shape lie
// `stride_*` elements apart. Workspace comes from the caching allocator; the algorithm of a shape is chosen
// once and kept, so two runs on one machine give the same bits.
#pragma once
#include "core/device.h"
#include "core/dtype.h"
#include "kernels/common/gemm.h"

namespace lc::kernels {

struct CudaGemm {
    Op op_a = Op::None, op_b = Op::None;
    int64_t m = 0, n = 0, k = 0;
    float alpha = 1;
    const void* a = nullptr;  // [M,K], or [K,M] when transposed
    int64_t lda = 0;
    const void* b = nullptr;  // [K,N], or [N,K] when transposed
    int64_t ldb = 0;
    float beta = 0;
    void* c = nullptr;  // [M,N]
    int64_t ldc = 0;
    DType dtype = DType::f32;        // of A and B; u8: codes
    const float* scale_a = nullptr;  // [M], codes only
    const float* scale_b = nullptr;  // [N], codes only
    DType c_dtype = DType::f32;      // of C
    const void* bias = nullptr;      // [N], dtype of C: added to every row of C
    const void* addend =
        nullptr;  // [M,N], dtype of C: read in C's place where beta counts, so that C = ... + beta * addend
    int64_t ld_addend = 0;
    int64_t batch = 1, stride_a = 0, stride_b = 0, stride_c = 0;
};
void gemm(const CudaGemm& args, Stream stream);
bool gemm_takes_codes(Device device);  // whether this device multiplies codes

}  // namespace lc::kernels
