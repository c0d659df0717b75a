// One decode step on the GPU, any layout and size; hybrid_decode_packed.cu is the form for models.
//
// MATHS    hybrid_decode.h. Keys that leave the window join S, z; then k_t, v_t take their ring slot; then every query head
//          merges window and state.
// TILING   three launches:
//            fold    a block per (batch, state) and slice of S, which ends at once where no key leaves the window (in terraced
//                    windows all but once in w steps); 8 keys at a time are mapped into shared memory, one warp a key, and then
//                    each thread adds their outer products to its elements of S
//            append  one thread a number
//            attend  a block per (batch, query head): phi(q), scores with one warp a key, then thread (part, column) adds up its
//                    share of the rows of S and of the window's values for one column; the parts meet in shared memory
// COST     a query head: F' D (S) + 2 window D numbers read, D F for the map; memory-bound by S.
// NUMERICS f32 throughout; the ring holds keys in the activations' dtype, S and z are f32. Sums run in a fixed order.
// LADDER   1 this.
// SOURCE   arXiv 2410.10254.
#include "kernels/hybrid_decode/hybrid_decode.h"

#include "kernels/common/cuda/launch.h"
#include "kernels/common/cuda/operand.cuh"
#include "kernels/feature_map/feature_map_device.cuh"

namespace lc::kernels {
namespace {

constexpr int kReadAhead = 8;  // floats behind q that nobody writes: the compiler reads ahead in the loop over q
constexpr int kThreads = 256, kWarps = kThreads / kWarp, kKeys = kWarps, kSlices = 8;

// A tensor of up to four axes, any strides; used from the left.
struct Strided {
    std::byte* data = nullptr;  // first element
    int64_t stride[4] = {};
    DType dtype = DType::f32;

    Strided() = default;
    explicit Strided(const TensorView& view) : dtype(view.dtype) {
        if (!view) return;
        data = view.base + view.layout.offset * size_of(view.dtype);
        for (int axis = 0; axis < view.rank(); ++axis) stride[axis] = view.stride(axis);
    }
    __device__ explicit operator bool() const { return data != nullptr; }
    __device__ int64_t at(int64_t i, int64_t j = 0, int64_t k = 0, int64_t l = 0) const {
        return i * stride[0] + j * stride[1] + k * stride[2] + l * stride[3];
    }
    __device__ float load(int64_t place) const { return cuda::load_float(data, place, dtype); }
    __device__ void store(int64_t place, float value) const { cuda::store_float(data, place, dtype, value); }
};

struct Step {
    Strided q, k, v, wq, bq, wk, bk, mix_logit, ring_k, ring_v, s, z, y;
    LinearizedSpec spec;
    const int64_t* positions;
    int64_t batch, heads, kv_heads, states, slots;
    int d, f, features, bq_width, bk_width;

    explicit Step(const HybridDecode& a)
        : q(a.q),
          k(a.k),
          v(a.v),
          wq(a.wq),
          bq(a.bq),
          wk(a.wk),
          bk(a.bk),
          mix_logit(a.mix_logit),
          ring_k(a.ring_k),
          ring_v(a.ring_v),
          s(a.s),
          z(a.z),
          y(a.y),
          spec(a.spec),
          positions(device_data<const int64_t>(a.positions)),
          batch(a.q.size(0)),
          heads(a.q.size(1)),
          kv_heads(a.k.size(1)),
          states(a.s.size(1)),
          slots(a.ring_k ? a.ring_k.size(2) : 1),
          d(static_cast<int>(a.q.size(3))),
          f(static_cast<int>(a.wq.size(2))),
          features(static_cast<int>(feature_size(a.spec.activation, f))),
          bq_width(a.bq ? static_cast<int>(a.bq.size(1)) : 0),
          bk_width(a.bk ? static_cast<int>(a.bk.size(1)) : 0) {}
};

// u_i of head h for the row x in shared memory.
__device__ float project(const Step& a, const float* x, const Strided& w, const Strided& b, int width, int64_t h,
                         int i) {
    float u = 0;
    for (int c = 0; c < a.d; ++c) u += x[c] * w.load(w.at(h, c, i));
    if (b) u += b.load(b.at(h, width == 1 ? 0 : i));
    if (a.spec.skip) u += x[i];
    return u;
}

int64_t fold_bytes(const Step& a) {
    return kKeys * (2 * a.d + a.f + a.features) * static_cast<int64_t>(sizeof(float));
}

// The keys that leave the window join the states; without a ring it is the step's own key.
__global__ void fold_kernel(const __grid_constant__ Step a) {
    extern __shared__ float shared[];
    float *keys = shared, *values = keys + kKeys * a.d, *u = values + kKeys * a.d, *phi = u + kKeys * a.f;
    const int64_t b = blockIdx.x / a.states, hs = blockIdx.x % a.states, hk = hs / (a.states / a.kv_heads);
    const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
    const int64_t position = a.positions[b];
    if (position < 0) return;
    const int64_t from = state_end(a.spec, position), to = state_end(a.spec, position + 1);
    const bool ring = static_cast<bool>(a.ring_k);
    const Strided &from_k = ring ? a.ring_k : a.k, &from_v = ring ? a.ring_v : a.v;
    for (int64_t first = from; first < to; first += kKeys) {
        const int count = static_cast<int>(min(static_cast<int64_t>(kKeys), to - first));
        __syncthreads();
        if (warp < count) {
            const int64_t slot = ring ? (first + warp) % a.slots : 0;
            for (int c = lane; c < a.d; c += kWarp) {
                keys[warp * a.d + c] = from_k.load(from_k.at(b, hk, slot, c));
                values[warp * a.d + c] = from_v.load(from_v.at(b, hk, slot, c));
            }
            __syncwarp();
            for (int i = lane; i < a.f; i += kWarp)
                u[warp * a.f + i] = project(a, keys + warp * a.d, a.wk, a.bk, a.bk_width, hs, i);
            feature_map_row_warp(a.spec.activation, u + warp * a.f, a.f,
                                 [&](int i, float value) { phi[warp * a.features + i] = value; });
        }
        __syncthreads();
        const int64_t stride = static_cast<int64_t>(gridDim.y) * kThreads;
        for (int64_t e = static_cast<int64_t>(blockIdx.y) * kThreads + threadIdx.x;
             e < static_cast<int64_t>(a.features) * a.d; e += stride) {
            const int row = static_cast<int>(e / a.d), column = static_cast<int>(e % a.d);
            const int64_t place = a.s.at(b, hs, row, column);
            float sum = a.s.load(place);
            for (int j = 0; j < count; ++j) sum += phi[j * a.features + row] * values[j * a.d + column];
            a.s.store(place, sum);
        }
        for (int row = threadIdx.x; row < a.features && blockIdx.y == 0; row += kThreads) {
            const int64_t place = a.z.at(b, hs, row);
            float sum = a.z.load(place);
            for (int j = 0; j < count; ++j) sum += phi[j * a.features + row];
            a.z.store(place, sum);
        }
    }
}

__global__ void append_kernel(const __grid_constant__ Step a) {
    const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
    if (i >= a.batch * a.kv_heads * a.d) return;
    const int64_t c = i % a.d, h = i / a.d % a.kv_heads, b = i / a.d / a.kv_heads, slot = a.positions[b] % a.slots;
    if (slot < 0) return;  // idle
    a.ring_k.store(a.ring_k.at(b, h, slot, c), a.k.load(a.k.at(b, h, 0, c)));
    a.ring_v.store(a.ring_v.at(b, h, slot, c), a.v.load(a.v.at(b, h, 0, c)));
}

int64_t attend_bytes(const Step& a) {
    return (a.d + kReadAhead + a.f + a.features + std::max<int64_t>(kThreads, a.d) + (a.ring_k.data ? a.slots : 0)) *
           static_cast<int64_t>(sizeof(float));
}

__global__ void attend_kernel(const __grid_constant__ Step a) {
    extern __shared__ float shared[];
    float *q = shared, *u = q + a.d + kReadAhead, *phi = u + a.f, *sums = phi + a.features,
          *weights = sums + max(kThreads, a.d);
    const int64_t b = blockIdx.x / a.heads, h = blockIdx.x % a.heads;
    const int64_t hk = h / (a.heads / a.kv_heads), hs = h / (a.heads / a.states), position = a.positions[b];
    const int64_t begin = state_end(a.spec, position + 1);
    const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
    if (position < 0) {
        for (int c = threadIdx.x; c < a.d; c += kThreads) a.y.store(a.y.at(b, h, 0, c), 0);
        return;
    }
    const int window = static_cast<int>(position + 1 - begin);  // 0 for window none
    float gamma = 0, lambda = 1, total = static_cast<float>(kLinearEpsilon);
    if (window > 0) {
        const float logit = a.mix_logit.load(a.mix_logit.at(h));
        gamma = 1 / (1 + expf(-logit)), total = 0;
        lambda = a.spec.window_only ? 0.0f : a.spec.affine ? 1 / (1 + expf(logit)) : 1.0f;
    }

    for (int c = threadIdx.x; c < a.d; c += kThreads) q[c] = a.q.load(a.q.at(b, h, 0, c));
    __syncthreads();
    for (int i = threadIdx.x; i < a.f; i += kThreads) u[i] = project(a, q, a.wq, a.bq, a.bq_width, h, i);
    const float scale = 1 / sqrtf(static_cast<float>(a.d));
    for (int j = warp; j < window; j += kWarps) {
        const int64_t slot = (begin + j) % a.slots;
        float dot = 0;
        for (int c = lane; c < a.d; c += kWarp) dot += q[c] * a.ring_k.load(a.ring_k.at(b, hk, slot, c));
        dot = warp_sum(dot);
        if (lane == 0) weights[j] = scale * dot;
    }
    __syncthreads();
    if (warp == 0)
        feature_map_row_warp(a.spec.activation, u, a.f, [&](int i, float value) { phi[i] = lambda * value; });
    float high = -INFINITY;
    for (int j = threadIdx.x; j < window; j += kThreads) high = fmaxf(high, weights[j]);
    high = block_max(high);
    float sum = 0;
    for (int j = threadIdx.x; j < window; j += kThreads) sum += weights[j] = gamma * expf(weights[j] - high);
    for (int i = threadIdx.x; i < a.features; i += kThreads) sum += phi[i] * a.z.load(a.z.at(b, hs, i));
    total += block_sum(sum);

    // Thread (part, column): every parts-th row of S and every parts-th key of the window.
    const int width = min(a.d, kThreads), parts = kThreads / width, part = threadIdx.x / width;
    for (int c = threadIdx.x % width; c < a.d && part < parts; c += width) {
        float n = 0;
        for (int i = part; i < a.features && lambda != 0; i += parts) n += phi[i] * a.s.load(a.s.at(b, hs, i, c));
        for (int j = part; j < window; j += parts)
            n += weights[j] * a.ring_v.load(a.ring_v.at(b, hk, (begin + j) % a.slots, c));
        sums[part * width + c] = n;  // one part alone where D exceeds the block
    }
    __syncthreads();
    for (int c = threadIdx.x; c < a.d; c += kThreads) {
        float n = 0;
        for (int p = 0; p < parts; ++p) n += sums[p * width + c];
        a.y.store(a.y.at(b, h, 0, c), n / total);
    }
}

}  // namespace

void hybrid_decode_cuda(const HybridDecode& args, Stream stream) {
    const cudaStream_t queue = cuda::handle_of(stream);
    const Step step(args);
    allow_shared_memory(fold_kernel, fold_bytes(step));
    fold_kernel<<<dim3(grid_x(step.batch * step.states), kSlices), kThreads, fold_bytes(step), queue>>>(step);
    LC_LAUNCHED("hybrid_decode", queue);
    if (args.ring_k) {
        append_kernel<<<grid_x(ceil_div(step.batch * step.kv_heads * step.d, kThreads)), kThreads, 0, queue>>>(step);
        LC_LAUNCHED("hybrid_decode", queue);
    }
    allow_shared_memory(attend_kernel, attend_bytes(step));
    attend_kernel<<<grid_x(step.batch * step.heads), kThreads, attend_bytes(step), queue>>>(step);
    LC_LAUNCHED("hybrid_decode", queue);
}

}  // namespace lc::kernels
