// What is done with a chunk of logits, row by row. Included by linear_cross_entropy.cu, which says what is computed.
//
// TILING   rows of up to 131,072 logits: clusters of 1, 2, 4 or 8 blocks stay and take rows in turn; each block has 16,384 logits of a row
//          in registers from the one read to the one write, and tells the others its maximum and sum. The next row is on its way to
//          shared memory meanwhile (cp.async; a thread reads what it copied itself): 64 KiB a block, two blocks an SM.
//          Longer rows, and those of more than one block below compute capability 9.0: a block a row reads it twice. bf16 dlogits fill
//          the first half of a row's f32 logits: a step reads 4096 logits, waits for all threads, and writes the 4096 gradients onto
//          logits that this step or an earlier one has read.
#pragma once
#include "kernels/common/cuda/launch.h"
#include "kernels/common/cuda/operand.cuh"
#include "kernels/common/cuda/pack.cuh"
#include "kernels/common/cuda/reduce.cuh"
#include "kernels/common/cuda/roles.cuh"
#include "kernels/common/ids.h"

namespace lc::kernels {

struct RowArgs {
    float* logits;  // [rows,stride], rows of the chunk; stride a multiple of 8
    int64_t vocabulary, stride, first, rows;
    Operand labels;  // [N]
    const float* scale;
    float* nll;  // [N]
    int blocks;  // of a row
};

inline constexpr int kRowThreads = 512;
inline constexpr int kHeldPacks = 8;                                                // of four logits, of one thread
inline constexpr int kHeldColumns = kRowThreads * kHeldPacks * 4, kMostBlocks = 8;  // of one block, of one row

__device__ __forceinline__ float nll_of(float sum, float high, float label_logit) {
    return static_cast<float>(log(static_cast<double>(sum)) + static_cast<double>(high) -
                              static_cast<double>(label_logit));
}

// --- the row in registers ---

struct RowTotal {
    float high, sum;
};

// Where the blocks of a cluster leave maximum and sum for each other: slots of two rows in turn. Nobody is two rows ahead, since that
// takes everybody's word on the row between.
struct Meeting {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    Barrier full[2];
    float2 slots[2][kMostBlocks];
#endif

    __device__ __forceinline__ void init(int blocks) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
        if (blocks == 1) return;
        if (threadIdx.x == 0) full[0].init(1), full[1].init(1), fence_barriers();
        cluster_arrive(), cluster_wait();
#endif
    }
    // Maximum and sum of the row from those of its blocks, in their order. `turn` counts rows.
    __device__ __forceinline__ RowTotal join(const RowTotal& own, int block, int blocks, int turn) {
        if (blocks == 1) return own;
        RowTotal total{-INFINITY, 0};
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
        const int side = turn % 2, rank = static_cast<int>(threadIdx.x);
        if (rank == 0) full[side].expect(blocks * static_cast<int>(sizeof(float2)));
        if (rank < blocks) send(&slots[side][block], make_float2(own.high, own.sum), full[side], rank);
        full[side].wait(turn / 2 % 2);
        for (int i = 0; i < blocks; ++i) total.high = fmaxf(total.high, slots[side][i].x);
        for (int i = 0; i < blocks; ++i)
            if (slots[side][i].x != -INFINITY) total.sum += slots[side][i].y * expf(slots[side][i].x - total.high);
#endif
        return total;
    }
};

// This thread's logits of a row: pack i is columns column(i) .. column(i) + 3.
struct HeldRow {
    float x[kHeldPacks][4];

    __device__ __forceinline__ static int column(int block, int i) {
        return block * kHeldColumns + (i * kRowThreads + static_cast<int>(threadIdx.x)) * 4;
    }
    __device__ __forceinline__ static float* place(float* ring, int i) {
        return ring + (i * kRowThreads + static_cast<int>(threadIdx.x)) * 4;
    }
    // Queues the copy to shared memory.
    __device__ __forceinline__ static void copy(float* ring, const float* logits, int block, int vocabulary) {
#pragma unroll
        for (int i = 0; i < kHeldPacks; ++i)
            if (column(block, i) < vocabulary) copy_async(place(ring, i), logits + column(block, i));
    }
    __device__ __forceinline__ void load(float* ring, int block, int vocabulary) {
#pragma unroll
        for (int i = 0; i < kHeldPacks; ++i) {
            const Pack<float> pack = column(block, i) < vocabulary ? load_pack(place(ring, i)) : Pack<float>{};
#pragma unroll
            for (int e = 0; e < 4; ++e) x[i][e] = column(block, i) + e < vocabulary ? pack.get(e) : -INFINITY;
        }
    }
    template <class T, class Value>
    __device__ __forceinline__ static void store(T* gradient, int block, int vocabulary, Value&& value) {
#pragma unroll
        for (int i = 0; i < kHeldPacks; ++i) {
            if (column(block, i) >= vocabulary) continue;
            T four[4];
#pragma unroll
            for (int e = 0; e < 4; ++e) four[e] = from_float<T>(value(i, e));
            using Bits = std::conditional_t<sizeof(T) == 2, uint2, uint4>;
            *reinterpret_cast<Bits*>(gradient + column(block, i)) = *reinterpret_cast<const Bits*>(four);
        }
    }
};

// T: dtype of the gradient, which is left at the start of each row of logits.
template <class T>
__global__ void __launch_bounds__(kRowThreads, sizeof(T) == 2 ? 2 : 1)
    held_row_kernel(const __grid_constant__ RowArgs args) {
    extern __shared__ __align__(16) float ring[];  // [kHeldColumns]
    __shared__ Meeting meeting;
    const int blocks = args.blocks, block = static_cast<int>(blockIdx.x) % blocks;
    const int vocabulary = static_cast<int>(args.vocabulary), step = static_cast<int>(gridDim.x) / blocks;
    const auto logits_of = [&](int row) { return args.logits + row * args.stride; };
    const float scale = *args.scale;
    int row = static_cast<int>(blockIdx.x) / blocks, turn = 0;
    HeldRow::copy(ring, logits_of(row), block, vocabulary);
    meeting.init(blocks);
    for (; row < args.rows; row += step) {
        const int64_t id = args.labels.load_id(args.first + row);
        const int label = id >= 0 && id < vocabulary ? static_cast<int>(id) : -1;
        T* gradient = reinterpret_cast<T*>(logits_of(row));
        copy_async_commit();
        copy_async_wait<0>();
        HeldRow held;
        held.load(ring, block, vocabulary);
        const int of_block = label - block * kHeldColumns;
        const bool has_label =
            of_block >= 0 && of_block < kHeldColumns && of_block / 4 % kRowThreads == static_cast<int>(threadIdx.x);
        const float label_logit = has_label ? ring[of_block] : 0.0f;
        if (row + step < args.rows) HeldRow::copy(ring, logits_of(row + step), block, vocabulary);
        if (label < 0) {
            if (threadIdx.x == 0 && block == 0) args.nll[args.first + row] = id == kIgnoreLabel ? 0.0f : NAN;
            HeldRow::store(gradient, block, vocabulary, [](int, int) { return 0.0f; });
            continue;
        }
        float high = -INFINITY, sum = 0;
#pragma unroll
        for (int i = 0; i < kHeldPacks; ++i)
#pragma unroll
            for (int e = 0; e < 4; ++e) high = fmaxf(high, held.x[i][e]);
        high = block_max(high);
        const float shift = high == -INFINITY ? 0.0f : high;  // a block beyond the row's end
#pragma unroll
        for (int i = 0; i < kHeldPacks; ++i)
#pragma unroll
            for (int e = 0; e < 4; ++e) held.x[i][e] = expf(held.x[i][e] - shift), sum += held.x[i][e];
        sum = block_sum(sum);
        const RowTotal total =
            meeting.join({high, sum}, block, blocks, turn++);  // after which all of the row has been read
        const float factor = scale / total.sum * expf(shift - total.high);
        HeldRow::store(gradient, block, vocabulary, [&](int i, int e) { return factor * held.x[i][e]; });
        if (has_label) {  // this thread has just written there
            args.nll[args.first + row] = nll_of(total.sum, total.high, label_logit);
            gradient[label] = from_float<T>(factor * expf(label_logit - shift) - scale);
        }
    }
}

// --- the row read twice, or once where no gradient is wanted ---

inline constexpr int kPerThread = 8;  // logits of one thread and step

// maximum and sum of exp(x - maximum), of one thread and then of the block
struct OnlineSum {
    float high = -INFINITY, sum = 0;
    __device__ void add(float x) {
        if (x > high) sum *= expf(high - x), high = x;
        sum += expf(x - high);
    }
    __device__ void join_block() {
        const float top = block_max(high);
        sum = block_sum(high == -INFINITY ? 0.0f : sum * expf(high - top));
        high = top;
    }
};

template <class T>
__device__ void clear_gradient(T* row, int64_t vocabulary) {
    for (int64_t v = threadIdx.x; v < vocabulary; v += kRowThreads) row[v] = from_float<T>(0);
}

template <class T, bool Gradient>
__global__ void __launch_bounds__(kRowThreads) row_kernel(const __grid_constant__ RowArgs args) {
    float* logits = args.logits + blockIdx.x * args.stride;
    T* gradient = reinterpret_cast<T*>(logits);
    const int64_t row = args.first + blockIdx.x, vocabulary = args.vocabulary, label = args.labels.load_id(row);
    if (label < 0 || label >= vocabulary) {
        if (threadIdx.x == 0) args.nll[row] = label == kIgnoreLabel ? 0.0f : NAN;
        if constexpr (Gradient) clear_gradient(gradient, vocabulary);
        return;
    }
    constexpr int64_t kStep = kRowThreads * kPerThread;
    OnlineSum softmax;
    for (int64_t v = threadIdx.x * kPerThread; v < vocabulary; v += kStep)
#pragma unroll
        for (int half = 0; half < kPerThread; half += 4) {
            const Pack<float> pack = load_pack(logits + v + half);
#pragma unroll
            for (int e = 0; e < 4; ++e)
                if (v + half + e < vocabulary) softmax.add(pack.get(e));
        }
    softmax.join_block();
    if (threadIdx.x == 0) args.nll[row] = nll_of(softmax.sum, softmax.high, logits[label]);
    if constexpr (Gradient) {
        __syncthreads();  // logits[label] has been read
        const float scale = *args.scale, factor = scale / softmax.sum;
        for (int64_t start = 0; start < vocabulary; start += kStep) {
            const int64_t v = start + threadIdx.x * kPerThread;
            float value[kPerThread];
#pragma unroll
            for (int half = 0; half < kPerThread; half += 4) {
                const Pack<float> pack = v < vocabulary ? load_pack(logits + v + half) : Pack<float>{};
#pragma unroll
                for (int e = 0; e < 4; ++e)
                    value[half + e] =
                        factor * expf(pack.get(e) - softmax.high) - (v + half + e == label ? scale : 0.0f);
            }
            __syncthreads();
#pragma unroll
            for (int part = 0; part < kPerThread; part += Pack<T>::kSize) {
                Pack<T> pack;
#pragma unroll
                for (int e = 0; e < Pack<T>::kSize; ++e) pack.set(e, value[part + e]);
                if (v < vocabulary) store_pack(gradient + v + part, pack);
            }
        }
    }
}

// --- which of them ---

// Whether the device runs clusters of this build.
template <class T>
bool has_clusters() {
    cudaFuncAttributes attributes{};
    if (cudaFuncGetAttributes(&attributes, held_row_kernel<T>) == cudaSuccess) return attributes.ptxVersion >= 90;
    cudaGetLastError();  // no code at all for this device: the launch that follows says so
    return false;
}

// dlogits over logits for `rows` rows.
template <class T>
void launch_rows(RowArgs args, int64_t rows, cudaStream_t queue) {
    args.rows = rows, args.blocks = 1;
    while (args.blocks * int64_t{kHeldColumns} < args.vocabulary) args.blocks *= 2;
    static const bool clusters = has_clusters<T>();
    constexpr int kBytes = kHeldColumns * static_cast<int>(sizeof(float));
    const int64_t most = std::max(1, 2 * multiprocessors() / args.blocks);  // at a time
    const auto groups = static_cast<unsigned>(std::min(rows, most));
    allow_shared_memory(held_row_kernel<T>, kBytes);
    if (args.blocks == 1)
        held_row_kernel<T><<<groups, kRowThreads, kBytes, queue>>>(args);
    else if (args.blocks <= kMostBlocks && clusters)
        launch_clusters(held_row_kernel<T>, args.blocks, groups, kRowThreads, kBytes, queue, args);
    else
        row_kernel<T, true><<<grid_x(rows), kRowThreads, 0, queue>>>(args);
}

}  // namespace lc::kernels
