// Rotary position embedding, "rotate half" (arXiv 2104.09864 with Hugging Face's pairing of i and i + D/2):
//   y[i]     = x[i] cos(a_i) - x[i+D/2] sin(a_i)
//   y[i+D/2] = x[i+D/2] cos(a_i) + x[i] sin(a_i)          row t uses row first + t of the tables
// The backward is the rotation by -a.
#pragma once
#include "core/device.h"
#include "core/tensor.h"
#include "kernels/common/grad_write.h"

namespace lc::kernels {

struct RopeForward {
    TensorView x;         // [B,H,T,D]  in, D even
    TensorView cos, sin;  // [P,D/2]    in; on the GPU f32 also beside bf16
    TensorView y;         // [B,H,T,D]  out
    int64_t first = 0;    // first + T <= P
};
void rope_forward(const RopeForward& args, Stream stream);
void rope_forward_cuda(const RopeForward& args, Stream stream);

struct RopeBackward {
    TensorView dy;        // [B,H,T,D]  in
    TensorView cos, sin;  // [P,D/2]    in
    GradSlot dx;          // [B,H,T,D]  out
    int64_t first = 0;
};
void rope_backward(const RopeBackward& args, Stream stream);
void rope_backward_cuda(const RopeBackward& args, Stream stream);

}  // namespace lc::kernels
