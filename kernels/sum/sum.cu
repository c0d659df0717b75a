// Sum of all elements on the GPU.
//
// MATHS    sum.h.
// TILING   sum.cuh; the backward is elementwise.cuh with a broadcast input.
// COST     each element once.
// NUMERICS f64 sums in an order that depends on shape and layout alone, rounded once.
// LADDER   1 a run at a time, each load awaited and added to one f64 chain: bound by latency.
//          2 four runs under way and four chains: meant for 0.85 of a copy's rate.
// SOURCE   derived here.
#include "kernels/common/cuda/elementwise.cuh"
#include "kernels/common/cuda/sum.cuh"
#include "kernels/sum/sum.h"

namespace lc::kernels {
namespace {

struct Value {
    __device__ double operator()(const float (&in)[1]) const { return in[0]; }
};

}  // namespace

void sum_forward_cuda(const SumForward& args, Stream stream) {
    const int64_t count = sum_parts(args.x.numel());
    const DeviceScratch<double> parts(count, stream);
    sum_terms<1>("sum", Value{}, {args.x}, parts.data(), stream);
    sum_total(parts.data(), count, 1.0, args.y, stream);
}

void sum_backward_cuda(const SumBackward& args, Stream stream) {
    if (!args.dx) return;
    elementwise<1, 1>("sum", Identity{}, {broadcast(args.dy, args.dx.view.shape())}, {args.dx}, stream);
}

}  // namespace lc::kernels
