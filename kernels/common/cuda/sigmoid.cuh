// 1 / (1 + exp(-x)). Exact: by expf and a division, a few ulp of f32. Not exact: by ex2.approx and rcp.approx, a third of the instructions,
// relative error below 2^-21 + 2^-24 |x|; for results that are rounded to bf16.
#pragma once

namespace lc::kernels {

template <bool Exact>
__device__ __forceinline__ float sigmoid(float x) {
    if constexpr (Exact) return 1 / (1 + expf(-x));
    float s;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(s) : "f"(1 + __expf(-x)));
    return s;
}

}  // namespace lc::kernels
