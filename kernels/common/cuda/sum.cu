// The second stage of sum.cuh.
//
// MATHS    result = factor * sum_b parts[b]
// TILING   one block: thread t adds parts t, t + 1024, ..., then the threads meet as a tree.
// COST     8 bytes for every kChunk elements summed; a launch's latency.
// NUMERICS f64, rounded once to the result's dtype.
// LADDER   1 this.
// SOURCE   derived here.
#include "kernels/common/cuda/sum.cuh"

#include "core/cuda/element.cuh"

namespace lc::kernels {
namespace {

__global__ void total_kernel(const double* parts, int64_t count, double factor, std::byte* result, DType dtype) {
    double sum = 0;
    for (int64_t i = threadIdx.x; i < count; i += blockDim.x) sum += parts[i];
    sum = block_sum(sum) * factor;
    if (threadIdx.x != 0) return;
    if (dtype == DType::f64)
        *reinterpret_cast<double*>(result) = sum;
    else
        cuda::store_float(result, 0, dtype, static_cast<float>(sum));
}

}  // namespace

void sum_total(const double* parts, int64_t count, double factor, const TensorView& result, Stream stream) {
    std::byte* place = result.base + result.layout.offset * size_of(result.dtype);
    total_kernel<<<1, 1024, 0, cuda::handle_of(stream)>>>(parts, count, factor, place, result.dtype);
    LC_LAUNCHED("sum_total", cuda::handle_of(stream));
}

}  // namespace lc::kernels
