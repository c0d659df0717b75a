// GELU on the GPU.
//
// MATHS    gelu.h.
// TILING   elementwise.cuh; the backward makes both gradients in one pass and one exponential.
// COST     alone: forward 8 bytes an element in f32, 4 in bf16; backward 12 and 6. As a gate: 12 and 6; 20 and 10.
// NUMERICS f32 throughout. exp(-2 p) overflows to infinity for x < -9, where s = 0 and every product with it is the right 0.
// LADDER   1 this.
// SOURCE   arXiv 1606.08415.
#include "kernels/common/cuda/elementwise.cuh"
#include "kernels/gelu/gelu.h"

namespace lc::kernels {
namespace {

constexpr float kSlope = 0.79788456080286535588f, kCubic = 0.044715f;  // sqrt(2/pi), c

__device__ __forceinline__ float gate(float x) {
    return 1 / (1 + expf(-2 * kSlope * x * (1 + kCubic * x * x)));
}
__device__ __forceinline__ float derivative(float x, float s) {
    return s + 2 * x * s * (1 - s) * kSlope * (1 + 3 * kCubic * x * x);
}

struct Gelu {
    __device__ void operator()(const float (&in)[1], float (&out)[1]) const { out[0] = in[0] * gate(in[0]); }
};
struct GeluGradient {
    __device__ void operator()(const float (&in)[2], float (&out)[1]) const {
        const auto [x, dy] = in;
        out[0] = dy * derivative(x, gate(x));
    }
};
struct GatedGelu {
    __device__ void operator()(const float (&in)[2], float (&out)[1]) const {
        const auto [x, up] = in;
        out[0] = x * gate(x) * up;
    }
};
struct GatedGeluGradient {
    __device__ void operator()(const float (&in)[3], float (&out)[2]) const {
        const auto [x, up, dy] = in;
        const float s = gate(x);
        out[0] = dy * up * derivative(x, s);
        out[1] = dy * x * s;
    }
};

}  // namespace

void gelu_forward_cuda(const GeluForward& args, Stream stream) {
    if (args.up)
        elementwise<2, 1>("gelu", GatedGelu{}, {args.x, args.up}, {{{args.y}}}, stream);
    else
        elementwise<1, 1>("gelu", Gelu{}, {args.x}, {{{args.y}}}, stream);
}

void gelu_backward_cuda(const GeluBackward& args, Stream stream) {
    if (args.up)
        elementwise<3, 2>("gelu", GatedGeluGradient{}, {args.x, args.up, args.dy}, {args.dx, args.dup}, stream);
    else
        elementwise<2, 1>("gelu", GeluGradient{}, {args.x, args.dy}, {args.dx}, stream);
}

}  // namespace lc::kernels
