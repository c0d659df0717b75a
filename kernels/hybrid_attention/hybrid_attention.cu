// Hybrid attention on the GPU: the fused form (hybrid_fused.h) where it applies, else the steps of hybrid_chunked.cuh between the
// op's arguments and its results.
//
// MATHS    hybrid_attention.h; in the chunked form y is made again in f32 in the backward, so that dZ does not see its rounding.
// TILING   hybrid_chunked.cuh; here one warp a row.
// COST     the forward: see hybrid_chunked.cu; the backward: see hybrid_chunked_backward.cu.
// NUMERICS y = N / Z in f32, rounded once.
// LADDER   1 this.
// SOURCE   arXiv 2410.10254.
#include "kernels/hybrid_attention/hybrid_attention.h"

#include "core/profile.h"
#include "kernels/common/cuda/hopper.h"
#include "kernels/hybrid_attention/hybrid_chunked.cuh"
#include "kernels/hybrid_attention/hybrid_fused.h"

namespace lc::kernels {
namespace {

template <class T>
__global__ void output_kernel(ChunkGrid g, HeadOf head, const float* n, const float* z, int ld, StridedRows y) {
    const int64_t r = static_cast<int64_t>(blockIdx.x) * kRowsPerBlock + threadIdx.x / kWarp;
    if (r >= g.rows()) return;
    const GridRow row(g, r);
    if (!row.query) return;
    T* out = static_cast<T*>(y.data) + y.row(row.batch, head.of(row.kv_head), row.position - g.first_row);
    for (int i = threadIdx.x % kWarp; i < y.d; i += kWarp) out[i * y.stride_d] = from_float<T>(n[r * ld + i] / z[r]);
}

// Pure linear attention, which shares the chunked form, counts its own.
void count_fallback(const HybridAttentionForward& args) {
    if (args.spec.window != WindowKind::none) profile_count("fallback hybrid_attention");
}

}  // namespace

void hybrid_attention_forward_cuda(const HybridAttentionForward& args, Stream stream) {
    if (hybrid_fused_forward_covers(args)) {
        const bool whole_blocks = (args.k.size(2) - args.q.size(2)) % args.spec.window_size == 0;
        if (whole_blocks && hopper_applies({args.q, args.k, args.v, args.y}))
            return hybrid_fused_forward_sm90(args, stream);
        return hybrid_fused_forward(args, stream);
    }
    count_fallback(args);
    const cudaStream_t queue = cuda::handle_of(stream);
    HybridChunked chunked(args, nullptr, stream);
    chunked.run([&](int64_t g) {
        const ChunkGrid& grid = chunked.grid();
        dispatch_cuda(args.q.dtype, "hybrid_attention", [&](auto type) {
            using T = typename decltype(type)::type;
            output_kernel<T><<<grid_x(ceil_div(grid.rows(), kRowsPerBlock)), kRowThreads, 0, queue>>>(
                grid, chunked.query_head(g), chunked.numerator(), chunked.denominator(),
                static_cast<int>(chunked.padded_d()), StridedRows(args.y));
        });
        LC_LAUNCHED("hybrid_attention", queue);
    });
}

void hybrid_attention_backward_cuda(const HybridAttentionBackward& args, Stream stream) {
    const HybridGradSlots slots{args.ds_out, args.dz_out, args.dq,  args.dk,         args.dv,    args.dwq,
                                args.dbq,    args.dwk,    args.dbk, args.dmix_logit, args.ds_in, args.dz_in};
    if (!slots.any()) return;
    if (hybrid_fused_covers(args)) return hybrid_fused_backward(args, stream);
    count_fallback(args.forward);
    HybridAttentionForward forward = args.forward;
    forward.s_out = {}, forward.z_out = {};
    HybridChunked chunked(forward, &slots, stream);
    chunked.run([&](int64_t g) { hybrid_upstream_cuda(chunked, g, args.dy, stream); });
}

}  // namespace lc::kernels
