// One decode step on the GPU where everything lies dense: the form that models run.
//
// MATHS    hybrid_decode.h.
// TILING   map      where keys leave the window: a block per (batch, state) and 32 of these keys; a warp maps four keys at a time, so
//                   that each weight that it loads serves four
//          fold     a block per (batch, state) and 32 rows of S, which stay in registers; keys come through shared memory, 32 at a
//                   time. S is read and written once, however many keys leave
//          append   one thread a number
//          attend   a block per (batch, query head): phi(q) by all threads, each over a part of D; a warp a key for the scores and a
//                   warp a row of S and of the window's values, a lane a run of D / 32 columns; the warps' sums meet in shared memory
// COST     a query head: 4 F' D bytes of S, 4 D F of the map (shared by the batch in the L2 cache), 2 window D numbers of the ring,
//          which the heads of a group share there. Bound by memory once batch x heads fill the device. Folding 64 keys costs
//          8 F' D bytes and 128 F' D FLOPs a state, once in 64 steps.
// NUMERICS f32 throughout; the ring holds keys in the activations' dtype, S and z are f32. Sums run in a fixed order.
// LADDER   1 hybrid_decode.cu, any layout: each number through a runtime dtype, one row of S at a time a thread: latency-bound.
//          2 this: typed 8 and 16-byte loads, several in flight; predicted 8 times faster at batch 64 and 40 times in folding, on an
//          H100 3.8 and 24 times, and 6 times at batch 1. Next: one query head's S streamed by bulk copies, heads of a group together.
// SOURCE   arXiv 2410.10254.
#include "kernels/common/cuda/launch.h"
#include "kernels/common/cuda/pack.cuh"
#include "kernels/feature_map/feature_map_device.cuh"
#include "kernels/hybrid_decode/hybrid_decode.h"

namespace lc::kernels {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / kWarp;
constexpr int kKeys = 32, kKeysAWarp = kKeys / kWarps;  // of a block of the map and fold kernels
constexpr int kRows = 32;                               // of S, of a block of the fold kernel
constexpr int kMostFeatures = 256, kMostWindow = 1024;

// A map's weights, f32 or bf16.
struct Weights {
    const void* data;
    bool narrow;
    __device__ __forceinline__ float load(int64_t i) const {
        return narrow ? to_float(static_cast<const __nv_bfloat16*>(data)[i]) : static_cast<const float*>(data)[i];
    }
};

template <class T>
struct Args {
    const T *q, *k, *v;  // [B,H,1,D], [B,H_kv,1,D]
    T *ring_k, *ring_v;  // [B,H_kv,R,D] or null
    T* y;                // [B,H,1,D]
    Weights wq, wk;      // [H,D,F], [Hs,D,F]
    const float* mix_logit;
    float *s, *z;  // [B,Hs,F',D], [B,Hs,F']
    int64_t q_b, q_h, k_b, k_h, v_b, v_h, y_b, y_h;  // strides
    int64_t position, slots;
    int heads, kv_heads, states, f, features, window;
    LinearizedSpec spec;
};

// A lane's share of a row of D numbers.
template <class T, int D>
struct alignas(sizeof(T) * (D / kWarp)) Run {
    static constexpr int kSize = D / kWarp;
    T values[kSize];
    __device__ __forceinline__ float get(int i) const { return to_float(values[i]); }
};
template <int D, class T>
__device__ __forceinline__ Run<T, D> load_run_of(const T* row) {
    return reinterpret_cast<const Run<T, D>*>(row)[threadIdx.x % kWarp];
}

template <class T, int D>
int64_t map_bytes(const Args<T>& a) {
    return kKeys * (D + a.f) * static_cast<int64_t>(sizeof(float));
}

// phi [B*Hs, count, F'] of the keys at positions [from, from + count); without a ring of the step's own key.
template <class T, int D>
__global__ void __launch_bounds__(kThreads) map_kernel(const __grid_constant__ Args<T> a, int64_t from, int count, float* phi) {
    extern __shared__ float shared[];
    const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
    float *keys = shared + warp * kKeysAWarp * D, *u = shared + kKeys * D + warp * kKeysAWarp * a.f;
    const int64_t b = blockIdx.x / a.states, hs = blockIdx.x % a.states, hk = hs / (a.states / a.kv_heads);
    const int first = static_cast<int>(blockIdx.y) * kKeys + warp * kKeysAWarp, mine = min(kKeysAWarp, count - first);
    if (mine <= 0) return;
    for (int j = 0; j < kKeysAWarp; ++j) {  // beyond the end: the last key again, unused
        const int64_t key = from + first + min(j, mine - 1);
        const T* row = a.ring_k ? a.ring_k + ((b * a.kv_heads + hk) * a.slots + key % a.slots) * D : a.k + b * a.k_b + hk * a.k_h;
        const auto run = load_run_of<D>(row);
#pragma unroll
        for (int e = 0; e < Run<T, D>::kSize; ++e) keys[j * D + lane * Run<T, D>::kSize + e] = run.get(e);
    }
    __syncwarp();
    for (int i = lane; i < a.f; i += kWarp) {
        float sum[kKeysAWarp] = {};
#pragma unroll 8
        for (int c = 0; c < D; ++c) {
            const float w = a.wk.load((hs * D + c) * a.f + i);
#pragma unroll
            for (int j = 0; j < kKeysAWarp; ++j) sum[j] = fmaf(keys[j * D + c], w, sum[j]);
        }
#pragma unroll
        for (int j = 0; j < kKeysAWarp; ++j) u[j * a.f + i] = sum[j];
    }
    __syncwarp();
    for (int j = 0; j < mine; ++j) {
        float* to = phi + (blockIdx.x * static_cast<int64_t>(count) + first + j) * a.features;
        feature_map_row_warp(a.spec.activation, u + j * a.f, a.f, [&](int i, float value) { to[i] = value; });
    }
}

// S += phi^T v, z += sum of phi over the keys at positions [from, from + count).
template <class T, int D>
__global__ void __launch_bounds__(kThreads)
    fold_kernel(const __grid_constant__ Args<T> a, int64_t from, int count, const float* phi) {
    constexpr int kLanes = D / 4, kAtOnce = kThreads / kLanes, kMine = kRows / kAtOnce;  // rows of S
    __shared__ alignas(16) float values[kKeys][D];
    __shared__ float weights[kKeys][kRows];
    const int64_t b = blockIdx.x / a.states, hs = blockIdx.x % a.states, hk = hs / (a.states / a.kv_heads);
    const int row0 = static_cast<int>(blockIdx.y) * kRows, warp = threadIdx.x / kWarp;
    const int column = threadIdx.x % kLanes * 4, row = threadIdx.x / kLanes;
    const auto in_s = [&](int r) {
        return reinterpret_cast<float4*>(a.s + (blockIdx.x * static_cast<int64_t>(a.features) + row0 + r) * D + column);
    };
    float4 sum[kMine];
#pragma unroll
    for (int m = 0; m < kMine; ++m)
        if (row0 + row + m * kAtOnce < a.features) sum[m] = *in_s(row + m * kAtOnce);
    float total = 0;  // of z, the first kRows threads
    for (int first = 0; first < count; first += kKeys) {
        const int keys = min(kKeys, count - first);
        __syncthreads();
        for (int j = warp; j < keys; j += kWarps) {
            const T* from_v = a.ring_v ? a.ring_v + ((b * a.kv_heads + hk) * a.slots + (from + first + j) % a.slots) * D
                                       : a.v + b * a.v_b + hk * a.v_h;
            const auto run = load_run_of<D>(from_v);
#pragma unroll
            for (int e = 0; e < Run<T, D>::kSize; ++e) values[j][threadIdx.x % kWarp * Run<T, D>::kSize + e] = run.get(e);
        }
        for (int e = threadIdx.x; e < keys * kRows; e += kThreads) {
            const int j = e / kRows, r = e % kRows;
            const int64_t place = (blockIdx.x * static_cast<int64_t>(count) + first + j) * a.features + row0 + r;
            weights[j][r] = row0 + r < a.features ? phi[place] : 0.0f;
        }
        __syncthreads();
        for (int j = 0; j < keys; ++j) {
            const float4 v = *reinterpret_cast<const float4*>(&values[j][column]);
#pragma unroll
            for (int m = 0; m < kMine; ++m) {
                const float w = weights[j][row + m * kAtOnce];
                sum[m].x = fmaf(w, v.x, sum[m].x), sum[m].y = fmaf(w, v.y, sum[m].y);
                sum[m].z = fmaf(w, v.z, sum[m].z), sum[m].w = fmaf(w, v.w, sum[m].w);
            }
            if (threadIdx.x < kRows) total += weights[j][threadIdx.x];
        }
    }
#pragma unroll
    for (int m = 0; m < kMine; ++m)
        if (row0 + row + m * kAtOnce < a.features) *in_s(row + m * kAtOnce) = sum[m];
    if (threadIdx.x < kRows && row0 + static_cast<int>(threadIdx.x) < a.features)
        a.z[blockIdx.x * static_cast<int64_t>(a.features) + row0 + threadIdx.x] += total;
}

template <class T, int D>
__global__ void append_kernel(const __grid_constant__ Args<T> a, int64_t count) {
    const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
    if (i >= count) return;
    const int64_t c = i % D, h = i / D % a.kv_heads, b = i / D / a.kv_heads;
    const int64_t place = ((b * a.kv_heads + h) * a.slots + a.position % a.slots) * D + c;
    a.ring_k[place] = a.k[b * a.k_b + h * a.k_h + c];
    a.ring_v[place] = a.v[b * a.v_b + h * a.v_h + c];
}

template <class T, int D>
int64_t attend_bytes(const Args<T>& a) {
    return (D + kThreads + a.f + a.features + kWarps * D + a.window) * static_cast<int64_t>(sizeof(float));
}

// sum += weights[j] rows(j)[lane's columns], j = warp, warp + 8, ... below count
template <int D, class Rows>
__device__ __forceinline__ void add_rows(float (&sum)[D / kWarp], const float* weights, int count, Rows&& rows) {
#pragma unroll 4
    for (int j = static_cast<int>(threadIdx.x) / kWarp; j < count; j += kWarps) {
        const auto run = load_run_of<D>(rows(j));
        const float weight = weights[j];
#pragma unroll
        for (int e = 0; e < D / kWarp; ++e) sum[e] = fmaf(weight, run.get(e), sum[e]);
    }
}

template <class T, int D>
__global__ void __launch_bounds__(kThreads) attend_kernel(const __grid_constant__ Args<T> a) {
    extern __shared__ float shared[];
    float *q = shared, *parts = q + D, *u = parts + kThreads, *phi = u + a.f, *sums = phi + a.features, *weights = sums + kWarps * D;
    const int64_t b = blockIdx.x / a.heads, h = blockIdx.x % a.heads;
    const int64_t hk = h / (a.heads / a.kv_heads), hs = h / (a.heads / a.states), begin = a.position + 1 - a.window;
    const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
    const float *s = a.s + (b * a.states + hs) * a.features * D, *z = a.z + (b * a.states + hs) * a.features;
    const T *ring_k = a.ring_k + (b * a.kv_heads + hk) * a.slots * D, *ring_v = a.ring_v + (b * a.kv_heads + hk) * a.slots * D;
    float gamma = 0, lambda = 1, total = static_cast<float>(kLinearEpsilon);
    if (a.window > 0) {
        const float logit = a.mix_logit[h];
        gamma = 1 / (1 + expf(-logit)), total = 0;
        lambda = a.spec.window_only ? 0.0f : a.spec.affine ? 1 / (1 + expf(logit)) : 1.0f;
    }

    for (int c = threadIdx.x; c < D; c += kThreads) q[c] = to_float(a.q[b * a.q_b + h * a.q_h + c]);
    __syncthreads();
    {  // thread (part, i): u_i over a part of D
        const int i = threadIdx.x % a.f, columns = D * a.f / kThreads, first = threadIdx.x / a.f * columns;
        float sum = 0;
#pragma unroll 8
        for (int c = first; c < first + columns; ++c) sum = fmaf(q[c], a.wq.load((h * D + c) * a.f + i), sum);
        parts[threadIdx.x] = sum;
    }
    const float scale = rsqrtf(static_cast<float>(D));
#pragma unroll 4
    for (int j = warp; j < a.window; j += kWarps) {
        const auto run = load_run_of<D>(ring_k + (begin + j) % a.slots * D);
        float dot = 0;
#pragma unroll
        for (int e = 0; e < D / kWarp; ++e) dot = fmaf(q[lane * (D / kWarp) + e], run.get(e), dot);
        dot = warp_sum(dot);
        if (lane == 0) weights[j] = scale * dot;
    }
    __syncthreads();
    if (static_cast<int>(threadIdx.x) < a.f) {
        float sum = 0;
        for (int p = threadIdx.x; p < kThreads; p += a.f) sum += parts[p];
        u[threadIdx.x] = sum;
    }
    __syncthreads();
    if (warp == 0)
        feature_map_row_warp(a.spec.activation, u, a.f, [&](int i, float value) { phi[i] = lambda * value; });
    float high = -INFINITY;
    for (int j = threadIdx.x; j < a.window; j += kThreads) high = fmaxf(high, weights[j]);
    high = block_max(high);
    float sum = 0;
    for (int j = threadIdx.x; j < a.window; j += kThreads) sum += weights[j] = gamma * expf(weights[j] - high);
    for (int i = threadIdx.x; i < a.features; i += kThreads) sum += phi[i] * z[i];
    total += block_sum(sum);  // its barriers also publish phi and weights

    float n[D / kWarp] = {};
    if (lambda != 0) add_rows<D>(n, phi, a.features, [&](int row) { return s + row * D; });
    add_rows<D>(n, weights, a.window, [&](int j) { return ring_v + (begin + j) % a.slots * D; });
#pragma unroll
    for (int e = 0; e < D / kWarp; ++e) sums[warp * D + lane * (D / kWarp) + e] = n[e];
    __syncthreads();
    for (int c = threadIdx.x; c < D; c += kThreads) {
        float sum_c = 0;
#pragma unroll
        for (int w = 0; w < kWarps; ++w) sum_c += sums[w * D + c];
        a.y[b * a.y_b + h * a.y_h + c] = from_float<T>(sum_c / total);
    }
}

bool rows_are_packed(const TensorView& x) {  // [B,H,1,D]
    const int64_t unit = 16 / size_of(x.dtype);
    return x.stride(3) == 1 && x.stride(0) % unit == 0 && x.stride(1) % unit == 0 && x.layout.offset % unit == 0;
}

bool covered(const HybridDecode& a) {
    const int64_t d = a.q.size(3), f = a.wq.size(2);
    if ((d != 64 && d != 128) || a.bq || a.bk || a.spec.skip) return false;
    if (f > kThreads || kThreads % f != 0 || (d * f) % kThreads != 0) return false;
    if (feature_size(a.spec.activation, f) > kMostFeatures || a.spec.window_size > kMostWindow / 2) return false;
    if (a.mix_logit && (a.mix_logit.dtype != DType::f32 || !a.mix_logit.layout.is_contiguous())) return false;
    for (const TensorView* view : {&a.wq, &a.wk, &a.s, &a.z})
        if (!view->layout.is_contiguous()) return false;
    for (const TensorView* view : {&a.ring_k, &a.ring_v})
        if (*view && (!view->layout.is_contiguous() || view->layout.offset % 8 != 0)) return false;
    return a.s.layout.offset % 4 == 0 && rows_are_packed(a.q) && rows_are_packed(a.k) && rows_are_packed(a.v) && rows_are_packed(a.y);
}

template <class T>
Args<T> args_of(const HybridDecode& a) {
    const auto weights = [](const TensorView& w) {
        return Weights{w.base + w.layout.offset * size_of(w.dtype), w.dtype == DType::bf16};
    };
    const bool window = a.spec.window != WindowKind::none;
    return {.q = device_data<T>(a.q),
            .k = device_data<T>(a.k),
            .v = device_data<T>(a.v),
            .ring_k = device_data<T>(a.ring_k),
            .ring_v = device_data<T>(a.ring_v),
            .y = device_data<T>(a.y),
            .wq = weights(a.wq),
            .wk = weights(a.wk),
            .mix_logit = device_data<float>(a.mix_logit),
            .s = device_data<float>(a.s),
            .z = device_data<float>(a.z),
            .q_b = a.q.stride(0),
            .q_h = a.q.stride(1),
            .k_b = a.k.stride(0),
            .k_h = a.k.stride(1),
            .v_b = a.v.stride(0),
            .v_h = a.v.stride(1),
            .y_b = a.y.stride(0),
            .y_h = a.y.stride(1),
            .position = a.position,
            .slots = a.ring_k ? a.ring_k.size(2) : 1,
            .heads = static_cast<int>(a.q.size(1)),
            .kv_heads = static_cast<int>(a.k.size(1)),
            .states = static_cast<int>(a.s.size(1)),
            .f = static_cast<int>(a.wq.size(2)),
            .features = static_cast<int>(a.s.size(2)),
            .window = window ? static_cast<int>(a.position + 1 - state_end(a.spec, a.position + 1)) : 0,
            .spec = a.spec};
}

template <class T, int D>
void run(const HybridDecode& decode, Stream stream) {
    const cudaStream_t queue = cuda::handle_of(stream);
    const Args<T> a = args_of<T>(decode);
    const int64_t batch = decode.q.size(0), from = state_end(a.spec, a.position), to = state_end(a.spec, a.position + 1);
    if (to > from) {
        const auto count = static_cast<int>(to - from);
        const DeviceScratch<float> phi(batch * a.states * count * a.features, stream);
        const dim3 maps(grid_x(batch * a.states), static_cast<unsigned>(ceil_div(count, kKeys)));
        allow_shared_memory(map_kernel<T, D>, map_bytes<T, D>(a));
        map_kernel<T, D><<<maps, kThreads, map_bytes<T, D>(a), queue>>>(a, from, count, phi.data());
        LC_LAUNCHED("hybrid_decode", queue);
        const dim3 folds(grid_x(batch * a.states), static_cast<unsigned>(ceil_div(a.features, kRows)));
        fold_kernel<T, D><<<folds, kThreads, 0, queue>>>(a, from, count, phi.data());
        LC_LAUNCHED("hybrid_decode", queue);
    }
    if (a.ring_k) {
        const int64_t count = batch * a.kv_heads * D;
        append_kernel<T, D><<<grid_x(ceil_div(count, kThreads)), kThreads, 0, queue>>>(a, count);
        LC_LAUNCHED("hybrid_decode", queue);
    }
    allow_shared_memory(attend_kernel<T, D>, attend_bytes<T, D>(a));
    attend_kernel<T, D><<<grid_x(batch * a.heads), kThreads, attend_bytes<T, D>(a), queue>>>(a);
    LC_LAUNCHED("hybrid_decode", queue);
}

}  // namespace

bool hybrid_decode_packed(const HybridDecode& args, Stream stream) {
    if (!covered(args)) return false;
    dispatch_cuda(args.q.dtype, "hybrid_decode", [&](auto type) {
        using T = typename decltype(type)::type;
        if (args.q.size(3) == 64)
            run<T, 64>(args, stream);
        else
            run<T, 128>(args, stream);
    });
    return true;
}

}  // namespace lc::kernels
