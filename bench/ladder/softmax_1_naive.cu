// Step 1: the formula. A thread has a row.
//
// IDEA     Online softmax needs no row of scores: with the largest score so far, m, keep sum = sum exp(s - m) and y = sum exp(s - m) v;
//          when a larger one comes, both shrink by exp(m - larger).
//
//            thread of query i:   for j = 0 .. i:   s = q_i . k_j / sqrt(D);   m, sum, y
//
// COST     every thread reads all keys and values that it sees, 4 D bytes a pair: from the caches, since neighbours read the same
//          ones, but through a load for every two FLOPs. y and q of a row, 2 D floats, do not fit a thread's registers.
#include "bench/ladder/heads.cuh"
#include "bench/ladder/steps.h"

namespace lc::bench {
namespace {

constexpr int kThreads = 128;

struct Args {
    Heads q, k, v, y;
    int64_t heads, t;
    float scale;
};

template <int D>
__global__ void __launch_bounds__(kThreads) row_kernel(const __grid_constant__ Args a) {
    const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
    const int64_t b = blockIdx.y / a.heads, h = blockIdx.y % a.heads;
    if (i >= a.t) return;
    const __nv_bfloat16* q = a.q.row(b, h, a.heads, i);
    float y[D] = {}, high = -INFINITY, sum = 0;
    for (int64_t j = 0; j <= i; ++j) {
        const __nv_bfloat16 *k = a.k.row(b, h, a.heads, j), *v = a.v.row(b, h, a.heads, j);
        float score = 0;
#pragma unroll
        for (int c = 0; c < D; ++c) score += __bfloat162float(q[c]) * __bfloat162float(k[c]);
        score *= a.scale;
        const float higher = fmaxf(high, score), shrink = expf(high - higher), weight = expf(score - higher);
        high = higher, sum = sum * shrink + weight;
#pragma unroll
        for (int c = 0; c < D; ++c) y[c] = y[c] * shrink + weight * __bfloat162float(v[c]);
    }
    __nv_bfloat16* to = a.y.row(b, h, a.heads, i);
#pragma unroll
    for (int c = 0; c < D; ++c) to[c] = __float2bfloat16(y[c] / sum);
}

}  // namespace

void softmax_naive(const kernels::SoftmaxAttentionForward& args, Stream stream) {
    const int64_t t = args.q.size(2), d = args.q.size(3);
    const Args a{Heads(args.q),
                 Heads(args.k),
                 Heads(args.v),
                 Heads(args.y),
                 args.q.size(1),
                 t,
                 1 / sqrtf(static_cast<float>(d))};
    const dim3 grid(kernels::grid_x(kernels::ceil_div(t, kThreads)),
                    static_cast<unsigned>(args.q.size(0) * args.q.size(1)));
    dispatch_size(d, [&](auto size) { row_kernel<size()><<<grid, kThreads, 0, cuda::handle_of(stream)>>>(a); });
    LC_LAUNCHED("softmax_naive", cuda::handle_of(stream));
}

}  // namespace lc::bench
