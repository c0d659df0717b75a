// SwiGLU on the GPU.
//
// MATHS    swiglu.h.
// TILING   elementwise.cuh; the backward makes both gradients in one pass and one exponential.
// COST     forward 12 bytes an element in f32, 6 in bf16; backward 20 and 10. About 40 instructions an element, in bf16 25.
// NUMERICS f32 throughout. exp(-g) overflows to infinity for g < -88, where s = 0 and every product with it is the right 0.
//          bf16: approximate exponential and reciprocal (sigmoid.cuh), 2^-20 off at worst where bf16 rounds by 2^-9.
// LADDER   elementwise.cuh.
// SOURCE   arXiv 2002.05202.
#include "kernels/common/cuda/elementwise.cuh"
#include "kernels/common/cuda/sigmoid.cuh"
#include "kernels/swiglu/swiglu.h"

namespace lc::kernels {
namespace {

template <bool Exact>
struct Swiglu {
    using Narrow = Swiglu<false>;
    __device__ void operator()(const float (&in)[2], float (&out)[1]) const {
        const auto [gate, up] = in;
        out[0] = gate * sigmoid<Exact>(gate) * up;
    }
};
template <bool Exact>
struct SwigluGradient {
    using Narrow = SwigluGradient<false>;
    __device__ void operator()(const float (&in)[3], float (&out)[2]) const {
        const auto [gate, up, dy] = in;
        const float s = sigmoid<Exact>(gate);
        out[0] = dy * up * s * (1 + gate * (1 - s));
        out[1] = dy * gate * s;
    }
};

}  // namespace

void swiglu_forward_cuda(const SwigluForward& args, Stream stream) {
    elementwise<2, 1>("swiglu", Swiglu<true>{}, {args.gate, args.up}, {{{args.y}}}, stream);
}

void swiglu_backward_cuda(const SwigluBackward& args, Stream stream) {
    elementwise<3, 2>("swiglu", SwigluGradient<true>{}, {args.gate, args.up, args.dy}, {args.dgate, args.dup}, stream);
}

}  // namespace lc::kernels
