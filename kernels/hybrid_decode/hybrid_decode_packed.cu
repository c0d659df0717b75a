// One decode step on the GPU where everything lies dense; what models run, hybrid_decode_fold.cu folds and, on Hopper,
// hybrid_decode_sm90.cu attends.
//
// MATHS    hybrid_decode.h.
// TILING   fold     a block per (batch, state) and 128 rows of S, which ends at once where no key leaves the window. S stays in
//                   registers; 32 keys at a time come through shared memory: a warp maps four of them together, so that each
//                   weight that it loads serves four, and then a thread adds their outer products to its 16 (D = 64: 8) rows
//                   of four columns
//          attend   a block per (batch, query head): phi(q) by all threads, each over a part of D; a warp a key for the scores and a
//                   warp a row of S and of the window's values, a lane a run of D / 32 columns; the warps' sums meet in shared
//                   memory. The first head of a group puts k_t, v_t into the ring; all take them from k and v, so that nobody
//                   waits for that
// COST     a query head: 4 F' D bytes of S (2 in bf16), 4 D F of the map (shared by the batch in the L2 cache), 2 window D numbers of the ring,
//          which the heads of a group share there. Bound by memory once batch x heads fill the device. Folding 64 keys costs
//          8 F' D bytes and 128 F' D FLOPs a state, once in 64 steps.
// NUMERICS f32 throughout; the ring holds keys in the activations' dtype, S and z are f32 or bf16, which a fold rounds once, after all
//          its keys. Sums run in a fixed order.
// LADDER   1 hybrid_decode.cu, any layout: each number through a runtime dtype, one row of S at a time a thread: latency-bound.
//          2 typed 8 and 16-byte loads, four rows in flight a warp: predicted 8 times faster at batch 64 and 40 times in folding, on an
//            H100 3.8 and 24 times (136 and 670 us), and 6 times at batch 1 (23 us).
//          3 this: positions on the device, maps inside the fold, two launches a step whatever it does. Left alone, the compiler
//            gives 256 threads 32 registers, spills, and has no more than four rows in flight; told that four blocks an SM will do,
//            eight. Predicted: 100 us at batch 64, on an H100 148 (about ten of them for blocks of the fold that find nothing to
//            do), 20 at batch 1, 702 with a fold: rows in flight are not what it waits for.
//          Tried on top: all of S in registers ahead of everything else (meant for 65 us at batch 64: 206; two blocks an SM are all that
//          fits, and the chain of map, scores, maximum and sum with its barriers is then in nobody's shadow); that chain in a
//          kernel of its own for a group of heads at once (meant for 80 us: 144, and 35 instead of 20 at batch 1). What helped:
//          hybrid_decode_sm90.cu.
// SOURCE   arXiv 2410.10254.
#include "kernels/feature_map/feature_map_device.cuh"
#include "kernels/hybrid_decode/hybrid_decode_args.cuh"

namespace lc::kernels {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / kWarp;
constexpr int kKeys = 32, kKeysAWarp = kKeys / kWarps;  // of a pass of the fold kernel
constexpr int kRows = 128;                              // of S, of a block of the fold kernel
constexpr int kAttendBlocks = 4;                        // an SM: 64 registers, for eight rows in flight a warp
constexpr int kMostSlots = 1024;

template <int D, class A>
int64_t fold_bytes(const A& a) {
    return kKeys * (2 * D + a.f + a.features) * static_cast<int64_t>(sizeof(float));
}

// phi [count, F'] of the keys in shared memory, four of them a warp.
template <int D, class A>
__device__ __forceinline__ void map_keys(const A& a, int64_t hs, const float* keys, float* u, float* phi, int count) {
    const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp, first = warp * kKeysAWarp;
    for (int i = lane; i < a.f; i += kWarp) {
        float sum[kKeysAWarp] = {};
#pragma unroll 8
        for (int c = 0; c < D; ++c) {
            const float w = a.wk.load((hs * D + c) * a.f + i);
#pragma unroll
            for (int j = 0; j < kKeysAWarp; ++j) sum[j] = fmaf(keys[(first + j) * D + c], w, sum[j]);
        }
#pragma unroll
        for (int j = 0; j < kKeysAWarp; ++j) u[(first + j) * a.f + i] = sum[j];
    }
    __syncwarp();
    for (int j = first; j < min(first + kKeysAWarp, count); ++j)
        feature_map_row_warp(a.spec.activation, u + j * a.f, a.f,
                             [&](int i, float value) { phi[j * a.features + i] = value; });
}

// S += phi^T v, z += sum of phi over the keys that leave the window; without a ring it is the step's own key.
template <class T, class U, int D>
__global__ void __launch_bounds__(kThreads) fold_kernel(const __grid_constant__ Args<T, U> a) {
    constexpr int kLanes = D / 4, kMine = kRows * kLanes / kThreads;  // threads of a row of S; rows of a thread
    static_assert(kMine % 4 == 0);
    extern __shared__ __align__(16) float shared[];
    float *keys = shared, *values = keys + kKeys * D, *phi = values + kKeys * D, *u = phi + kKeys * a.features;
    const int64_t b = blockIdx.x / a.states, hs = blockIdx.x % a.states, hk = hs / (a.states / a.kv_heads);
    const int64_t position = a.positions[b];
    if (position < 0) return;
    const int64_t from = state_end(a.spec, position), to = state_end(a.spec, position + 1);
    if (from == to) return;
    const int row0 = static_cast<int>(blockIdx.y) * kRows, warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
    const int column = threadIdx.x % kLanes * 4, row = row0 + static_cast<int>(threadIdx.x) / kLanes * kMine;
    U* s = a.s + (blockIdx.x * int64_t{a.features} + row) * D + column;
    const bool mine = row < a.features;  // features come in multiples of kMine: see covered()
    float4 sum[kMine];
#pragma unroll
    for (int m = 0; m < kMine; ++m) sum[m] = mine ? load_four(s + m * D) : float4{};
    float total = 0;  // of z, the first kRows threads
    for (int64_t first = from; first < to; first += kKeys) {
        const int count = static_cast<int>(min(int64_t{kKeys}, to - first));
        __syncthreads();
        for (int j = warp * kKeysAWarp; j < (warp + 1) * kKeysAWarp;
             ++j) {  // beyond the end: the last key again, unused
            const int64_t place = ((b * a.kv_heads + hk) * a.slots + (first + min(j, count - 1)) % a.slots) * D;
            const auto key = load_run_of<D>(a.ring_k ? a.ring_k + place : a.k + b * a.k_b + hk * a.k_h);
            const auto value = load_run_of<D>(a.ring_v ? a.ring_v + place : a.v + b * a.v_b + hk * a.v_h);
#pragma unroll
            for (int e = 0; e < Run<T, D>::kSize; ++e) {
                keys[j * D + lane * Run<T, D>::kSize + e] = key.get(e);
                values[j * D + lane * Run<T, D>::kSize + e] = value.get(e);
            }
        }
        __syncwarp();
        map_keys<D>(a, hs, keys, u, phi, count);
        __syncthreads();
        for (int j = 0; j < count && mine; ++j) {
            const float4 v = *reinterpret_cast<const float4*>(values + j * D + column);
            const float4* weights = reinterpret_cast<const float4*>(phi + j * a.features + row);
#pragma unroll
            for (int m = 0; m < kMine; m += 4) {
                const float4 w = weights[m / 4];
                const float four[4] = {w.x, w.y, w.z, w.w};
#pragma unroll
                for (int e = 0; e < 4; ++e) {
                    float4& to_row = sum[m + e];
                    to_row.x = fmaf(four[e], v.x, to_row.x), to_row.y = fmaf(four[e], v.y, to_row.y);
                    to_row.z = fmaf(four[e], v.z, to_row.z), to_row.w = fmaf(four[e], v.w, to_row.w);
                }
            }
        }
        if (threadIdx.x < kRows && row0 + static_cast<int>(threadIdx.x) < a.features)
            for (int j = 0; j < count; ++j) total += phi[j * a.features + row0 + threadIdx.x];
    }
#pragma unroll
    for (int m = 0; m < kMine; ++m)
        if (mine) store_four(s + m * D, sum[m]);
    if (threadIdx.x < kRows && row0 + static_cast<int>(threadIdx.x) < a.features) {
        U& z = a.z[blockIdx.x * int64_t{a.features} + row0 + threadIdx.x];
        z = from_float<U>(to_float(z) + total);
    }
}

template <int D, class A>
int64_t attend_bytes(const A& a) {
    return (D + kThreads + a.f + a.features + kWarps * D + (a.ring_k ? a.slots : 0)) *
           static_cast<int64_t>(sizeof(float));
}

// sum += weights[j] rows(j)[lane's columns], j = warp, warp + 8, ... below count
template <int D, class Rows>
__device__ __forceinline__ void add_rows(float (&sum)[D / kWarp], const float* weights, int count, Rows&& rows) {
#pragma unroll 8
    for (int j = static_cast<int>(threadIdx.x) / kWarp; j < count; j += kWarps) {
        const auto run = load_run_of<D>(rows(j));
        const float weight = weights[j];
#pragma unroll
        for (int e = 0; e < D / kWarp; ++e) sum[e] = fmaf(weight, run.get(e), sum[e]);
    }
}

template <class T, class U, int D>
__global__ void __launch_bounds__(kThreads, kAttendBlocks) attend_kernel(const __grid_constant__ Args<T, U> a) {
    extern __shared__ float shared[];
    float *q = shared, *parts = q + D, *u = parts + kThreads, *phi = u + a.f, *sums = phi + a.features,
          *weights = sums + kWarps * D;
    const int64_t b = blockIdx.x / a.heads, h = blockIdx.x % a.heads, group = a.heads / a.kv_heads, hk = h / group;
    const int64_t hs = h / (a.heads / a.states), position = a.positions[b], begin = state_end(a.spec, position + 1);
    const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
    T* y = a.y + b * a.y_b + h * a.y_h;
    if (position < 0) {
        for (int c = threadIdx.x; c < D; c += kThreads) y[c] = from_float<T>(0);
        return;
    }
    const int window = static_cast<int>(position + 1 - begin);  // 0 for window none
    const U *s = a.s + (b * a.states + hs) * a.features * D, *z = a.z + (b * a.states + hs) * a.features;
    const T *own_k = a.k + b * a.k_b + hk * a.k_h, *own_v = a.v + b * a.v_b + hk * a.v_h;
    T *ring_k = a.ring_k + (b * a.kv_heads + hk) * a.slots * D,
      *ring_v = a.ring_v + (b * a.kv_heads + hk) * a.slots * D;
    // Row j of the window; the last is the step's own, which is not in the ring yet.
    const auto row_of = [&](const T* ring, const T* own, int j) {
        return j + 1 == window ? own : ring + (begin + j) % a.slots * D;
    };
    float gamma = 0, lambda = 1, total = static_cast<float>(kLinearEpsilon);
    if (window > 0) {
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
    for (int j = warp; j < window; j += kWarps) {
        const auto run = load_run_of<D>(row_of(ring_k, own_k, j));
        float dot = 0;
#pragma unroll
        for (int e = 0; e < D / kWarp; ++e) dot = fmaf(q[lane * (D / kWarp) + e], run.get(e), dot);
        dot = warp_sum(dot);
        if (lane == 0) weights[j] = scale * dot;
    }
    if (a.ring_k && h % group == 0 && threadIdx.x < D) {
        const int64_t place = position % a.slots * D + threadIdx.x;
        ring_k[place] = own_k[threadIdx.x], ring_v[place] = own_v[threadIdx.x];
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
    for (int j = threadIdx.x; j < window; j += kThreads) high = fmaxf(high, weights[j]);
    high = block_max(high);
    float sum = 0;
    for (int j = threadIdx.x; j < window; j += kThreads) sum += weights[j] = gamma * expf(weights[j] - high);
    for (int i = threadIdx.x; i < a.features; i += kThreads) sum += phi[i] * to_float(z[i]);
    total += block_sum(sum);  // its barriers also publish phi and weights

    float n[D / kWarp] = {};
    if (lambda != 0) add_rows<D>(n, phi, a.features, [&](int row) { return s + row * D; });
    add_rows<D>(n, weights, window, [&](int j) { return row_of(ring_v, own_v, j); });
#pragma unroll
    for (int e = 0; e < D / kWarp; ++e) sums[warp * D + lane * (D / kWarp) + e] = n[e];
    __syncthreads();
    for (int c = threadIdx.x; c < D; c += kThreads) {
        float sum_c = 0;
#pragma unroll
        for (int w = 0; w < kWarps; ++w) sum_c += sums[w * D + c];
        y[c] = from_float<T>(sum_c / total);
    }
}

bool covered(const HybridDecode& a) {
    const int64_t d = a.q.size(3), f = a.wq.size(2);
    if ((d != 64 && d != 128) || a.bq || a.bk || a.spec.skip) return false;
    if (a.q.dtype == DType::f32 && a.s.dtype != DType::f32) return false;
    if (f > kThreads || kThreads % f != 0 || (d * f) % kThreads != 0) return false;
    const int64_t features = feature_size(a.spec.activation, f);
    if (features > kMostFeatures || features % 16 != 0 || (a.ring_k && a.ring_k.size(2) > kMostSlots)) return false;
    if (a.mix_logit && (a.mix_logit.dtype != DType::f32 || !a.mix_logit.layout.is_contiguous())) return false;
    for (const TensorView* view : {&a.wq, &a.wk, &a.s, &a.z})
        if (!view->layout.is_contiguous()) return false;
    for (const TensorView* view : {&a.ring_k, &a.ring_v})
        if (*view && (!view->layout.is_contiguous() || view->layout.offset % 8 != 0)) return false;
    return a.s.layout.offset % 4 == 0 && rows_are_packed(a.q) && rows_are_packed(a.k) && rows_are_packed(a.v) &&
           rows_are_packed(a.y);
}

template <class T, class U, int D>
void run(const HybridDecode& decode, Stream stream) {
    const cudaStream_t queue = cuda::handle_of(stream);
    const Args<T, U> a = args_of<T, U>(decode);
    const int64_t batch = decode.q.size(0);
    if (!hybrid_decode_fold_blocks(decode, false, stream)) {
        const dim3 folds(grid_x(batch * a.states), static_cast<unsigned>(ceil_div(a.features, kRows)));
        allow_shared_memory(fold_kernel<T, U, D>, fold_bytes<D>(a));
        fold_kernel<T, U, D><<<folds, kThreads, fold_bytes<D>(a), queue>>>(a);
        LC_LAUNCHED("hybrid_decode", queue);
    }
    allow_shared_memory(attend_kernel<T, U, D>, attend_bytes<D>(a));
    attend_kernel<T, U, D><<<grid_x(batch * a.heads), kThreads, attend_bytes<D>(a), queue>>>(a);
    LC_LAUNCHED("hybrid_decode", queue);
}

template <class T, class U>
void run_heads(const HybridDecode& decode, Stream stream) {
    if (decode.q.size(3) == 64)
        run<T, U, 64>(decode, stream);
    else
        run<T, U, 128>(decode, stream);
}

}  // namespace

bool hybrid_decode_packed(const HybridDecode& args, Stream stream) {
    if (!covered(args)) return false;
    const bool narrow = args.s.dtype == DType::bf16;
    if (args.q.dtype == DType::f32)
        run_heads<float, float>(args, stream);
    else if (narrow)
        run_heads<__nv_bfloat16, __nv_bfloat16>(args, stream);
    else
        run_heads<__nv_bfloat16, float>(args, stream);
    return true;
}

}  // namespace lc::kernels
