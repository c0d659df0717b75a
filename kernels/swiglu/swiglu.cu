// SwiGLU on the GPU.
//
// MATHS    swiglu.h.
// TILING   elementwise.cuh; the backward makes both gradients in one pass and one exponential.
// COST     forward 12 bytes an element in f32, 6 in bf16; backward 20 and 10. About 40 instructions an element: still under memory.
// NUMERICS f32 throughout. exp(-g) overflows to infinity for g < -88, where s = 0 and every product with it is the right 0.
// LADDER   1 this.
// SOURCE   arXiv 2002.05202.
#include "kernels/common/cuda/elementwise.cuh"
#include "kernels/swiglu/swiglu.h"

namespace lc::kernels {
namespace {

struct Swiglu {
    __device__ void operator()(const float (&in)[2], float (&out)[1]) const {
        const auto [gate, up] = in;
        out[0] = gate / (1 + expf(-gate)) * up;
    }
};
struct SwigluGradient {
    __device__ void operator()(const float (&in)[3], float (&out)[2]) const {
        const auto [gate, up, dy] = in;
        const float s = 1 / (1 + expf(-gate));
        out[0] = dy * up * s * (1 + gate * (1 - s));
        out[1] = dy * gate * s;
    }
};

}  // namespace

void swiglu_forward_cuda(const SwigluForward& args, Stream stream) {
    elementwise<2, 1>("swiglu", Swiglu{}, {args.gate, args.up}, {{{args.y}}}, stream);
}

void swiglu_backward_cuda(const SwigluBackward& args, Stream stream) {
    elementwise<3, 2>("swiglu", SwigluGradient{}, {args.gate, args.up, args.dy}, {args.dgate, args.dup}, stream);
}

}  // namespace lc::kernels
