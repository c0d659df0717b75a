// What front doors share: which variant to run, and when to refuse a device.
#pragma once
#include <initializer_list>
#include <string_view>

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

inline void require_cpu(const TensorView& view, std::string_view op) {
    LC_REQUIRE(Resource, view.device.is_cpu(), "{}: no kernel for {} in this build", op, view.device.str());
}

// All of one floating-point dtype and on the CPU; absent views are skipped.
inline void require_alike(std::string_view op, std::initializer_list<TensorView> views) {
    const TensorView& first = *views.begin();
    for (const TensorView& view : views) {
        if (!view) continue;
        LC_CHECK(view.dtype == first.dtype, "{}: dtypes differ, {} and {}", op, name_of(first.dtype),
                 name_of(view.dtype));
        require_cpu(view, op);
    }
}

// Runs f with T = float or double after the same checks.
template <class F>
void on_cpu(std::string_view op, std::initializer_list<TensorView> views, F&& f) {
    require_alike(op, views);
    dispatch_compute(views.begin()->dtype, op, f);
}

}  // namespace lc::kernels
