// The kernels of frozen_linear_wide_sm90.cu, which says what they do.
#pragma once
#include "kernels/common/cuda/early.cuh"
#include "kernels/common/cuda/pack.cuh"
#include "kernels/common/cuda/roles.cuh"
#include "kernels/frozen_linear/frozen_linear_stream.cuh"

namespace lc::kernels {

// Rows of W in a tile (gated: half of them gate, half up); Split: blocks, a cluster, that share the columns of a tile.
template <int Rows, int Split, bool Gated>
struct WideTraits {
    static constexpr int kRows = Rows, kSplit = Split, kBatch = static_cast<int>(kWideRows);
    static constexpr bool kGated = Gated;
    static constexpr int kBox = Gated ? Rows / 2 : Rows;  // of W in one copy
    static constexpr int kMultiply = kWarpgroup, kThreads = kMultiply + kWarp;
    static constexpr int kColumns = 64;  // of a stage
    static constexpr int kWeights = Rows * kColumns * 2, kStage = kWeights + kBatch * kColumns * 2;
    static constexpr int kBlocks = Rows / 8,
                         kOwn = kBlocks / Split;  // runs of eight rows of W; those that a block finishes
    static constexpr int kParts = (Split - 1) * 2 * kOwn * kMultiply * 8;
    static constexpr int kStages = (kSharedLimit - kParts - 2 * kTileAlignment) / kStage;
    static constexpr int kBytes = kTileAlignment + kStages * kStage + kParts;
    static_assert(kBox % 8 == 0 && kBlocks % Split == 0 && (!Gated || Split == 1));
};

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

// C [64,Rows] += A B^T, both K-major in shared memory (wgmma.cuh has the widths 64 and 128).
// clang-format off
#define LC_WIDE_C8(i)                                                                                       \
    "+f"(c[i]), "+f"(c[i + 1]), "+f"(c[i + 2]), "+f"(c[i + 3]), "+f"(c[i + 4]), "+f"(c[i + 5]), "+f"(c[i + 6]), "+f"(c[i + 7])
__device__ __forceinline__ void wide_wgmma(float (&c)[48], WgmmaDescriptor a, WgmmaDescriptor b) {
    asm volatile(
        "wgmma.mma_async.sync.aligned.m64n96k16.f32.bf16.bf16 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
        "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47"
        "}, %48, %49, 1, 1, 1, 0, 0;"
        : LC_WIDE_C8(0), LC_WIDE_C8(8), LC_WIDE_C8(16), LC_WIDE_C8(24), LC_WIDE_C8(32), LC_WIDE_C8(40)
        : "l"(a.bits()), "l"(b.bits()));
}
__device__ __forceinline__ void wide_wgmma(float (&c)[56], WgmmaDescriptor a, WgmmaDescriptor b) {
    asm volatile(
        "wgmma.mma_async.sync.aligned.m64n112k16.f32.bf16.bf16 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
        "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
        "%48, %49, %50, %51, %52, %53, %54, %55"
        "}, %56, %57, 1, 1, 1, 0, 0;"
        : LC_WIDE_C8(0), LC_WIDE_C8(8), LC_WIDE_C8(16), LC_WIDE_C8(24), LC_WIDE_C8(32), LC_WIDE_C8(40), LC_WIDE_C8(48)
        : "l"(a.bits()), "l"(b.bits()));
}
#undef LC_WIDE_C8
// clang-format on
__device__ __forceinline__ void wide_wgmma(float (&c)[32], WgmmaDescriptor a, WgmmaDescriptor b) {
    wgmma_ss<Major::K>(c, a, b, true);
}
__device__ __forceinline__ void wide_wgmma(float (&c)[64], WgmmaDescriptor a, WgmmaDescriptor b) {
    wgmma_ss<Major::K>(c, a, b, true);
}

// The columns of a tile that this block multiplies, in steps of a stage; and its place among those that share the tile.
template <class S>
struct WideShare {
    int rank, begin, end;
    __device__ __forceinline__ explicit WideShare(const StreamArgs& a) {
        const int steps = (a.columns + S::kColumns - 1) / S::kColumns;
        rank = static_cast<int>(blockIdx.x) % S::kSplit;
        begin = steps * rank / S::kSplit, end = steps * (rank + 1) / S::kSplit;
    }
    __device__ __forceinline__ static int first_tile() { return static_cast<int>(blockIdx.x) / S::kSplit; }
    __device__ __forceinline__ static int tile_stride() { return static_cast<int>(gridDim.x) / S::kSplit; }
};

// The matrix of a tile, and its first row there. Gated: of both.
template <class S>
struct WideTile {
    int matrix = 0, row;
    __device__ __forceinline__ WideTile(const StreamArgs& a, int tile) {
        if constexpr (!S::kGated)
            while (matrix + 1 < a.matrices && tile >= a.matrix[matrix + 1].first_tile) ++matrix;
        row = (tile - a.matrix[matrix].first_tile) * S::kBox;
    }
};

// [Rows of W, 64], then [rows of x, 64].
template <class S>
struct WideStage {
    __nv_bfloat16 *w, *x;
    __device__ __forceinline__ WideStage(unsigned char* shared, int stage)
        : w(reinterpret_cast<__nv_bfloat16*>(shared + stage * S::kStage)), x(w + S::kWeights / 2) {}
};

// One thread: a few copies a stage.
template <class S>
struct WideProducer {
    const StreamArgs& a;
    unsigned char* shared;
    Barrier *full, *free;
    WideShare<S> share;

    struct Place {
        int tile, step;
    };
    __device__ __forceinline__ void next(Place& place) const {
        if (++place.step == share.end) place = {place.tile + share.tile_stride(), share.begin};
    }
    // Weights depend on nobody.
    __device__ __forceinline__ void copy_weights(int stage, const Place& place) const {
        const WideTile<S> tile(a, place.tile);
        const WideStage<S> to(shared, stage);
        const int column = place.step * S::kColumns;
        full[stage].expect(S::kWeights + a.batch * S::kColumns * 2);
        copy_panel(to.w, a.matrix[tile.matrix].map, tile.row, column, full[stage]);
        if constexpr (S::kGated) copy_panel(to.w + S::kBox * 64, a.matrix[1].map, tile.row, column, full[stage]);
    }
    __device__ __forceinline__ void copy_inputs(int stage, const Place& place) const {
        copy_panel(WideStage<S>(shared, stage).x, a.x, 0, place.step * S::kColumns, full[stage]);
    }
    __device__ __forceinline__ void run() const {
        if (share.begin == share.end) return;
        const Place first{share.first_tile(), share.begin};
        Place place = first;
        int ahead = 0;
        for (; ahead < S::kStages && place.tile < a.tiles; ++ahead, next(place)) copy_weights(ahead, place);
        wait_for_predecessor();
        Place again = first;
        for (int stage = 0; stage < ahead; ++stage, next(again)) copy_inputs(stage, again);
        Turn<S::kStages> turn;
        for (; place.tile < a.tiles; next(place), turn.next()) {
            free[turn.stage].wait(turn.phase);
            copy_weights(turn.stage, place), copy_inputs(turn.stage, place);
        }
    }
};

template <class S>
struct WideConsumer {
    const StreamArgs& a;
    unsigned char* shared;
    Barrier *full, *free, *received;
    WideShare<S> share;
    Turn<S::kStages> turn;
    float c[4 * S::kBlocks];  // 64 rows of x times those of W; rows behind a.batch are what lay there before

    __device__ __forceinline__ float2* parts(int i) const {
        return reinterpret_cast<float2*>(shared + S::kStages * S::kStage) + i * S::kMultiply + threadIdx.x;
    }
    __device__ __forceinline__ void multiply() {
#pragma unroll
        for (float& sum : c) sum = 0;
        int last = -1;
        for (int step = share.begin; step < share.end; ++step, turn.next()) {
            full[turn.stage].wait(turn.phase);
            const WideStage<S> stage(shared, turn.stage);
            const WgmmaDescriptor left(stage.x, 16), right(stage.w, 16);
            wgmma_fence();
#pragma unroll
            for (int k = 0; k < S::kColumns; k += 16) wide_wgmma(c, left + k, right + k);
            wgmma_commit();
            wgmma_wait<1>();
            if (last >= 0) release(free[last]);
            last = turn.stage;
        }
        wgmma_wait<0>();
        wgmma_settle(c);
        if (last >= 0) release(free[last]);
    }
    // Of a pair: the first half of the rows of W is finished by the first block, the second one by the other.
    __device__ __forceinline__ void exchange(float (&sum)[4 * S::kOwn]) {
        static_assert(S::kSplit == 2);
        constexpr int kHalf = 4 * S::kOwn;
        if (threadIdx.x == 0) received->expect(S::kParts);
        const bool first = share.rank == 0;
#pragma unroll
        for (int i = 0; i < kHalf; i += 2)
            send(parts(i / 2), {first ? c[kHalf + i] : c[i], first ? c[kHalf + i + 1] : c[i + 1]}, *received,
                 1 - share.rank);
        received->wait(0);
#pragma unroll
        for (int i = 0; i < kHalf; i += 2) {
            const float2 part = *parts(i / 2);
            sum[i] = (first ? c[i] : c[kHalf + i]) + part.x;
            sum[i + 1] = (first ? c[i + 1] : c[kHalf + i + 1]) + part.y;
        }
    }
    __device__ __forceinline__ static float2 bias(const StreamMatrix& m, int row) {
        return m.b ? unpack_bf16(*reinterpret_cast<const uint32_t*>(m.b + row)) : float2{0, 0};
    }
    // Two rows of W from `row` on, for the rows of x that this thread has.
    __device__ __forceinline__ void store_pair(const StreamMatrix& m, int row, const float (&u)[4]) const {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const int64_t b = accumulator_row() + 8 * half;
            if (b >= a.batch) continue;
            float2 y{u[2 * half], u[2 * half + 1]};
            if (a.residual) {
                const float2 r = unpack_bf16(*reinterpret_cast<const uint32_t*>(a.residual + b * a.ld_residual + row));
                y.x += r.x, y.y += r.y;
            }
            *reinterpret_cast<uint32_t*>(m.y + b * m.ld_y + row) = pack_bf16(y.x, y.y);
        }
    }
    // sum: of rows of W from `first` of the tile on.
    template <int Blocks>
    __device__ __forceinline__ void store(const WideTile<S>& tile, int first, const float (&sum)[4 * Blocks]) const {
        constexpr int kResults = S::kGated ? Blocks / 2 : Blocks;
        const StreamMatrix& matrix = a.matrix[tile.matrix];
#pragma unroll
        for (int j = 0; j < kResults; ++j) {
            const int row = tile.row + first + 8 * j + threadIdx.x % 4 * 2;
            if (row >= matrix.rows) continue;
            const float2 b = bias(matrix, row);
            float u[4] = {sum[4 * j] + b.x, sum[4 * j + 1] + b.y, sum[4 * j + 2] + b.x, sum[4 * j + 3] + b.y};
            if constexpr (S::kGated) {
                const float2 d = bias(a.matrix[1], row);
                const float* up = sum + 4 * (j + kResults);
                const float other[4] = {up[0] + d.x, up[1] + d.y, up[2] + d.x, up[3] + d.y};
#pragma unroll
                for (int e = 0; e < 4; ++e) u[e] = u[e] / (1 + expf(-u[e])) * other[e];
            }
            store_pair(matrix, row, u);
        }
    }
    __device__ __forceinline__ void run() {
        for (int tile = share.first_tile(); tile < a.tiles; tile += share.tile_stride()) {
            multiply();
            const WideTile<S> at(a, tile);
            if constexpr (S::kSplit == 1) {
                store<S::kBlocks>(at, 0, c);
            } else {  // one tile a cluster: what was received is read once
                cluster_wait();
                float sum[4 * S::kOwn];
                exchange(sum);
                store<S::kOwn>(at, 8 * S::kOwn * share.rank, sum);
            }
        }
    }
};

#endif

template <class S>
__global__ void __launch_bounds__(S::kThreads, 1) wide_kernel(const __grid_constant__ StreamArgs a) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
    extern __shared__ unsigned char unaligned[];
    __shared__ Barrier full[S::kStages], free[S::kStages], received;
    unsigned char* shared = reinterpret_cast<unsigned char*>(aligned_shared(unaligned));
    start_successor();
    if (threadIdx.x == 0) {
        for (int s = 0; s < S::kStages; ++s) full[s].init(1), free[s].init(S::kMultiply / kWarp);
        received.init(1);
        fence_barriers();
    }
    __syncthreads();
    if constexpr (S::kSplit > 1) cluster_arrive();  // barriers of others are there
    const WideShare<S> share(a);
    if (threadIdx.x >= S::kMultiply) {
        if (threadIdx.x == S::kMultiply) WideProducer<S>{a, shared, full, free, share}.run();
        __syncwarp();
        if constexpr (S::kSplit > 1) cluster_wait();
        return;
    }
    wait_for_predecessor();
    WideConsumer<S>{.a = a, .shared = shared, .full = full, .free = free, .received = &received, .share = share}.run();
#endif
}

// n = x times the RMS norm's factor and weight; a block a row of whole packs.
inline constexpr int kNormThreads = 256;

struct NormRowsArgs {
    const __nv_bfloat16 *x, *weight;  // [rows, columns] of `ld_x` from row to row, [columns]
    __nv_bfloat16* n;                 // [rows, columns], dense
    int64_t ld_x = 0;
    int columns = 0;
    float eps = 0, offset = 0;
};

__global__ void __launch_bounds__(kNormThreads) norm_rows_kernel(const __grid_constant__ NormRowsArgs a) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
    using P = Pack<__nv_bfloat16>;
    constexpr int kHeld = 2;  // packs of a row in a thread; longer rows are read again
    start_successor();
    const __nv_bfloat16* x = a.x + blockIdx.x * a.ld_x;
    __nv_bfloat16* n = a.n + static_cast<int64_t>(blockIdx.x) * a.columns;
    const int packs = a.columns / P::kSize;
    P held[kHeld], weight[kHeld];
#pragma unroll
    for (int k = 0; k < kHeld; ++k)
        if (const int i = static_cast<int>(threadIdx.x) + k * kNormThreads; i < packs)
            weight[k] = load_pack(a.weight + i * P::kSize);
    wait_for_predecessor();
    float squares = 0;
    const auto add_squares = [&](const P& p) {
#pragma unroll
        for (int j = 0; j < P::kSize; ++j) squares += p.get(j) * p.get(j);
    };
#pragma unroll
    for (int k = 0; k < kHeld; ++k)
        if (const int i = static_cast<int>(threadIdx.x) + k * kNormThreads; i < packs)
            held[k] = load_pack(x + i * P::kSize), add_squares(held[k]);
    for (int i = static_cast<int>(threadIdx.x) + kHeld * kNormThreads; i < packs; i += kNormThreads)
        add_squares(load_pack(x + i * P::kSize));
    __shared__ float sums[kNormThreads / kWarp];
    const float factor = 1 / sqrtf(block_sum(squares, sums) / static_cast<float>(a.columns) + a.eps);
    const auto put = [&](int i, P p, const P& w) {
#pragma unroll
        for (int j = 0; j < P::kSize; ++j) p.set(j, (a.offset + w.get(j)) * (p.get(j) * factor));
        store_pack(n + i * P::kSize, p);
    };
#pragma unroll
    for (int k = 0; k < kHeld; ++k)
        if (const int i = static_cast<int>(threadIdx.x) + k * kNormThreads; i < packs) put(i, held[k], weight[k]);
    for (int i = static_cast<int>(threadIdx.x) + kHeld * kNormThreads; i < packs; i += kNormThreads)
        put(i, load_pack(x + i * P::kSize), load_pack(a.weight + i * P::kSize));
#endif
}

// tiles: numbered already.
template <class S>
void launch_wide(const StreamArgs& a, cudaStream_t queue) {
    const int64_t grid = S::kSplit > 1 ? int64_t{a.tiles} * S::kSplit : std::min(a.tiles, multiprocessors());
    launch_early(wide_kernel<S>, {grid, S::kThreads, S::kBytes, S::kSplit}, queue, a);
}

}  // namespace lc::kernels
