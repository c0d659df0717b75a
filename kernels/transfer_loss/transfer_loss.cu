// Stage 1 on the GPU: fused (transfer_loss_fused.h) where that applies, else the chunked form of hybrid_attention with the loss
// between its two directions.
//
// MATHS    transfer_loss.h. A slice's y, dN and dZ exist in workspace only; no scores' gradients, no dq, dk, dv are made.
// TILING   kernels/hybrid_attention/hybrid_chunked.cuh; the loss: one warp a row, then one block an item, then one block.
// COST     hybrid_chunked.cu, and 6 F' D + 2 D F FLOPs a row and query head on top.
// NUMERICS squares of a row are summed in f32, rows in f64 in a fixed order; y is not rounded. The rest as hybrid_chunked.cu.
// LADDER   1 this.
// SOURCE   arXiv 2410.10254, section 3.1.
#include "kernels/transfer_loss/transfer_loss.h"

#include "core/profile.h"
#include "kernels/common/cuda/elementwise.cuh"
#include "kernels/hybrid_attention/hybrid_chunked.cuh"
#include "kernels/transfer_loss/transfer_loss_fused.h"

namespace lc::kernels {
namespace {

// Squares of y - target; with dn also dN and dZ of dy = scale (y - target). One warp a row.
template <class T>
__global__ void difference_kernel(ChunkGrid g, HeadOf head, const float* n, const float* z, int ld, StridedRows target,
                                  float scale, float* squares, T* dn, float* dz) {
    const int64_t r = static_cast<int64_t>(blockIdx.x) * kRowsPerBlock + threadIdx.x / kWarp;
    if (r >= g.rows()) return;
    const int lane = threadIdx.x % kWarp;
    const GridRow row(g, r);
    const int64_t from = row.query ? target.row(row.batch, head.of(row.kv_head), row.position - g.first_row) : 0;
    float sum = 0, dot = 0;
    for (int i = lane; i < ld; i += kWarp) {
        const bool inside = row.query && i < target.d;
        float difference = 0;
        if (inside) {
            difference =
                n[r * ld + i] / z[r] - to_float(static_cast<const T*>(target.data)[from + i * target.stride_d]);
            sum += difference * difference;
        }
        if (!dn) continue;
        const T value = from_float<T>(inside ? scale * difference / z[r] : 0.0f);
        dn[r * ld + i] = value;
        if (inside) dot += to_float(value) * n[r * ld + i];
    }
    sum = warp_sum(sum), dot = warp_sum(dot);
    if (lane != 0) return;
    squares[r] = sum;
    if (dn) dz[r] = row.query ? -dot / z[r] : 0.0f;
}

// One block an item: its rows into the sum of its (batch, head).
__global__ void item_loss_kernel(ChunkGrid g, HeadOf head, int64_t heads, const float* squares, double* losses) {
    const int64_t item = blockIdx.x, rows = g.item_rows();
    double sum = 0;
    for (int64_t r = threadIdx.x; r < rows; r += blockDim.x) sum += squares[item * rows + r];
    sum = block_sum(sum);
    if (threadIdx.x == 0) losses[(g.batch0 + item % g.batch) * heads + head.of(g.heads0 + item / g.batch)] = sum;
}

__global__ void total_loss_kernel(const double* losses, int64_t count, double factor, Operand loss) {
    double sum = 0;
    for (int64_t i = threadIdx.x; i < count; i += blockDim.x) sum += losses[i];
    sum = block_sum(sum);
    if (threadIdx.x == 0) loss.put(0, static_cast<float>(factor * sum));
}

struct Product {
    __device__ void operator()(const float (&in)[2], float (&out)[1]) const { out[0] = in[0] * in[1]; }
};

}  // namespace

void transfer_loss_cuda(const TransferLoss& args, const HybridAttentionForward& attention, Stream stream) {
    if (transfer_loss_fused_covers(args, attention)) return transfer_loss_fused(args, attention, stream);
    if (args.spec.window != WindowKind::none) profile_count("fallback transfer_loss");
    const cudaStream_t queue = cuda::handle_of(stream);
    const HybridGradSlots slots{.ds_out = {},
                                .dz_out = {},
                                .dq = {},
                                .dk = {},
                                .dv = {},
                                .dwq = args.gradients.dwq,
                                .dbq = args.gradients.dbq,
                                .dwk = args.gradients.dwk,
                                .dbk = args.gradients.dbk,
                                .dmix_logit = args.gradients.dmix_logit,
                                .ds_in = {},
                                .dz_in = {}};
    HybridChunked chunked(attention, &slots, stream);
    const int64_t heads = args.q.size(1), count = args.q.size(0) * heads;
    const double numel = static_cast<double>(args.q.numel());
    const DeviceScratch<double> losses(std::max<int64_t>(count, 1), stream);
    const DeviceScratch<float> squares(chunked.slice_rows(), stream);
    chunked.run([&](int64_t g) {
        const ChunkGrid& grid = chunked.grid();
        dispatch_cuda(args.q.dtype, "transfer_loss", [&](auto type) {
            using T = typename decltype(type)::type;
            difference_kernel<T><<<grid_x(ceil_div(grid.rows(), kRowsPerBlock)), kRowThreads, 0, queue>>>(
                grid, chunked.query_head(g), chunked.numerator(), chunked.denominator(),
                static_cast<int>(chunked.padded_d()), StridedRows(args.target),
                static_cast<float>(2 * args.factor / numel), squares.data(),
                slots.any() ? static_cast<T*>(chunked.upstream()) : nullptr, chunked.upstream_z());
        });
        LC_LAUNCHED("transfer_loss", queue);
        item_loss_kernel<<<grid_x(grid.items()), 256, 0, queue>>>(grid, chunked.query_head(g), heads, squares.data(),
                                                                  losses.data());
        LC_LAUNCHED("transfer_loss", queue);
    });
    total_loss_kernel<<<1, 256, 0, queue>>>(losses.data(), count, args.factor / numel, Operand(args.loss));
    LC_LAUNCHED("transfer_loss", queue);
}

void transfer_loss_backward_cuda(const TransferLossBackward& args, Stream stream) {
    const TensorView dloss = broadcast(args.dloss, args.gradient.shape());
    elementwise<2, 1>("transfer_loss", Product{}, {dloss, args.gradient}, {{args.out}}, stream);
}

}  // namespace lc::kernels
