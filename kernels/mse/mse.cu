// Mean squared error on the GPU.
//
// MATHS    mse.h.
// TILING   sum.cuh; the backward makes both gradients in one elementwise pass, the loss's gradient a broadcast input.
// COST     forward 8 bytes an element in f32, 4 in bf16; backward 8 (4) and each wanted gradient once.
// NUMERICS differences, squares and sums in f64, rounded once to the f32 loss.
// LADDER   1 this.
// SOURCE   derived here.
#include "kernels/common/cuda/elementwise.cuh"
#include "kernels/common/cuda/sum.cuh"
#include "kernels/mse/mse.h"

namespace lc::kernels {
namespace {

struct SquaredDifference {
    __device__ double operator()(const float (&in)[2]) const {
        const double difference = static_cast<double>(in[0]) - static_cast<double>(in[1]);
        return difference * difference;
    }
};

struct MseGradient {
    float factor;  // 2 / n
    __device__ void operator()(const float (&in)[3], float (&out)[2]) const {
        const auto [y, target, dloss] = in;
        out[0] = factor * dloss * (y - target);
        out[1] = -out[0];
    }
};

}  // namespace

void mse_forward_cuda(const MseForward& args, Stream stream) {
    const int64_t n = args.y.numel(), count = sum_parts(n);
    const DeviceScratch<double> parts(count, stream);
    sum_terms<2>("mse", SquaredDifference{}, {args.y, args.target}, parts.data(), stream);
    sum_total(parts.data(), count, 1.0 / static_cast<double>(n), args.loss, stream);
}

void mse_backward_cuda(const MseBackward& args, Stream stream) {
    const float factor = static_cast<float>(2.0 / static_cast<double>(args.y.numel()));
    elementwise<3, 2>("mse", MseGradient{factor}, {args.y, args.target, broadcast(args.dloss, args.y.shape())},
                      {args.dy, args.dtarget}, stream);
}

}  // namespace lc::kernels
