// Dense matrix product on the CPU, the workhorse under linear layers and the fast attention forms.
//
//   C[M,N] = alpha * op(A)[M,K] op(B)[K,N] + beta * C       op(X) = X or X^T; row-major; ld = elements from row to row
//
// f32 goes to OpenBLAS when the build found it, else (and for f64 always) to our blocked loops. Called from the main
// thread it splits over the pool; called inside parallel_for it runs in place. beta = 0 never reads C (NaN-safe).
#pragma once
#include <cstdint>

namespace lc::kernels {

enum class Op : bool { None, Transpose };

template <class T>
struct Gemm {
    Op op_a = Op::None, op_b = Op::None;
    int64_t m = 0, n = 0, k = 0;
    T alpha = 1;
    const T* a = nullptr;  // [M,K], or [K,M] when transposed
    int64_t lda = 0;
    const T* b = nullptr;  // [K,N], or [N,K] when transposed
    int64_t ldb = 0;
    T beta = 0;
    T* c = nullptr;  // [M,N]
    int64_t ldc = 0;
};

void gemm(const Gemm<float>& args);
void gemm(const Gemm<double>& args);

// The blocked loops, whatever the build found: for tests and benchmarks.
void gemm_portable(const Gemm<float>& args);
const char* gemm_backend();  // "openblas" or "portable"

}  // namespace lc::kernels
