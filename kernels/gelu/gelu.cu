// GELU on the GPU.
//
// MATHS    gelu.h.
// TILING   elementwise.cuh; the backward makes both gradients in one pass and one exponential.
// COST     alone: forward 8 bytes an element in f32, 4 in bf16; backward 12 and 6. As a gate: 12 and 6; 20 and 10.
// NUMERICS f32 throughout. exp(-2 p) overflows to infinity for x < -9, where s = 0 and every product with it is the right 0.
//          bf16: approximate exponential and reciprocal (sigmoid.cuh).
// LADDER   elementwise.cuh.
// SOURCE   arXiv 1606.08415.
#include "kernels/common/cuda/elementwise.cuh"
#include "kernels/common/cuda/sigmoid.cuh"
#include "kernels/gelu/gelu.h"

namespace lc::kernels {
namespace {

constexpr float kSlope = 0.79788456080286535588f, kCubic = 0.044715f;  // sqrt(2/pi), c

template <bool Exact>
__device__ __forceinline__ float gate(float x) {
    return sigmoid<Exact>(2 * kSlope * x * (1 + kCubic * x * x));
}
__device__ __forceinline__ float derivative(float x, float s) {
    return s + 2 * x * s * (1 - s) * kSlope * (1 + 3 * kCubic * x * x);
}

template <bool Exact>
struct Gelu {
    using Narrow = Gelu<false>;
    __device__ void operator()(const float (&in)[1], float (&out)[1]) const { out[0] = in[0] * gate<Exact>(in[0]); }
};
template <bool Exact>
struct GeluGradient {
    using Narrow = GeluGradient<false>;
    __device__ void operator()(const float (&in)[2], float (&out)[1]) const {
        const auto [x, dy] = in;
        out[0] = dy * derivative(x, gate<Exact>(x));
    }
};
template <bool Exact>
struct GatedGelu {
    using Narrow = GatedGelu<false>;
    __device__ void operator()(const float (&in)[2], float (&out)[1]) const {
        const auto [x, up] = in;
        out[0] = x * gate<Exact>(x) * up;
    }
};
template <bool Exact>
struct GatedGeluGradient {
    using Narrow = GatedGeluGradient<false>;
    __device__ void operator()(const float (&in)[3], float (&out)[2]) const {
        const auto [x, up, dy] = in;
        const float s = gate<Exact>(x);
        out[0] = dy * up * derivative(x, s);
        out[1] = dy * x * s;
    }
};

}  // namespace

void gelu_forward_cuda(const GeluForward& args, Stream stream) {
    if (args.up)
        elementwise<2, 1>("gelu", GatedGelu<true>{}, {args.x, args.up}, {{{args.y}}}, stream);
    else
        elementwise<1, 1>("gelu", Gelu<true>{}, {args.x}, {{{args.y}}}, stream);
}

void gelu_backward_cuda(const GeluBackward& args, Stream stream) {
    if (args.up)
        elementwise<3, 2>("gelu", GatedGeluGradient<true>{}, {args.x, args.up, args.dy}, {args.dx, args.dup}, stream);
    else
        elementwise<2, 1>("gelu", GeluGradient<true>{}, {args.x, args.dy}, {args.dx}, stream);
}

}  // namespace lc::kernels
