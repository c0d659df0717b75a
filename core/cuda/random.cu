// Random numbers on the device.
//
// MATHS    to[i] = deviation * normal(i), core/rng.h; `to` is contiguous.
// TILING   one thread an element, in strides of the grid.
// COST     size_of(to) bytes and ten Philox rounds, a logarithm and a cosine in f64 an element: bound by f64 arithmetic. Models are
//          initialized once.
// NUMERICS f64, rounded to f32 and then to the dtype, as on the CPU.
// LADDER   1 this.
// SOURCE   Philox, Salmon et al., SC 2011; Box and Muller, 1958.
#include "core/cuda/check.h"
#include "core/cuda/element.cuh"
#include "core/cuda/runtime.h"
#include "core/rng.h"

namespace lc::cuda {
namespace {

constexpr int kThreads = 256;

__global__ void normal_kernel(void* to, DType dtype, int64_t count, double deviation, Random random) {
    const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
    for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += step)
        store_float(to, i, dtype, static_cast<float>(deviation * random.normal(static_cast<uint64_t>(i))));
}

}  // namespace

void fill_normal(const TensorView& to, double deviation, const Random& random, Stream stream) {
    LC_CHECK(to.layout.is_contiguous(), "fill_normal: needs a contiguous tensor, got {}", to.shape());
    const int64_t count = to.numel();
    if (count == 0) return;
    const auto blocks = static_cast<unsigned>(std::min<int64_t>((count + kThreads - 1) / kThreads, 1 << 16));
    normal_kernel<<<blocks, kThreads, 0, handle_of(stream)>>>(to.base + to.layout.offset * size_of(to.dtype), to.dtype, count,
                                                             deviation, random);
    LC_LAUNCHED("fill_normal", handle_of(stream));
}

}  // namespace lc::cuda
