// Multiplication by a number on the GPU.
//
// MATHS    scale.h.
// TILING   elementwise.cuh.
// COST     8 bytes an element in f32, 4 in bf16.
// NUMERICS the factor is rounded to f32; f32 product, rounded once.
// LADDER   1 this.
// SOURCE   derived here.
#include "kernels/common/cuda/elementwise.cuh"
#include "kernels/scale/scale.h"

namespace lc::kernels {
namespace {

struct Scale {
    float factor;
    __device__ void operator()(const float (&in)[1], float (&out)[1]) const { out[0] = factor * in[0]; }
};

}  // namespace

void scale_forward_cuda(const ScaleForward& args, Stream stream) {
    elementwise<1, 1>("scale", Scale{static_cast<float>(args.factor)}, {args.x}, {{{args.y}}}, stream);
}

void scale_backward_cuda(const ScaleBackward& args, Stream stream) {
    elementwise<1, 1>("scale", Scale{static_cast<float>(args.factor)}, {args.dy}, {args.dx}, stream);
}

}  // namespace lc::kernels
