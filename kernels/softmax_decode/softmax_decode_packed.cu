// One token of softmax attention on the GPU where rows lie dense: the form that models run.
//
// MATHS    softmax_decode.h, split over the keys: each chunk c of 256 gives m_c = max s_j, l_c = sum exp(s_j - m_c) and
//          o_c = sum exp(s_j - m_c) v_j;  y = sum_c exp(m_c - m) o_c / sum_c exp(m_c - m) l_c with m = max m_c.
// TILING   attend   a block per (chunk, batch, KV head), which ends at once where the sequence has no such chunk or does
//                   not see it any more. Every load of a key
//                   or value serves the G query heads of the group. A warp has 32 keys; D / 8 lanes (bf16) hold a key's numbers,
//                   16 bytes each, of several keys at a time. Scores of several keys and heads are summed over lanes together:
//                   each exchange halves what a lane holds, so that n scores over n lanes take n - 1 exchanges and not n log n. Then a
//                   warp a head for maximum and exponentials, and each lane adds up its columns of the values for all heads;
//                   lanes and warps meet in shared memory. The block that has position t reads k_t, v_t, and puts them into
//                   the memory
//          combine  a block per (batch, query head) over the chunks
// COST     2 D (t + 1) numbers of the memory a KV head; the chunks' results are 2 G / 256 of that. About 50 instructions a warp and
//          key at G = 4: a third of the time that an SM's share of the bandwidth takes for 512 bytes.
// NUMERICS f32; exp2 of scores that are scaled by log2(e). Chunks begin at multiples of 256 whatever the capacity, and all sums run in
//          a fixed order.
// LADDER   1 this: on an H200, Llama-3-8B heads, 82 % of a copy's bandwidth for 64 sequences of 16k or 64k, 62 % of 1k; alone 55 % of 64k.
// SOURCE   split keys: Flash-Decoding (Dao et al., 2023).
#include "kernels/common/cuda/launch.h"
#include "kernels/common/cuda/pack.cuh"
#include "kernels/common/cuda/reduce.cuh"
#include "kernels/softmax_decode/softmax_decode.h"

namespace lc::kernels {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / kWarp, kCombineThreads = 512;
constexpr int kChunk = 256, kMine = kChunk / kWarps;  // keys of a block and of a warp
constexpr int kMostGroup = 8;
constexpr float kLog2e = 1.4426950408889634f;

template <class T>
struct Args {
    const T *q, *k, *v;                                                                  // [B,H,1,D], [B,H_kv,1,D]
    T *keys, *values;                                                                    // [B,H_kv,C,D]
    T* y;                                                                                // [B,H,1,D]
    int64_t q_b, q_h, k_b, k_h, v_b, v_h, keys_b, keys_h, values_b, values_h, y_b, y_h;  // strides
    const int64_t* positions;
    float *o, *m, *l;  // of the chunks: [B,H,chunks,D], [B,H,chunks], [B,H,chunks]
    int64_t window;
    int heads, kv_heads, group, chunks;
};

template <class T, int D, int G>
struct Traits {
    static constexpr int kNumbers = Pack<T>::kSize;                // of a row in one lane
    static constexpr int kLanes = D / kNumbers;                    // of a row
    static constexpr int kRows = kWarp / kLanes;                   // of a warp at a time
    static constexpr int kSteps = kMine / kRows;                   // until the warp has seen its keys
    static constexpr int kScores = std::min({G * 8, kLanes, 16});  // summed over lanes together
    static constexpr int kAhead = kScores / G;                     // steps that go together
    static_assert(kLanes <= kWarp && kSteps % kAhead == 0 && kWarp % kLanes == 0);
    static constexpr int64_t kShared = sizeof(float) * (kChunk * G + kWarps * G * D);
    static_assert(kShared <= 48 * 1024);
};

// Sums over Lanes neighbouring lanes of N values each, N at most Lanes; afterwards values[0] of lane i is the sum of value i % N.
template <int N, int Lanes>
__device__ __forceinline__ void sum_over_lanes(float (&values)[N]) {
    static_assert(N <= Lanes && (N & (N - 1)) == 0);
    const int lane = static_cast<int>(threadIdx.x) % kWarp;
#pragma unroll
    for (int step = Lanes / 2; step >= N; step /= 2)
#pragma unroll
        for (int i = 0; i < N; ++i) values[i] += __shfl_xor_sync(0xffffffffu, values[i], step);
#pragma unroll
    for (int step = N / 2; step > 0; step /= 2) {
        const bool upper = (lane & step) != 0;  // keeps the upper half of the values, and gives the lower one away
#pragma unroll
        for (int i = 0; i < step; ++i) {
            const float low = values[i], high = values[i + step];
            values[i] = (upper ? high : low) + __shfl_xor_sync(0xffffffffu, upper ? low : high, step);
        }
    }
}

template <class T, int D, int G>
__global__ void __launch_bounds__(kThreads) attend_kernel(const __grid_constant__ Args<T> a) {
    using R = Traits<T, D, G>;
    extern __shared__ __align__(16) float shared[];
    float *weights = shared, *sums = weights + kChunk * G;  // [kChunk,G], [kWarps,G,D]
    const int64_t b = blockIdx.y / a.kv_heads, hk = blockIdx.y % a.kv_heads, position = a.positions[b];
    const int64_t first = static_cast<int64_t>(blockIdx.x) * kChunk;
    if (first > position) return;
    const int unseen = static_cast<int>(max(SoftmaxDecode::first_seen(position, a.window) - first, int64_t{0}));
    if (unseen >= kChunk) return;
    const int count = static_cast<int>(min(int64_t{kChunk}, position + 1 - first));
    const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp, own = static_cast<int>(position - first);
    const int column = lane % R::kLanes * R::kNumbers, row = warp * kMine + lane / R::kLanes;
    const T *own_k = a.k + b * a.k_b + hk * a.k_h, *own_v = a.v + b * a.v_b + hk * a.v_h;
    T *keys = a.keys + b * a.keys_b + hk * a.keys_h + first * D,
      *values = a.values + b * a.values_b + hk * a.values_h + first * D;
    // Row j of the chunk, its own behind the end.
    const auto load = [&](const T* rows, const T* fresh, int j) {
        return load_pack((j >= own ? fresh : rows + j * D) + column);
    };

    float q[G][R::kNumbers];
#pragma unroll
    for (int g = 0; g < G; ++g) {
        const int64_t h = hk * a.group + min(g, a.group - 1);  // heads beyond the group: the last one again
        const auto pack = load_pack(a.q + b * a.q_b + h * a.q_h + column);
#pragma unroll
        for (int e = 0; e < R::kNumbers; ++e) q[g][e] = pack.get(e) * (kLog2e * rsqrtf(static_cast<float>(D)));
    }
#pragma unroll 2
    for (int step = 0; step < R::kSteps; step += R::kAhead) {
        Pack<T> packs[R::kAhead];
#pragma unroll
        for (int u = 0; u < R::kAhead; ++u) packs[u] = load(keys, own_k, row + (step + u) * R::kRows);
        float scores[R::kAhead * G] = {};
#pragma unroll
        for (int u = 0; u < R::kAhead; ++u)
#pragma unroll
            for (int e = 0; e < R::kNumbers; ++e) {
                const float key = packs[u].get(e);
#pragma unroll
                for (int g = 0; g < G; ++g) scores[u * G + g] = fmaf(q[g][e], key, scores[u * G + g]);
            }
        sum_over_lanes<R::kScores, R::kLanes>(scores);
        if (lane % R::kLanes < R::kScores) {
            const int i = lane % R::kLanes;
            weights[(row + (step + i / G) * R::kRows) * G + i % G] = scores[0];
        }
    }
    if (count == own + 1 && threadIdx.x < D) {
        keys[own * D + threadIdx.x] = own_k[threadIdx.x];
        values[own * D + threadIdx.x] = own_v[threadIdx.x];
    }
    __syncthreads();
    if (warp < a.group) {
        float mine[kChunk / kWarp], high = -INFINITY, total = 0;
#pragma unroll
        for (int i = 0; i < kChunk / kWarp; ++i) {
            const int j = i * kWarp + lane;
            mine[i] = j >= unseen && j < count ? weights[j * G + warp] : -INFINITY;
            high = fmaxf(high, mine[i]);
        }
        high = warp_max(high);
#pragma unroll
        for (int i = 0; i < kChunk / kWarp; ++i) {
            mine[i] = exp2f(mine[i] - high), total += mine[i];
            weights[(i * kWarp + lane) * G + warp] = mine[i];
        }
        total = warp_sum(total);
        const int64_t place = (b * a.heads + hk * a.group + warp) * a.chunks + blockIdx.x;
        if (lane == 0) a.m[place] = high, a.l[place] = total;
    }
    __syncthreads();

    float sum[G][R::kNumbers] = {};
    constexpr int kValuesAhead = R::kSteps < 4 ? R::kSteps : 4;
#pragma unroll 2
    for (int step = 0; step < R::kSteps; step += kValuesAhead) {
        Pack<T> packs[kValuesAhead];
#pragma unroll
        for (int u = 0; u < kValuesAhead; ++u) packs[u] = load(values, own_v, row + (step + u) * R::kRows);
#pragma unroll
        for (int u = 0; u < kValuesAhead; ++u) {
            const float* w = weights + (row + (step + u) * R::kRows) * G;
#pragma unroll
            for (int e = 0; e < R::kNumbers; ++e) {
                const float value = packs[u].get(e);
#pragma unroll
                for (int g = 0; g < G; ++g) sum[g][e] = fmaf(w[g], value, sum[g][e]);
            }
        }
    }
#pragma unroll
    for (int g = 0; g < G; ++g)
#pragma unroll
        for (int e = 0; e < R::kNumbers; ++e) {
#pragma unroll
            for (int step = R::kLanes; step < kWarp; step *= 2)
                sum[g][e] += __shfl_xor_sync(0xffffffffu, sum[g][e], step);
            if (lane < R::kLanes) sums[(warp * G + g) * D + column + e] = sum[g][e];
        }
    __syncthreads();
    for (int i = threadIdx.x; i < a.group * D; i += kThreads) {
        float total = 0;
#pragma unroll
        for (int w = 0; w < kWarps; ++w) total += sums[w * G * D + i];
        const int64_t h = hk * a.group + i / D;
        a.o[((b * a.heads + h) * a.chunks + blockIdx.x) * D + i % D] = total;
    }
}

template <class T, int D>
__global__ void __launch_bounds__(kCombineThreads) combine_kernel(const __grid_constant__ Args<T> a) {
    constexpr int kParts = kCombineThreads / D;
    __shared__ float sums[kParts][D];
    const int64_t head = blockIdx.x, b = head / a.heads, position = a.positions[b];
    const int column = threadIdx.x % D, part = threadIdx.x / D, chunks = static_cast<int>(position / kChunk) + 1;
    const int first = static_cast<int>(SoftmaxDecode::first_seen(position, a.window) / kChunk);
    T* y = a.y + b * a.y_b + head % a.heads * a.y_h;
    if (position < 0) {
        if (part == 0) y[column] = from_float<T>(0);
        return;
    }
    const float *m = a.m + head * a.chunks, *l = a.l + head * a.chunks, *o = a.o + head * a.chunks * D + column;
    float high = -INFINITY, total = 0, sum = 0;
    for (int c = first + static_cast<int>(threadIdx.x); c < chunks; c += kCombineThreads) high = fmaxf(high, m[c]);
    high = block_max(high);
    for (int c = first + static_cast<int>(threadIdx.x); c < chunks; c += kCombineThreads)
        total += exp2f(m[c] - high) * l[c];
    total = block_sum(total);
#pragma unroll 8
    for (int c = first + part; c < chunks; c += kParts) sum = fmaf(exp2f(m[c] - high), o[int64_t{c} * D], sum);
    sums[part][column] = sum;
    __syncthreads();
    if (part != 0) return;
#pragma unroll
    for (int p = 1; p < kParts; ++p) sum += sums[p][column];
    y[column] = from_float<T>(sum / total);
}

bool rows_are_packed(const TensorView& x) {  // [B,H,T,D]
    const int64_t unit = 16 / size_of(x.dtype);
    return x.stride(3) == 1 && (x.size(2) == 1 || x.stride(2) == x.size(3)) && x.stride(0) % unit == 0 &&
           x.stride(1) % unit == 0 && x.layout.offset % unit == 0;
}

bool covered(const SoftmaxDecode& a) {
    const int64_t d = a.q.size(3);
    if ((d != 64 && d != 128) || a.q.size(1) / a.k.size(1) > kMostGroup) return false;
    if (a.q.size(0) * a.k.size(1) > 65535) return false;  // blocks in y
    for (const TensorView* view : {&a.q, &a.k, &a.v, &a.keys, &a.values, &a.y})
        if (!rows_are_packed(*view)) return false;
    return true;
}

template <class T>
Args<T> args_of(const SoftmaxDecode& a) {
    return {.q = device_data<T>(a.q),
            .k = device_data<T>(a.k),
            .v = device_data<T>(a.v),
            .keys = device_data<T>(a.keys),
            .values = device_data<T>(a.values),
            .y = device_data<T>(a.y),
            .q_b = a.q.stride(0),
            .q_h = a.q.stride(1),
            .k_b = a.k.stride(0),
            .k_h = a.k.stride(1),
            .v_b = a.v.stride(0),
            .v_h = a.v.stride(1),
            .keys_b = a.keys.stride(0),
            .keys_h = a.keys.stride(1),
            .values_b = a.values.stride(0),
            .values_h = a.values.stride(1),
            .y_b = a.y.stride(0),
            .y_h = a.y.stride(1),
            .positions = device_data<const int64_t>(a.positions),
            .window = a.window,
            .heads = static_cast<int>(a.q.size(1)),
            .kv_heads = static_cast<int>(a.k.size(1)),
            .group = static_cast<int>(a.q.size(1) / a.k.size(1)),
            .chunks = static_cast<int>(ceil_div(a.keys.size(2), kChunk))};
}

template <class T, int D, int G>
void run(const SoftmaxDecode& decode, Stream stream) {
    const cudaStream_t queue = cuda::handle_of(stream);
    Args<T> a = args_of<T>(decode);
    const int64_t batch = decode.q.size(0), results = batch * a.heads * a.chunks;
    const DeviceScratch<float> scratch(results * (D + 2), stream);
    a.o = scratch.data(), a.m = a.o + results * D, a.l = a.m + results;
    const dim3 blocks(grid_x(a.chunks), static_cast<unsigned>(batch * a.kv_heads));
    attend_kernel<T, D, G><<<blocks, kThreads, Traits<T, D, G>::kShared, queue>>>(a);
    LC_LAUNCHED("softmax_decode", queue);
    combine_kernel<T, D><<<grid_x(batch * a.heads), kCombineThreads, 0, queue>>>(a);
    LC_LAUNCHED("softmax_decode", queue);
}

template <class T, int D>
void run_group(const SoftmaxDecode& decode, Stream stream) {
    const int64_t group = decode.q.size(1) / decode.k.size(1);
    if (group == 1) return run<T, D, 1>(decode, stream);
    if (group == 2) return run<T, D, 2>(decode, stream);
    if (group <= 4) return run<T, D, 4>(decode, stream);
    run<T, D, 8>(decode, stream);
}

}  // namespace

bool softmax_decode_packed(const SoftmaxDecode& args, Stream stream) {
    if (!covered(args)) return false;
    dispatch_cuda(args.q.dtype, "softmax_decode", [&](auto type) {
        using T = typename decltype(type)::type;
        if (args.q.size(3) == 64)
            run_group<T, 64>(args, stream);
        else
            run_group<T, 128>(args, stream);
    });
    return true;
}

}  // namespace lc::kernels
