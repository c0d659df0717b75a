// What a decode step folds as models run it: blocks of 64 keys that leave terraced windows join their states, on tensor cores.
//
// MATHS    hybrid_decode.h: S += phi(K)^T V, z += sum of phi(K), when t mod 64 = 0 and t >= 128.
// TILING   as many blocks as the device holds, two an SM; each finds the sequences that fold and takes a stretch of (state, sequence, 64
//          columns of S), so that it loads few maps and makes the features of a sequence once
//
//            find       a thread a sequence; where none folds, that is all
//            map        u = K W: a warp 16 keys and half of F; a row a warp: phi, in two bf16 parts
//            sum        a warp 16 rows of S: S += phi^T V, S in registers from the start
//
//          Shared memory: keys (then u), 64 columns of values, W and phi in two parts: 104 KiB at D = 128.
// COST     a state: 8 F' D bytes (4 in bf16), 64 keys and values; 2 (D F + F' D) 64 multiply-adds twice over, for the two parts.
//          A copy of that takes 65 us at batch 64 (f32).
// NUMERICS keys and values are bf16 as they are; weights and phi enter products as the sum of two bf16 numbers, which is 16 bits of
//          each; sums are f32, and S is rounded once. Sums run in a fixed order.
// LADDER   H200, 32 states of 128x128, us beside a step that folds nothing, at batch 1 / 64; 64': one of 64 sequences folds, as in a
//          running batch:
//          1 64 / 528 / 58  hybrid_decode_packed.cu: products on CUDA cores.
//          2 17 / 234 / 18  this with all of D at once, features of any kind: 57 KB of code, and registers spilled.
//          3  9 / 151 / 12  half of D at a time; one kind of features.
//          4                this: loads of keys, values, S and W all under way at once, launched early; 64': 9.
// SOURCE   arXiv 2410.10254.
#include "kernels/common/cuda/mma.cuh"
#include "kernels/hybrid_decode/hybrid_decode_args.cuh"

namespace lc::kernels {
namespace {

constexpr int kMostBatch = 4096;

template <class U, int D>
struct Fold {
    static constexpr int kWarps = 8, kThreads = kWarps * kWarp;
    static constexpr int kColumns = 64, kParts = D / kColumns;  // of S, of an item
    using A = Args<__nv_bfloat16, U>;
    using Rows = SharedTile<D>;
    using Part = SharedTile<kColumns>;
    using Map = SharedTile<kStepMap>;
    using Phi = SharedTile<kStepFeatures>;

    struct alignas(128) Shared {
        union {
            __nv_bfloat16 keys[kStepWindow * D];
            float u[kStepWindow * kStepMap];
        };
        __nv_bfloat16 values[kStepWindow * kColumns], map[2][D * kStepMap], phi[2][kStepWindow * kStepFeatures];
        int16_t folding[kMostBatch];  // sequences
        int counts[kWarps];
    };

    const A& a;
    Shared& shared;

    // The sequences whose window loses a block, in order. Returns their number.
    __device__ __forceinline__ int find(int batch) {
        const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
        int found = 0;
#pragma unroll 1
        for (int first = 0; first < batch; first += kThreads) {
            const int b = first + static_cast<int>(threadIdx.x);
            const int position = b < batch ? static_cast<int>(a.positions[b]) : 0;
            const bool folds = position >= kStepSlots && position % kStepWindow == 0;
            const unsigned votes = __ballot_sync(0xffffffffu, folds);
            if (__syncthreads_or(folds) == 0) continue;
            if (lane == 0) shared.counts[warp] = __popc(votes);
            __syncthreads();
            int before = found;
#pragma unroll 1
            for (int w = 0; w < kWarps; ++w) {
                if (w < warp) before += shared.counts[w];
                found += shared.counts[w];
            }
            if (folds) shared.folding[before + __popc(votes & ((1u << lane) - 1))] = static_cast<int16_t>(b);
            __syncthreads();
        }
        return found;
    }
    // Wk of a state as the sum of two tiles in bf16; the second is empty for weights in bf16.
    __device__ __forceinline__ void load_map(int hs) {
        constexpr int kShare = D * kStepMap / 4 / kThreads;
        float4 four[kShare];
        const int64_t start = int64_t{hs} * D * kStepMap + threadIdx.x * 4;
#pragma unroll
        for (int i = 0; i < kShare; ++i) {
            const int64_t place = start + i * kThreads * 4;
            four[i] = a.wk.narrow ? load_four(static_cast<const __nv_bfloat16*>(a.wk.data) + place)
                                  : load_four(static_cast<const float*>(a.wk.data) + place);
        }
#pragma unroll
        for (int i = 0; i < kShare; ++i) {
            const int at = (static_cast<int>(threadIdx.x) + i * kThreads) * 4, row = at / kStepMap,
                      column = at % kStepMap;
            const auto put = [&](int part, float x, float y, float z, float w) {
                *reinterpret_cast<uint2*>(Map{shared.map[part]}.at(row, column)) = {pack_bf16(x, y), pack_bf16(z, w)};
            };
            const auto rest = [](float x) { return x - to_float(from_float<__nv_bfloat16>(x)); };
            put(0, four[i].x, four[i].y, four[i].z, four[i].w);
            if (!a.wk.narrow) put(1, rest(four[i].x), rest(four[i].y), rest(four[i].z), rest(four[i].w));
        }
    }
    // u = K W: a warp 16 keys and half of the columns.
    __device__ __forceinline__ void map_keys() {
        const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp, row = warp / 2 * 16, column = warp % 2 * 32;
        Accumulator u[4] = {};
#pragma unroll 1
        for (int part = 0; part < (a.wk.narrow ? 1 : 2); ++part)
#pragma unroll 2
            for (int k = 0; k < D; k += 16) {
                const FragmentA keys = load_a(Rows{shared.keys}, row, k);
#pragma unroll
                for (int n = 0; n < 4; n += 2) {
                    const FragmentB w = load_b_transposed(Map{shared.map[part]}, column + n * 8, k);
                    mma(u[n], keys, w, 0), mma(u[n + 1], keys, w, 1);
                }
            }
        __syncthreads();  // u takes the place of the keys
#pragma unroll
        for (int n = 0; n < 4; ++n)
#pragma unroll
            for (int half = 0; half < 2; ++half)
                *reinterpret_cast<float2*>(shared.u + (row + half * 8 + lane / 4) * kStepMap + column + n * 8 +
                                           lane % 4 * 2) = {u[n].c[2 * half], u[n].c[2 * half + 1]};
        __syncthreads();
    }
    // phi as the sum of two tiles in bf16.
    __device__ __forceinline__ void map_rows() {
        const int lane = threadIdx.x % kWarp;
#pragma unroll 2
        for (int row = static_cast<int>(threadIdx.x) / kWarp; row < kStepWindow; row += kWarps) {
            const float* u = shared.u + row * kStepMap;
            const StepFeatures phi(u[lane], u[lane + kWarp]);
#pragma unroll
            for (int k = 0; k < 4; ++k) {
                const __nv_bfloat16 high = from_float<__nv_bfloat16>(phi.values[k]);
                *Phi{shared.phi[0]}.at(row, lane + k * kWarp) = high;
                *Phi{shared.phi[1]}.at(row, lane + k * kWarp) =
                    from_float<__nv_bfloat16>(phi.values[k] - to_float(high));
            }
        }
        __syncthreads();
    }
    __device__ __forceinline__ void load_block(int64_t ring, int slot, int column, bool keys) {
        if (keys) copy_tile_async<kStepWindow, kThreads>(Rows{shared.keys}, a.ring_k + ring, D, slot, kStepSlots);
        copy_tile_async<kStepWindow, kThreads>(Part{shared.values}, a.ring_v + ring + column, D, slot, kStepSlots);
        copy_async_commit();
    }
    // 64 columns of S of one state, a warp 16 rows; unless its phi is there already, and perhaps even its map.
    __device__ __forceinline__ void fold(int b, int hs, int column, bool has_map, bool has_phi) {
        const int hk = hs / (a.states / a.kv_heads), position = static_cast<int>(a.positions[b]);
        const int lane = threadIdx.x % kWarp, row = static_cast<int>(threadIdx.x) / kWarp * 16;
        const int64_t state = int64_t{b} * a.states + hs, ring = (int64_t{b} * a.kv_heads + hk) * kStepSlots * D;
        U* s = a.s + (state * kStepFeatures + row + lane / 4) * D + column + lane % 4 * 2;
        load_block(ring, position % kStepSlots, column, !has_phi);  // the slots that the next block will take
        Accumulator sum[kColumns / 8];
#pragma unroll
        for (int n = 0; n < kColumns / 8; ++n) load_pairs(sum[n], s + n * 8);
        if (!has_map) load_map(hs);
        copy_async_wait<0>();
        __syncthreads();
        if (!has_phi) map_keys(), map_rows();
#pragma unroll 1
        for (int k = 0; k < kStepWindow; k += 16) {
            const FragmentA high = load_a_transposed(Phi{shared.phi[0]}, row, k),
                            low = load_a_transposed(Phi{shared.phi[1]}, row, k);
#pragma unroll
            for (int n = 0; n < kColumns / 8; n += 2) {
                const FragmentB v = load_b_transposed(Part{shared.values}, n * 8, k);
                mma(sum[n], high, v, 0), mma(sum[n + 1], high, v, 1);
                mma(sum[n], low, v, 0), mma(sum[n + 1], low, v, 1);
            }
        }
#pragma unroll
        for (int n = 0; n < kColumns / 8; ++n) store_pairs(sum[n], s + n * 8);
        if (column == 0 && threadIdx.x < kStepFeatures) {
            float total = 0;
#pragma unroll 4
            for (int j = 0; j < kStepWindow; ++j)
                total +=
                    to_float(*Phi{shared.phi[0]}.at(j, threadIdx.x)) + to_float(*Phi{shared.phi[1]}.at(j, threadIdx.x));
            U& z = a.z[state * kStepFeatures + threadIdx.x];
            z = from_float<U>(to_float(z) + total);
        }
        __syncthreads();
    }
    // Two rows, eight apart, of two columns.
    __device__ __forceinline__ static void load_pairs(Accumulator& c, const U* s) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            float2 pair;
            if constexpr (sizeof(U) == 4)
                pair = *reinterpret_cast<const float2*>(s + half * 8 * D);
            else
                pair = unpack_bf16(*reinterpret_cast<const uint32_t*>(s + half * 8 * D));
            c.c[2 * half] = pair.x, c.c[2 * half + 1] = pair.y;
        }
    }
    __device__ __forceinline__ static void store_pairs(const Accumulator& c, U* s) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            if constexpr (sizeof(U) == 4)
                *reinterpret_cast<float2*>(s + half * 8 * D) = {c.c[2 * half], c.c[2 * half + 1]};
            else
                *reinterpret_cast<uint32_t*>(s + half * 8 * D) = pack_bf16(c.c[2 * half], c.c[2 * half + 1]);
        }
    }
    // Items lie part by part of a sequence, sequence by sequence of a state: a stretch of them has few maps and features.
    __device__ __forceinline__ void run(int batch) {
        const int folding = find(batch);
        if (folding == 0) return;
        const int items = folding * a.states * kParts, block = static_cast<int>(blockIdx.x);
        const int each = items / static_cast<int>(gridDim.x), more = items % static_cast<int>(gridDim.x);
        const int first = block * each + min(block, more), last = first + each + (block < more ? 1 : 0);
        int mapped = -1, map = -1;
#pragma unroll 1
        for (int item = first; item < last; ++item) {
            const int state = item / kParts, hs = state / folding, b = shared.folding[state % folding];
            fold(b, hs, item % kParts * kColumns, hs == map, state == mapped);
            map = hs, mapped = state;
        }
    }
};

template <class U, int D>
__global__ void __launch_bounds__(Fold<U, D>::kThreads, 2)
    fold_blocks_kernel(const __grid_constant__ Args<__nv_bfloat16, U> a, int batch) {
    // In this order: what starts early may then rely on all that came before this kernel.
    wait_for_predecessor();
    start_successor();
    extern __shared__ __align__(128) unsigned char memory[];
    Fold<U, D>{a, *reinterpret_cast<typename Fold<U, D>::Shared*>(memory)}.run(batch);
}

template <class U, int D>
void run(const HybridDecode& decode, bool early, Stream stream) {
    using F = Fold<U, D>;
    const Args<__nv_bfloat16, U> a = args_of<__nv_bfloat16, U>(decode);
    const int64_t batch = decode.q.size(0), at_once = 2 * multiprocessors_of(stream.device);
    launch(early, fold_blocks_kernel<U, D>, std::min(batch * a.states * F::kParts, at_once), F::kThreads,
           sizeof(typename F::Shared), cuda::handle_of(stream), a, static_cast<int>(batch));
}

}  // namespace

bool hybrid_decode_fold_blocks(const HybridDecode& a, bool early, Stream stream) {
    if (!is_model_step(a) || a.q.size(0) > kMostBatch) return false;
    dispatch_bool(a.q.size(3) == 128, [&](auto wide) {
        constexpr int kD = wide() ? 128 : 64;
        a.s.dtype == DType::bf16 ? run<__nv_bfloat16, kD>(a, early, stream) : run<float, kD>(a, early, stream);
    });
    return true;
}

}  // namespace lc::kernels
