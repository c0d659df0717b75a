// Sum over the rows of a matrix.
//
// MATHS    out[c] (+)= sum_r x[r][c]
// TILING   two launches. A block owns 32 columns and a slice of rows: thread (i, j) adds rows i, i+8, ... of column j, the eight
//          partial sums meet in shared memory, one f32 a (slice, column) goes to workspace. The second launch adds the slices.
// COST     reads x once; workspace slices * C * 4 bytes, below 1 % of x.
// NUMERICS f32 sums; the order depends on the shape alone.
// LADDER   1 this. Wider loads would help narrow dtypes; it is off every hot path (frozen models have no bias gradients).
// SOURCE   derived here.
#include "kernels/common/cuda/column_sum.h"
#include "kernels/common/cuda/operand.cuh"
#include "kernels/common/cuda/pack.cuh"

namespace lc::kernels {
namespace {

constexpr int kColumns = 32, kLanes = 8;
constexpr int64_t kRowsPerSlice = 256;

template <class T>
__global__ void slice_kernel(const T* x, int64_t rows, int64_t columns, int64_t stride, float* parts) {
    __shared__ float sums[kLanes][kColumns];
    const int64_t column = static_cast<int64_t>(blockIdx.x) * kColumns + threadIdx.x;
    const int64_t slices = ceil_div(rows, kRowsPerSlice);
    for (int64_t slice = blockIdx.y; slice < slices; slice += gridDim.y) {
        const int64_t end = min(rows, (slice + 1) * kRowsPerSlice);
        float sum = 0;
        if (column < columns)
            for (int64_t r = slice * kRowsPerSlice + threadIdx.y; r < end; r += kLanes) sum += to_float(x[r * stride + column]);
        sums[threadIdx.y][threadIdx.x] = sum;
        __syncthreads();
        if (threadIdx.y == 0 && column < columns) {
            for (int i = 1; i < kLanes; ++i) sum += sums[i][threadIdx.x];
            parts[slice * columns + column] = sum;
        }
        __syncthreads();
    }
}

__global__ void total_kernel(const float* parts, int64_t slices, int64_t columns, Operand out) {
    const int64_t column = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (column >= columns) return;
    float sum = 0;
    for (int64_t slice = 0; slice < slices; ++slice) sum += parts[slice * columns + column];
    out.put(column, sum);
}

}  // namespace

void column_sum_cuda(const DeviceRows& x, const GradSlot& out, Stream stream) {
    if (!out || x.columns == 0) return;
    const int64_t slices = ceil_div(x.rows, kRowsPerSlice);
    const DeviceScratch<float> parts(slices * x.columns, stream);
    const dim3 grid(grid_x(ceil_div(x.columns, kColumns)), static_cast<unsigned>(std::clamp<int64_t>(slices, 1, 65535)));
    const cudaStream_t queue = cuda::handle_of(stream);
    dispatch_cuda(x.dtype, "column_sum", [&](auto type) {
        using T = typename decltype(type)::type;
        slice_kernel<T><<<grid, dim3(kColumns, kLanes), 0, queue>>>(x.as<T>(), x.rows, x.columns, x.stride, parts.data());
    });
    LC_LAUNCHED("column_sum", queue);
    total_kernel<<<grid_x(ceil_div(x.columns, 128)), 128, 0, queue>>>(parts.data(), slices, x.columns, Operand(out));
    LC_LAUNCHED("column_sum", queue);
}

}  // namespace lc::kernels
