// Step 3: tensor cores. A warp has 16 queries.
//
// IDEA     mma.sync multiplies 16 x 16 by 16 x 8 bf16 at once: 4096 FLOPs an instruction of a warp, 16 times what lanes do alone. Its operands
//          are fragments, registers spread over the warp (kernels/common/cuda/mma.cuh); ldmatrix fetches them. The result's fragment has a row
//          in four lanes, so softmax is a shuffle over a quad, and weights, rounded to bf16, are the next product's left operand as they
//          stand: scores never leave registers.
//
//            warp:  scores [16,64] = q [16,D] k^T  ->  weights  ->  y [16,D] += weights v
//
// COST     tiles are fetched by ordinary loads, and all wait for them, twice a step: tensor cores idle meanwhile. Step 4, the library's
//          softmax_attention_mma.cu, lets cp.async bring k while v's product runs and v while k's does, and gives a warp 32 rows, which
//          halves what comes from shared memory. Step 5, softmax_attention_sm90.cu, is the same with Hopper's wgmma and TMA.
#include "bench/ladder/heads.cuh"
#include "bench/ladder/steps.h"
#include "kernels/common/cuda/mma.cuh"

namespace lc::bench {
namespace {

using namespace kernels;

constexpr int kThreads = 128, kRows = 64, kKeys = 64;

struct Args {
    Heads q, k, v, y;
    int64_t heads, t;
    float scale;
};

template <int D>
__device__ void load_tile(const SharedTile<D>& to, const __nv_bfloat16* matrix, int64_t stride, int64_t first,
                          int64_t rows) {
    for (int i = threadIdx.x; i < 64 * D / 8; i += kThreads) {
        const int r = i / (D / 8), c = i % (D / 8) * 8;
        *reinterpret_cast<uint4*>(to.chunk(r, c)) =
            first + r < rows ? *reinterpret_cast<const uint4*>(matrix + (first + r) * stride + c) : uint4{};
    }
}

template <int D>
__global__ void __launch_bounds__(kThreads) mma_kernel(const __grid_constant__ Args a) {
    extern __shared__ __align__(16) unsigned char shared[];
    const SharedTile<D> q{reinterpret_cast<__nv_bfloat16*>(shared)}, k{q.data + kRows * D}, v{k.data + kKeys * D};
    const int64_t first = static_cast<int64_t>(blockIdx.x) * kRows, b = blockIdx.y / a.heads, h = blockIdx.y % a.heads;
    const int lane = threadIdx.x % kWarp, g = lane / 4, t = lane % 4, warp_row = threadIdx.x / kWarp * 16;
    load_tile(q, a.q.row(b, h, a.heads, 0), a.q.strides[2], first, a.t);
    Accumulator y[D / 8] = {};
    float high[2] = {-INFINITY, -INFINITY}, sum[2] = {};  // of rows g and g + 8; sum: this lane's share
    for (int64_t j0 = 0; j0 <= first; j0 += kKeys) {
        __syncthreads();
        load_tile(k, a.k.row(b, h, a.heads, 0), a.k.strides[2], j0, a.t);
        load_tile(v, a.v.row(b, h, a.heads, 0), a.v.strides[2], j0, a.t);
        __syncthreads();
        Accumulator score[kKeys / 8] = {};
#pragma unroll
        for (int c = 0; c < D; c += 16) {
            const FragmentA rows = load_a(q, warp_row, c);
#pragma unroll
            for (int n = 0; n < kKeys / 8; n += 2) {
                const FragmentB keys = load_b(k, 8 * n, c);
                mma(score[n], rows, keys, 0), mma(score[n + 1], rows, keys, 1);
            }
        }
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const int64_t row = first + warp_row + 8 * half + g;
            float top = high[half];
#pragma unroll
            for (int n = 0; n < kKeys / 8; ++n)
#pragma unroll
                for (int e = 0; e < 2; ++e) {
                    float& s = score[n].c[2 * half + e];
                    s = j0 + 8 * n + 2 * t + e <= row ? s * a.scale : -INFINITY;
                    top = fmaxf(top, s);
                }
            top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 1));
            top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 2));
            const float shrink = __expf(high[half] - top);
            high[half] = top, sum[half] *= shrink;
#pragma unroll
            for (int n = 0; n < kKeys / 8; ++n)
#pragma unroll
                for (int e = 0; e < 2; ++e) {
                    float& s = score[n].c[2 * half + e];
                    s = __expf(s - top), sum[half] += s;
                }
#pragma unroll
            for (int n = 0; n < D / 8; ++n) y[n].c[2 * half] *= shrink, y[n].c[2 * half + 1] *= shrink;
        }
#pragma unroll
        for (int j = 0; j < kKeys / 8; j += 2) {
            const FragmentA weights = as_a(score[j], score[j + 1]);
#pragma unroll
            for (int n = 0; n < D / 8; n += 2) {
                const FragmentB values = load_b_transposed(v, 8 * n, 8 * j);
                mma(y[n], weights, values, 0), mma(y[n + 1], weights, values, 1);
            }
        }
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const int64_t row = first + warp_row + 8 * half + g;
        const float inverse = 1 / warp_sum<4>(sum[half]);
        if (row >= a.t) continue;
        __nv_bfloat16* to = a.y.row(b, h, a.heads, row);
#pragma unroll
        for (int n = 0; n < D / 8; ++n)
            *reinterpret_cast<uint32_t*>(to + 8 * n + 2 * t) =
                pack_bf16(y[n].c[2 * half] * inverse, y[n].c[2 * half + 1] * inverse);
    }
}

}  // namespace

void softmax_mma(const SoftmaxAttentionForward& args, Stream stream) {
    const int64_t t = args.q.size(2), d = args.q.size(3);
    const Args a{Heads(args.q),
                 Heads(args.k),
                 Heads(args.v),
                 Heads(args.y),
                 args.q.size(1),
                 t,
                 1 / sqrtf(static_cast<float>(d))};
    const dim3 grid(grid_x(ceil_div(t, kRows)), static_cast<unsigned>(args.q.size(0) * args.q.size(1)));
    dispatch_size(d, [&](auto size) {
        constexpr int kBytes = 3 * SharedTile<size()>::bytes(64);
        allow_shared_memory(mma_kernel<size()>, kBytes);
        mma_kernel<size()><<<grid, kThreads, kBytes, cuda::handle_of(stream)>>>(a);
    });
    LC_LAUNCHED("softmax_mma", cuda::handle_of(stream));
}

}  // namespace lc::bench
