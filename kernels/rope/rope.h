// Rotary position embedding, "rotate half" (arXiv 2104.09864 with Hugging Face's pairing of i and i + D/2):
//   y[i]     = x[i] cos(a_i) - x[i+D/2] sin(a_i)
//   y[i+D/2] = x[i+D/2] cos(a_i) + x[i] sin(a_i)          row t uses row first + t of the tables
// Tables of R/2 < D/2 columns turn the first R of the D numbers in this way (pairs i, i + R/2); the rest pass as they are.
// The backward is the rotation by -a.
//
// With `positions`, sequence b starts at row positions[b] instead of `first`. They are read on the device, where one that does not
// fit the tables is moved to the nearest that does (a decoding batch has idle sequences, at -1); on the CPU that goes for idle
// ones only, and others are an error.
#pragma once
#include "core/device.h"
#include "core/tensor.h"
#include "kernels/common/grad_write.h"

namespace lc::kernels {

struct RopeForward {
    TensorView x;          // [B,H,T,D]  in, D even
    TensorView cos, sin;   // [P,R/2]    in, R <= D; on the GPU f32 also beside bf16
    TensorView y;          // [B,H,T,D]  out
    int64_t first = 0;     // first + T <= P
    TensorView positions;  // [B]        in, i64, dense; or empty
};
void rope_forward(const RopeForward& args, Stream stream);
void rope_forward_cuda(const RopeForward& args, Stream stream);

struct RopeBackward {
    TensorView dy;        // [B,H,T,D]  in
    TensorView cos, sin;  // [P,R/2]    in
    GradSlot dx;          // [B,H,T,D]  out
    int64_t first = 0;
    TensorView positions;  // [B]        in, or empty
};
void rope_backward(const RopeBackward& args, Stream stream);
void rope_backward_cuda(const RopeBackward& args, Stream stream);

}  // namespace lc::kernels
