// Linear layers of one input with weights that are only read, as generation runs them: a norm in front, an activation or a residual
// behind, and matrices that may be in eight bits.
//
//   n = x, or the RMS norm of x by norm_weight (kernels/rms_norm)
//   u_j = n W_j^T + b_j                                  up to three W_j;  W_j dense, or scale_j value(code_j) (kernels/weight_code)
//   y_j = u_j + residual       or, gated, of two W_j:    y_0 = silu(u_0) u_1 + residual
//
// With coded rows n becomes codes too, a scale a row, as weight_code makes them of a matrix: products of many rows then run at the speed
// of eight bits where gemm takes codes, and are those of the decoded numbers elsewhere.
//
// On sm_90a few rows of bf16 (streamed_rows) take a kernel that streams the weights, and more of them (kWideRows) one that streams dense
// weights through larger products: in each of the two the bits of a row of y depend on neither the other rows nor their number. Many rows
// (kGatedRows) of gate and up, without norm, bias and residual, take one that rounds nothing before y.
#pragma once
#include <span>

#include "core/device.h"
#include "core/tensor.h"
#include "kernels/weight_code/weight_code.h"

namespace lc::kernels {

struct FrozenMatrix {
    TensorView w;      // [Out,In]  in, dtype of x; with a code u8, dense
    TensorView scale;  // [Out]     in, f32, dense, with a code only
    TensorView b;      // [Out]     in, dtype of x, or empty
};

struct FrozenLinear {
    TensorView x;                            // [...,In]  in
    TensorView norm_weight;                  // [In]      in, or empty: no norm; on the GPU f32 or the dtype of x
    std::span<const FrozenMatrix> matrices;  // one to three; gated: gate and up, of one shape
    TensorView residual;                     // [...,Out] in, or empty; only where there is one y
    std::span<const TensorView> y;           // [...,Out] out, one a matrix; gated: one
    WeightCode code = WeightCode::none;      // of all matrices
    bool code_rows = false;                  // fp8 only
    bool gated = false;
    double norm_eps = 1e-5, norm_offset = 0;  // as in RmsNormForward
};
void frozen_linear(const FrozenLinear& args, Stream stream);
void frozen_linear_cuda(const FrozenLinear& args, Stream stream);

// Most rows of x that the streaming kernel takes, and the one for more rows of x.
constexpr int64_t streamed_rows(WeightCode code) {
    return code == WeightCode::none ? 16 : 32;
}
inline constexpr int64_t kWideRows = 64;
// Fewest rows of x that gate, up and SwiGLU in one product take.
inline constexpr int64_t kGatedRows = 256;
// u = codes [rows,In] times codes of m, with their scales, b and residual added, by one product of codes; false, and nothing done, where
// gemm does not take these.
bool multiply_codes_cuda(const TensorView& codes, const TensorView& scale, const FrozenMatrix& m,
                         const TensorView& residual, const TensorView& y, Stream stream);
// Where these kernels apply; false, and nothing done, where they do not.
bool frozen_linear_stream(const FrozenLinear& args, Stream stream);
bool frozen_linear_wide(const FrozenLinear& args, Stream stream);
bool frozen_linear_gated(const FrozenLinear& args, Stream stream);
// The ops one after the other, a coded matrix decoded into workspace: any device, dtype and shape.
void frozen_linear_by_parts(const FrozenLinear& args, Stream stream);

}  // namespace lc::kernels
