// Step 2: a state instead of pairs. A block walks one head from its first row to its last.
//
// IDEA     All far keys of a query enter through S = sum phi_k^T v and z = sum phi_k, which grow as blocks of w keys leave the window:
//          a row costs the same wherever it stands. Thread c of D keeps column c of S in registers, so that phi_q S needs of shared memory one
//          number for every multiply-add, the same for all threads.
//
//            for each block of w rows:   add the block before the last to S, z
//                for each row:           thread c: N_c = phi_q . S_c;   thread j: p_j of key j in the window;   N_c += p . v_c;   y_c = N_c / Z
//
// COST     2 F' D + 2 w D multiply-adds a row in all, 2 F' D of them into S: T times that, not T^2. Everything else is wrong with it: a head
//          is one block, B H of them; a row is made by a few barriers and dot products; no tensor cores. Step 3, the library's fused
//          form, makes 64 rows at a time by products (hybrid_fused_forward.cu): features, scores, p v and phi_q S, and cuts long
//          sequences into segments where heads are few.
#include "bench/ladder/heads.cuh"
#include "bench/ladder/steps.h"

namespace lc::bench {
namespace {

constexpr int kFeatures = 128, kMostKeys = 128;  // F'; keys of a window, two blocks

struct Args {
    Heads q, k, v, y, phi_q, phi_k;
    const float* mix_logit;
    int64_t heads, t, window;
    float scale;
};

template <int D>
__global__ void __launch_bounds__(D) state_kernel(const __grid_constant__ Args a) {
    __shared__ float phi[kFeatures];
    __shared__ float z[kFeatures];
    __shared__ float q[D];
    __shared__ float weights[kMostKeys];
    const int64_t b = blockIdx.x / a.heads, h = blockIdx.x % a.heads;
    const int c = threadIdx.x;
    const auto at = [&](const Heads& x, int64_t t, int i) { return __bfloat162float(x.row(b, h, a.heads, t)[i]); };
    const auto load_features = [&](const Heads& x, int64_t t) {
        __syncthreads();
        for (int f = c; f < kFeatures; f += D) phi[f] = at(x, t, f);
        __syncthreads();
    };
    const float gamma = 1 / (1 + expf(-a.mix_logit[h]));
    float state[kFeatures] = {};
    for (int f = c; f < kFeatures; f += D) z[f] = 0;
    for (int64_t first = 0; first < a.t; first += a.window) {
        for (int64_t j = first - 2 * a.window; j >= 0 && j < first - a.window; ++j) {  // has left the window
            load_features(a.phi_k, j);
            const float v = at(a.v, j, c);
#pragma unroll
            for (int f = 0; f < kFeatures; ++f) state[f] += phi[f] * v;
            for (int f = c; f < kFeatures; f += D) z[f] += phi[f];
        }
        const int64_t near = max(first - a.window, int64_t{0});
        for (int64_t i = first; i < min(first + a.window, a.t); ++i) {
            load_features(a.phi_q, i);
            q[c] = at(a.q, i, c);
            __syncthreads();
            const int keys = static_cast<int>(i - near) + 1;
            float high = -INFINITY, sum = 0, linear = 0, numerator = 0;
            for (int j = c; j < keys; j += D) {
                float score = 0;
                for (int e = 0; e < D; ++e) score += q[e] * at(a.k, near + j, e);
                weights[j] = score * a.scale, high = fmaxf(high, weights[j]);
            }
            high = kernels::block_max(high);
            for (int j = c; j < keys; j += D) weights[j] = gamma * expf(weights[j] - high), sum += weights[j];
            for (int f = c; f < kFeatures; f += D) linear += phi[f] * z[f];
            const float denominator = kernels::block_sum(sum + linear);
#pragma unroll
            for (int f = 0; f < kFeatures; ++f) numerator += phi[f] * state[f];
            for (int j = 0; j < keys; ++j) numerator += weights[j] * at(a.v, near + j, c);
            a.y.row(b, h, a.heads, i)[c] = __float2bfloat16(numerator / denominator);
        }
    }
}

}  // namespace

void hybrid_state(const kernels::HybridAttentionForward& args, Stream stream) {
    const int64_t batch = args.q.size(0), heads = args.q.size(1), t = args.q.size(2), d = args.q.size(3);
    LC_CHECK(2 * args.wq.size(2) == kFeatures && 2 * args.spec.window_size <= kMostKeys,
             "ladder: maps of {} features and windows of {}, got {} and {}", kFeatures / 2, kMostKeys / 2,
             args.wq.size(2), args.spec.window_size);
    const kernels::DeviceScratch<__nv_bfloat16> memory(2 * batch * heads * t * kFeatures, stream);
    const auto map = [&](int which, const TensorView& x, const TensorView& w) {
        const TensorView phi{reinterpret_cast<std::byte*>(memory.data() + which * batch * heads * t * kFeatures),
                             Layout::contiguous({batch, w.size(0), t, kFeatures}), DType::bf16, x.device};
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
                 1 / sqrtf(static_cast<float>(d))};
    dispatch_size(d, [&](auto size) {
        state_kernel<size()><<<kernels::grid_x(batch * heads), size(), 0, cuda::handle_of(stream)>>>(a);
    });
    LC_LAUNCHED("hybrid_state", cuda::handle_of(stream));
}

}  // namespace lc::bench
