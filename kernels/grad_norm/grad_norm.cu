// Norm over many tensors on the GPU.
//
// MATHS    grad_norm.h.
// TILING   sum.cuh: one launch a tensor fills its part of one table of partial sums, one block adds the table.
// COST     each gradient once, and one wait of the host for eight bytes: a training step decides on the host what to do next.
// NUMERICS f64 squares and sums in an order that depends on shapes and layouts alone.
// LADDER   1 this.
// SOURCE   derived here.
#include <cmath>

#include "core/cuda/runtime.h"
#include "kernels/common/cuda/sum.cuh"
#include "kernels/grad_norm/grad_norm.h"

namespace lc::kernels {
namespace {

struct Square {
    __device__ double operator()(const float (&in)[1]) const {
        const double value = in[0];
        return value * value;
    }
};

}  // namespace

double grad_norm_cuda(const GradNorm& args, Stream stream) {
    int64_t count = 0;
    for (const TensorView& view : args.tensors) count += sum_parts(view.numel());
    const DeviceScratch<double> parts(count, stream), total(1, stream);
    double* next = parts.data();
    for (const TensorView& view : args.tensors) {
        sum_terms<1>("grad_norm", Square{}, {view}, next, stream);
        next += sum_parts(view.numel());
    }
    auto* squares_at = reinterpret_cast<std::byte*>(total.data());
    sum_total(parts.data(), count, 1.0, {squares_at, Layout::contiguous({}), DType::f64, stream.device}, stream);
    double squares = 0;
    cuda::copy_bytes(reinterpret_cast<std::byte*>(&squares), squares_at, sizeof squares, stream);  // waits: pageable
    return std::sqrt(squares);
}

}  // namespace lc::kernels
