// What front doors share: which variant to run, and what dtypes and devices go together.
#pragma once
#include <initializer_list>
#include <string_view>

#include "core/cuda/runtime.h"
#include "core/profile.h"
#include "core/tensor.h"

namespace lc::kernels {

// While one lives, every front door of this process runs its naive form: the oracle of tests and benchmarks.
class ScopedNaive {
  public:
    ScopedNaive();
    ~ScopedNaive();
    ScopedNaive(const ScopedNaive&) = delete;
    ScopedNaive& operator=(const ScopedNaive&) = delete;
};
bool naive_forced();

// The CPU's fast forms are f32; f64 is the precision of oracles and gradient checks and always runs the naive form.
inline bool use_fast_cpu(DType dtype) {
    return dtype == DType::f32 && !naive_forced();
}

// True when the last two axes are a matrix as gemm reads one: rows contiguous and not overlapping.
inline bool is_matrix(const TensorView& view) {
    return (view.stride(-1) == 1 || view.size(-1) == 1) && view.stride(-2) >= view.size(-1);
}

inline bool is_aligned(const TensorView& x) {
    return (reinterpret_cast<uintptr_t>(x.base) + x.layout.offset * size_of(x.dtype)) % 16 == 0;
}
// Rows of a tensor [B,H,T,D] that 16-byte copies can move.
inline bool has_dense_rows(const TensorView& x) {
    if (x.stride(3) != 1 || !is_aligned(x)) return false;
    for (int axis = 0; axis < 3; ++axis)
        if (x.size(axis) > 1 && x.stride(axis) * size_of(x.dtype) % 16 != 0) return false;
    return true;
}

// True where a front door hands over to the CUDA kernel of `op` (with `if constexpr (cuda::kBuilt)` before it). The CUDA side
// computes in f32 and bf16; what it stores beside bf16 tensors in f32 is said in each contract.
inline bool on_cuda(std::string_view op, const TensorView& view) {
    if (view.device.is_cpu()) return false;
    LC_CHECK(view.dtype == DType::f32 || view.dtype == DType::bf16, "{}: CUDA computes in f32 and bf16, got {}", op,
             name_of(view.dtype));
    return true;
}

// All of one shape; absent views are skipped.
inline void require_one_shape(std::string_view op, std::initializer_list<TensorView> views) {
    const Shape& shape = views.begin()->shape();
    for (const TensorView& view : views)
        LC_CHECK(!view || view.shape() == shape, "{}: shapes differ, {} and {}", op, shape, view.shape());
}

// All of one floating-point dtype and on one device; absent views are skipped.
inline void require_alike(std::string_view op, std::initializer_list<TensorView> views) {
    const TensorView& first = *views.begin();
    for (const TensorView& view : views) {
        if (!view) continue;
        LC_CHECK(view.dtype == first.dtype, "{}: dtypes differ, {} and {}", op, name_of(first.dtype),
                 name_of(view.dtype));
        LC_CHECK(view.device == first.device, "{}: devices differ, {} and {}", op, first.device.str(),
                 view.device.str());
    }
}

// Parameters, statistics, losses and gradients beside activations like `x`: x's dtype or, beside a bf16 x, f32.
inline void require_wide(std::string_view op, const TensorView& x, std::initializer_list<TensorView> views) {
    for (const TensorView& view : views) {
        if (!view) continue;
        LC_CHECK(view.dtype == x.dtype || view.dtype == statistics_dtype(x.dtype), "{}: dtypes differ, {} and {}", op,
                 name_of(x.dtype), name_of(view.dtype));
        LC_CHECK(view.device == x.device, "{}: devices differ, {} and {}", op, x.device.str(), view.device.str());
    }
}

inline void require_cpu(const TensorView& view, std::string_view op) {
    LC_REQUIRE(Resource, view.device.is_cpu(), "{}: no kernel for {} in this build", op, view.device.str());
}

// Runs f with T = float or double after the same checks.
template <class F>
void on_cpu(std::string_view op, std::initializer_list<TensorView> views, F&& f) {
    require_alike(op, views);
    require_cpu(*views.begin(), op);
    dispatch_compute(views.begin()->dtype, op, f);
}

}  // namespace lc::kernels
