// One token of softmax attention on the GPU, any layout and size; softmax_decode_packed.cu is the form for models.
//
// MATHS    softmax_decode.h, by an online softmax over tiles of 256 keys.
// TILING   two launches: `append`, one thread a number; `attend`, a block per (batch, query head): scores of a tile with one warp a
//          key, then each thread adds up the tile's values for its columns
// COST     2 D (t + 1) numbers read a query head; no query heads share a load.
// NUMERICS f32; sums in a fixed order.
// LADDER   1 this.
// SOURCE   online softmax, arXiv 1805.02867.
#include "kernels/softmax_decode/softmax_decode.h"

#include "core/profile.h"
#include "kernels/common/cuda/launch.h"
#include "kernels/common/cuda/operand.cuh"
#include "kernels/common/cuda/reduce.cuh"

namespace lc::kernels {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / kWarp, kTile = 256, kMostColumns = 512 / kThreads;

// A tensor [B,H,T,D] of any strides.
struct Heads {
    std::byte* data;  // first element
    int64_t stride[4];
    DType dtype;

    explicit Heads(const TensorView& view)
        : data(view.base + view.layout.offset * size_of(view.dtype)),
          stride{view.stride(0), view.stride(1), view.stride(2), view.stride(3)},
          dtype(view.dtype) {}
    __device__ int64_t at(int64_t b, int64_t h, int64_t t, int64_t c) const {
        return b * stride[0] + h * stride[1] + t * stride[2] + c * stride[3];
    }
    __device__ float load(int64_t b, int64_t h, int64_t t, int64_t c) const {
        return cuda::load_float(data, at(b, h, t, c), dtype);
    }
    __device__ void store(int64_t b, int64_t h, int64_t t, int64_t c, float value) const {
        cuda::store_float(data, at(b, h, t, c), dtype, value);
    }
};

struct Args {
    Heads q, k, v, keys, values, y;
    const int64_t* positions;
    int64_t batch, heads, kv_heads, window;
    int d;

    explicit Args(const SoftmaxDecode& a)
        : q(a.q),
          k(a.k),
          v(a.v),
          keys(a.keys),
          values(a.values),
          y(a.y),
          positions(device_data<const int64_t>(a.positions)),
          batch(a.q.size(0)),
          heads(a.q.size(1)),
          kv_heads(a.k.size(1)),
          window(a.window),
          d(static_cast<int>(a.q.size(3))) {}
};

__global__ void append_kernel(const __grid_constant__ Args a) {
    const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
    if (i >= a.batch * a.kv_heads * a.d) return;
    const int64_t c = i % a.d, h = i / a.d % a.kv_heads, b = i / a.d / a.kv_heads, position = a.positions[b];
    if (position < 0) return;
    a.keys.store(b, h, position, c, a.k.load(b, h, 0, c));
    a.values.store(b, h, position, c, a.v.load(b, h, 0, c));
}

__global__ void __launch_bounds__(kThreads) attend_kernel(const __grid_constant__ Args a) {
    __shared__ float weights[kTile];
    const int64_t b = blockIdx.x / a.heads, h = blockIdx.x % a.heads, hk = h / (a.heads / a.kv_heads);
    const int64_t length = a.positions[b] + 1;
    const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
    const float scale = rsqrtf(static_cast<float>(a.d));
    float high = -INFINITY, total = 0, sum[kMostColumns] = {};
    for (int64_t first = SoftmaxDecode::first_seen(length - 1, a.window); first < length; first += kTile) {
        const int count = static_cast<int>(min(int64_t{kTile}, length - first));
        for (int j = warp; j < count; j += kWarps) {
            float dot = 0;
            for (int c = lane; c < a.d; c += kWarp)
                dot = fmaf(a.q.load(b, h, 0, c), a.keys.load(b, hk, first + j, c), dot);
            dot = warp_sum(dot);
            if (lane == 0) weights[j] = scale * dot;
        }
        __syncthreads();
        const int own = threadIdx.x;
        const float higher = fmaxf(high, block_max(own < count ? weights[own] : -INFINITY));
        const float weight = own < count ? expf(weights[own] - higher) : 0, kept = expf(high - higher);
        if (own < count) weights[own] = weight;
        total = total * kept + block_sum(weight);  // its barriers publish the weights
        high = higher;
#pragma unroll
        for (int i = 0; i < kMostColumns; ++i) {
            const int c = i * kThreads + static_cast<int>(threadIdx.x);
            if (c >= a.d) continue;
            sum[i] *= kept;
            for (int j = 0; j < count; ++j) sum[i] = fmaf(weights[j], a.values.load(b, hk, first + j, c), sum[i]);
        }
        __syncthreads();
    }
#pragma unroll
    for (int i = 0; i < kMostColumns; ++i) {
        const int c = i * kThreads + static_cast<int>(threadIdx.x);
        if (c < a.d) a.y.store(b, h, 0, c, length > 0 ? sum[i] / total : 0.0f);
    }
}

}  // namespace

void softmax_decode_cuda(const SoftmaxDecode& args, Stream stream) {
    if (args.q.numel() == 0 || softmax_decode_packed(args, stream)) return;
    profile_count("fallback softmax_decode");
    const cudaStream_t queue = cuda::handle_of(stream);
    const Args a(args);
    append_kernel<<<grid_x(ceil_div(a.batch * a.kv_heads * a.d, kThreads)), kThreads, 0, queue>>>(a);
    LC_LAUNCHED("softmax_decode", queue);
    attend_kernel<<<grid_x(a.batch * a.heads), kThreads, 0, queue>>>(a);
    LC_LAUNCHED("softmax_decode", queue);
}

}  // namespace lc::kernels
