// Step 1: the formula of hybrid attention. A thread has a row and looks at every key before it.
//
// IDEA     Features are made first, by the feature_map op. Then keys of the query's own block of w and of the block before weigh
//          gamma exp(s - m), with m the largest score among them, and all older ones phi_q . phi_k: a row needs its window twice, once for m.
//
//            thread of query i:   j in the window: m;   j far: l = phi_q . phi_k;   j in the window: p = gamma exp(s - m);   N, Z
//
// COST     T^2 / 2 pairs a head, as softmax attention: the linear branch is not used as such. See step 2.
#include "bench/ladder/heads.cuh"
#include "bench/ladder/steps.h"

namespace lc::bench {
namespace {

constexpr int kThreads = 128;

struct Args {
    Heads q, k, v, y, phi_q, phi_k;
    const float* mix_logit;
    int64_t heads, t, window;
    int features;
    float scale;
};

__device__ float dot(const __nv_bfloat16* a, const __nv_bfloat16* b, int size) {
    float sum = 0;
    for (int c = 0; c < size; ++c) sum += __bfloat162float(a[c]) * __bfloat162float(b[c]);
    return sum;
}

template <int D>
__global__ void __launch_bounds__(kThreads) row_kernel(const __grid_constant__ Args a) {
    const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
    const int64_t b = blockIdx.y / a.heads, h = blockIdx.y % a.heads;
    if (i >= a.t) return;
    const __nv_bfloat16 *q = a.q.row(b, h, a.heads, i), *phi_q = a.phi_q.row(b, h, a.heads, i);
    const int64_t near = max(i / a.window - 1, int64_t{0}) * a.window;  // the first key of the window
    const auto score = [&](int64_t j) { return dot(q, a.k.row(b, h, a.heads, j), D) * a.scale; };
    const float gamma = 1 / (1 + expf(-a.mix_logit[h]));
    float high = -INFINITY, numerator[D] = {}, denominator = 0;
    for (int64_t j = near; j <= i; ++j) high = fmaxf(high, score(j));
    for (int64_t j = 0; j <= i; ++j) {
        const float weight =
            j < near ? dot(phi_q, a.phi_k.row(b, h, a.heads, j), a.features) : gamma * expf(score(j) - high);
        const __nv_bfloat16* v = a.v.row(b, h, a.heads, j);
        denominator += weight;
#pragma unroll
        for (int c = 0; c < D; ++c) numerator[c] += weight * __bfloat162float(v[c]);
    }
    __nv_bfloat16* to = a.y.row(b, h, a.heads, i);
#pragma unroll
    for (int c = 0; c < D; ++c) to[c] = __float2bfloat16(numerator[c] / denominator);
}

}  // namespace

void hybrid_naive(const kernels::HybridAttentionForward& args, Stream stream) {
    const int64_t batch = args.q.size(0), heads = args.q.size(1), t = args.q.size(2), d = args.q.size(3);
    const int64_t features = 2 * args.wq.size(2);
    const kernels::DeviceScratch<__nv_bfloat16> memory(2 * batch * heads * t * features, stream);
    const auto map = [&](int which, const TensorView& x, const TensorView& w) {
        const TensorView phi{reinterpret_cast<std::byte*>(memory.data() + which * batch * heads * t * features),
                             Layout::contiguous({batch, w.size(0), t, features}), DType::bf16, x.device};
        kernels::feature_map_forward({.x = x, .w = w, .b = {}, .phi = phi}, stream);
        return Heads(phi);
    };
    const Args a{Heads(args.q),
                 Heads(args.k),
                 Heads(args.v),
                 Heads(args.y),
                 map(0, args.q, args.wq),
                 map(1, args.k, args.wk),
                 kernels::device_data<float>(args.mix_logit),
                 heads,
                 t,
                 args.spec.window_size,
                 static_cast<int>(features),
                 1 / sqrtf(static_cast<float>(d))};
    const dim3 grid(kernels::grid_x(kernels::ceil_div(t, kThreads)), static_cast<unsigned>(batch * heads));
    dispatch_size(d, [&](auto size) { row_kernel<size()><<<grid, kThreads, 0, cuda::handle_of(stream)>>>(a); });
    LC_LAUNCHED("hybrid_naive", cuda::handle_of(stream));
}

}  // namespace lc::bench
