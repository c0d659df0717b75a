#include "kernels/common/cuda/gemm.h"

#include <cublasLt.h>

#include <array>
#include <map>
#include <memory>
#include <mutex>

#include "core/profile.h"
#include "kernels/common/cuda/hopper.h"
#include "kernels/common/cuda/launch.h"

namespace lc::kernels {
namespace {

#define LC_CUBLAS_SCALES_ROWS (CUBLAS_VERSION >= 120900)  // CUDA 12.9

constexpr int64_t kWorkspaceBytes = int64_t{64} << 20;

void check(cublasStatus_t status, const char* what) {
    LC_CHECK(status == CUBLAS_STATUS_SUCCESS, "cuBLASLt: {} in {}", cublasLtGetStatusString(status), what);
}

cudaDataType_t cuda_type(DType dtype) {
    if (dtype == DType::u8) return CUDA_R_8F_E4M3;
    LC_CHECK(dtype == DType::f32 || dtype == DType::bf16, "gemm: CUDA computes in f32 and bf16, got {}",
             name_of(dtype));
    return dtype == DType::f32 ? CUDA_R_32F : CUDA_R_16BF;
}

template <class Handle, cublasStatus_t (*destroy)(Handle)>
struct Owned {
    Handle handle = nullptr;
    Owned() = default;
    Owned(const Owned&) = delete;
    Owned& operator=(const Owned&) = delete;
    ~Owned() {
        if (handle) destroy(handle);
    }
};
using Operation = Owned<cublasLtMatmulDesc_t, cublasLtMatmulDescDestroy>;
using MatrixLayout = Owned<cublasLtMatrixLayout_t, cublasLtMatrixLayoutDestroy>;
using Preference = Owned<cublasLtMatmulPreference_t, cublasLtMatmulPreferenceDestroy>;

cublasLtHandle_t handle_for(int device) {
    static std::mutex mutex;
    static auto* handles = new std::map<int, cublasLtHandle_t>;  // never destroyed: the driver may go first
    std::lock_guard lock(mutex);
    cublasLtHandle_t& handle = (*handles)[device];
    if (!handle) check(cublasLtCreate(&handle), "cublasLtCreate");
    return handle;
}

// cuBLASLt is column-major: it is asked for C^T = op(B)^T op(A)^T, whose operands are our arrays as they lie.
void set_layout(MatrixLayout& layout, DType dtype, int64_t rows, int64_t columns, int64_t ld, int64_t batch,
                int64_t stride) {
    check(cublasLtMatrixLayoutCreate(&layout.handle, cuda_type(dtype), static_cast<uint64_t>(columns),
                                     static_cast<uint64_t>(rows), std::max<int64_t>(ld, std::max<int64_t>(columns, 1))),
          "cublasLtMatrixLayoutCreate");
    if (batch == 1) return;
    const auto count = static_cast<int32_t>(batch);
    check(cublasLtMatrixLayoutSetAttribute(layout.handle, CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, &count, sizeof count),
          "batch");
    check(cublasLtMatrixLayoutSetAttribute(layout.handle, CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET, &stride,
                                           sizeof stride),
          "stride");
}

// Largest power of two up to 256 that divides the address: algorithms are chosen for it.
uint32_t alignment_of(const void* pointer) {
    const auto address = reinterpret_cast<uintptr_t>(pointer);
    uint32_t alignment = 256;
    while (address % alignment != 0) alignment /= 2;
    return alignment;
}

using AlgoKey = std::array<int64_t, 24>;

AlgoKey key_of(const CudaGemm& g, int device) {
    return {device,
            static_cast<int64_t>(g.op_a),
            static_cast<int64_t>(g.op_b),
            g.m,
            g.n,
            g.k,
            g.lda,
            g.ldb,
            g.ldc,
            static_cast<int64_t>(g.dtype),
            static_cast<int64_t>(g.c_dtype),
            g.beta == 0,
            g.bias != nullptr,
            g.batch,
            g.stride_a,
            g.stride_b,
            g.stride_c,
            alignment_of(g.a),
            alignment_of(g.b),
            alignment_of(g.c),
            g.bias ? alignment_of(g.bias) : 0,
            g.addend ? alignment_of(g.addend) : 0,
            g.ld_addend,
            0};
}

cublasLtMatmulAlgo_t choose(cublasLtHandle_t handle, const CudaGemm& g, const Operation& operation,
                            const MatrixLayout& a, const MatrixLayout& b, const MatrixLayout& c,
                            const MatrixLayout& d) {
    Preference preference;
    check(cublasLtMatmulPreferenceCreate(&preference.handle), "cublasLtMatmulPreferenceCreate");
    const auto set = [&](cublasLtMatmulPreferenceAttributes_t what, auto value) {
        check(cublasLtMatmulPreferenceSetAttribute(preference.handle, what, &value, sizeof value), "preference");
    };
    set(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, static_cast<uint64_t>(kWorkspaceBytes));
    set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, alignment_of(g.b));
    set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, alignment_of(g.a));
    set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, alignment_of(g.addend ? g.addend : g.c));
    set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, alignment_of(g.c));
    cublasLtMatmulHeuristicResult_t result{};
    int found = 0;
    check(cublasLtMatmulAlgoGetHeuristic(handle, operation.handle, b.handle, a.handle, c.handle, d.handle,
                                         preference.handle, 1, &result, &found),
          "cublasLtMatmulAlgoGetHeuristic");
    LC_CHECK(found > 0, "gemm: cuBLASLt knows no way for [{},{}] x [{},{}] in {}", g.m, g.k, g.k, g.n,
             name_of(g.dtype));
    return result.algo;
}

// A sum over nothing: C = beta C.
void scale_by_beta(const CudaGemm& g, Stream stream) {
    LC_CHECK(g.beta == 0 || g.beta == 1, "gemm: beta must be 0 or 1 where K is 0, got {}", g.beta);
    if (g.beta == 1) return;
    const auto width = static_cast<size_t>(size_of(g.c_dtype));
    for (int64_t i = 0; i < g.batch; ++i)
        LC_CUDA(cudaMemset2DAsync(static_cast<std::byte*>(g.c) + static_cast<size_t>(i * g.stride_c) * width,
                                  static_cast<size_t>(std::max(g.ldc, g.n)) * width, 0,
                                  static_cast<size_t>(g.n) * width, static_cast<size_t>(g.m), cuda::handle_of(stream)));
}

// Row by row: what lies between rows may be somebody's.
void clear_result(const CudaGemm& g, Stream stream) {
    const auto width = static_cast<size_t>(size_of(g.c_dtype));
    for (int64_t row = 0; row < g.batch * g.m; ++row) {
        const int64_t place = row / g.m * g.stride_c + row % g.m * g.ldc;
        LC_CUDA(cudaMemsetAsync(static_cast<std::byte*>(g.c) + static_cast<size_t>(place) * width, 0,
                                static_cast<size_t>(g.n) * width, cuda::handle_of(stream)));
    }
}

}  // namespace

bool gemm_takes_codes(Device device) {
    int major = 0, minor = 0;
    LC_CUDA(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device.index));
    LC_CUDA(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device.index));
    return LC_CUBLAS_SCALES_ROWS && major == 9 && minor == 0;
}

void gemm(const CudaGemm& g, Stream stream) {
    if (g.m == 0 || g.n == 0 || g.batch == 0) return;
    if (g.k == 0 && !g.bias) return scale_by_beta(g, stream);
    LC_CHECK(g.k > 0, "gemm: a product over nothing with a bias is not supported");
    LC_CHECK(!g.addend || g.batch == 1, "gemm: an addend in a batch of {}", g.batch);
    LC_CHECK((g.dtype == DType::u8) == (g.scale_a != nullptr && g.scale_b != nullptr),
             "gemm: codes come with scales of rows and columns, other numbers without");
    if (clears_results() && g.beta == 0) clear_result(g, stream);
    const ProfileZone zone("gemm", 2.0 * static_cast<double>(g.m * g.n) * static_cast<double>(g.k * g.batch));
    const cublasLtHandle_t handle = handle_for(stream.device.index);

    Operation operation;
    check(cublasLtMatmulDescCreate(&operation.handle, CUBLAS_COMPUTE_32F, CUDA_R_32F), "cublasLtMatmulDescCreate");
    const auto set = [&](cublasLtMatmulDescAttributes_t what, auto value) {
        check(cublasLtMatmulDescSetAttribute(operation.handle, what, &value, sizeof value), "operation");
    };
    const auto flag = [](Op op) { return op == Op::Transpose ? CUBLAS_OP_T : CUBLAS_OP_N; };
    set(CUBLASLT_MATMUL_DESC_TRANSA, flag(g.op_b));
    set(CUBLASLT_MATMUL_DESC_TRANSB, flag(g.op_a));
    if (g.bias) {
        set(CUBLASLT_MATMUL_DESC_EPILOGUE, CUBLASLT_EPILOGUE_BIAS);
        set(CUBLASLT_MATMUL_DESC_BIAS_POINTER, g.bias);
        set(CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, cuda_type(g.c_dtype));
    }
#if LC_CUBLAS_SCALES_ROWS
    if (g.dtype == DType::u8) {  // A and B change places
        set(CUBLASLT_MATMUL_DESC_FAST_ACCUM, int8_t{1});
        for (const auto what : {CUBLASLT_MATMUL_DESC_A_SCALE_MODE, CUBLASLT_MATMUL_DESC_B_SCALE_MODE})
            set(what, CUBLASLT_MATMUL_MATRIX_SCALE_OUTER_VEC_32F);
        set(CUBLASLT_MATMUL_DESC_A_SCALE_POINTER, g.scale_b);
        set(CUBLASLT_MATMUL_DESC_B_SCALE_POINTER, g.scale_a);
    }
#endif
    const bool ta = g.op_a == Op::Transpose, tb = g.op_b == Op::Transpose;
    MatrixLayout a, b, c, d;
    set_layout(a, g.dtype, ta ? g.k : g.m, ta ? g.m : g.k, g.lda, g.batch, g.stride_a);
    set_layout(b, g.dtype, tb ? g.n : g.k, tb ? g.k : g.n, g.ldb, g.batch, g.stride_b);
    set_layout(c, g.c_dtype, g.m, g.n, g.addend ? g.ld_addend : g.ldc, g.batch, g.stride_c);
    set_layout(d, g.c_dtype, g.m, g.n, g.ldc, g.batch, g.stride_c);

    static std::mutex mutex;
    static auto* algos = new std::map<AlgoKey, cublasLtMatmulAlgo_t>;
    cublasLtMatmulAlgo_t algo;
    {
        std::lock_guard lock(mutex);
        const AlgoKey key = key_of(g, stream.device.index);
        auto found = algos->find(key);
        if (found == algos->end()) found = algos->emplace(key, choose(handle, g, operation, a, b, c, d)).first;
        algo = found->second;
    }
    const DeviceScratch<std::byte> workspace(kWorkspaceBytes, stream);
    check(cublasLtMatmul(handle, operation.handle, &g.alpha, g.b, b.handle, g.a, a.handle, &g.beta,
                         g.addend ? g.addend : g.c, c.handle, g.c, d.handle, &algo, workspace.data(),
                         static_cast<size_t>(kWorkspaceBytes), cuda::handle_of(stream)),
          "cublasLtMatmul");
}

}  // namespace lc::kernels
