// The block of hybrid_decode_sm90.cu: its shared memory, the thread that copies, the warps that compute.
#pragma once
#include "kernels/common/cuda/tma.cuh"
#include "kernels/hybrid_decode/hybrid_decode_args.cuh"

namespace lc::kernels::decode_stream {

inline constexpr int kWarps = 8, kThreads = kWarps * kWarp,
                     kBlock = kThreads + kWarp;   // eight warps compute, one copies
inline constexpr int kItems = 16, kTogether = 4;  // whose queries a block maps at a time; whose products share a weight
inline constexpr int kSlotBytes = 16 * 1024, kSlots = 10;

// Shared memory of a block.
template <int D, int Heads>
struct alignas(128) Shared {
    unsigned char slots[kSlots][kSlotBytes];
    uint64_t full[kSlots], empty[kSlots];  // Barrier, which only device code for sm_90 has
    __nv_bfloat16 q[kItems][Heads][D];
    union {
        float u[kThreads / (Heads * kStepMap / 4)][kTogether][Heads][kStepMap];  // parts of the maps' products
        float n[kWarps][Heads][D];                                               // parts of the numerators
    };
    float phi[kItems][Heads][kStepFeatures], far[kItems][Heads];  // far: phi z
    float weights[kStepSlots][Heads];
    float gamma[Heads], inverse[Heads];
    int positions[kItems];
};

static_assert(sizeof(Shared<128, 4>) <= 227 * 1024);

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

// Slots that the copier fills and all warps read, in turn.
struct Turn {
    int slot = 0, phase = 0;
    __device__ __forceinline__ void next() {
        if (++slot == kSlots) slot = 0, phase ^= 1;
    }
};

template <class U, int D, int Heads>
struct Attend {
    using A = Args<__nv_bfloat16, U>;
    using S = Shared<D, Heads>;
    static constexpr int kStateRows = kSlotBytes / (D * static_cast<int>(sizeof(U))), kColumns = D / kWarp;
    static_assert(kStateRows <= kStepFeatures);

    const A& a;
    S& shared;
    int batch;
    Turn turn = {};

    __device__ __forceinline__ int kv_head(int head) const { return head / (a.heads / a.kv_heads); }
    __device__ __forceinline__ static int begin_of(int position) {
        return max(position / kStepWindow - 1, 0) * kStepWindow;
    }

    __device__ __forceinline__ Barrier& barrier(uint64_t (&of)[kSlots]) const {
        return reinterpret_cast<Barrier&>(of[turn.slot]);
    }

    // --- the copier: one thread ---

    __device__ __forceinline__ void acquire(int bytes) {
        barrier(shared.empty).wait(turn.phase ^ 1);
        barrier(shared.full).expect(bytes);
    }
    __device__ __forceinline__ void copy(int to, const void* from, int bytes) {
        if (bytes > 0) copy_bulk(shared.slots[turn.slot] + to, from, bytes, barrier(shared.full));
    }
    // A block of the window a slot; the last row is the step's own, which is not in the ring yet.
    __device__ __forceinline__ void copy_window(const __nv_bfloat16* ring, const __nv_bfloat16* own, int begin,
                                                int position) {
#pragma unroll 1
        for (int first = begin; first <= position; first += kStepWindow, turn.next()) {
            const bool last = position < first + kStepWindow;
            const int bytes = (last ? position - first : kStepWindow) * D * 2;
            acquire(bytes + (last ? D * 2 : 0));
            copy(0, ring + first % kStepSlots * D, bytes);
            if (last) copy(bytes, own, D * 2);
        }
    }
    __device__ void copy_items(int first, int last) {
        int position = static_cast<int>(a.positions[first % batch]);
#pragma unroll 1
        for (int item = first; item < last; ++item) {
            const int now = position, b = item % batch, head = item / batch * Heads, hk = kv_head(head);
            if (item + 1 < last) position = static_cast<int>(a.positions[(item + 1) % batch]);
            if (now < 0) continue;
            const int64_t ring = (int64_t{b} * a.kv_heads + hk) * kStepSlots * D;
            copy_window(a.ring_k + ring, a.k + b * a.k_b + hk * a.k_h, begin_of(now), now);
            const U* s = a.s + (int64_t{b} * a.states + head) * kStepFeatures * D;
#pragma unroll 1
            for (int row = 0; row < Heads * kStepFeatures; row += kStateRows, turn.next())
                acquire(kSlotBytes), copy(0, s + row * D, kSlotBytes);
            copy_window(a.ring_v + ring, a.v + b * a.v_b + hk * a.v_h, begin_of(now), now);
        }
    }

    // --- phi(q) of up to kItems sequences ---

    struct Group {  // of items
        int b0, head, count;
    };
    __device__ __forceinline__ Group group_at(int item, int last) const {
        const int b0 = item % batch;
        return {b0, item / batch * Heads, min(min(kItems, last - item), batch - b0)};
    }
    static constexpr int kQuads = kStepMap / 4, kUnits = Heads * kQuads, kParts = kThreads / kUnits, kRows = D / kParts;
    // Thread (part, head, four columns) has its rows of W in registers, from the start of a group to the end of its maps: requests that
    // come behind the stream of states wait for all of it.
    __device__ __forceinline__ void load_map(int head, float4 (&w)[kRows]) const {
        const int part = static_cast<int>(threadIdx.x) / kUnits, h = static_cast<int>(threadIdx.x) / kQuads % Heads,
                  column = static_cast<int>(threadIdx.x) % kQuads * 4;
        const int64_t first = (int64_t{head + h} * D + part * kRows) * kStepMap + column;
        const auto load = [&](const auto* from) {
#pragma unroll
            for (int r = 0; r < kRows; ++r) w[r] = load_four(from + r * kStepMap);
        };
        if (a.wq.narrow)
            load(static_cast<const __nv_bfloat16*>(a.wq.data) + first);
        else
            load(static_cast<const float*>(a.wq.data) + first);
    }
    __device__ __forceinline__ void load_queries(const Group& g) {
#pragma unroll 1
        for (unsigned i = threadIdx.x * 8; i < g.count * Heads * D; i += kThreads * 8)
            copy_async(&shared.q[0][0][0] + i,
                       a.q + (g.b0 + i / (Heads * D)) * a.q_b + (g.head + i / D % Heads) * a.q_h + i % D);
        copy_async_commit();
        if (threadIdx.x < g.count) shared.positions[threadIdx.x] = static_cast<int>(a.positions[g.b0 + threadIdx.x]);
        if (threadIdx.x < Heads) shared.gamma[threadIdx.x] = 1 / (1 + expf(-a.mix_logit[g.head + threadIdx.x]));
        copy_async_wait<0>();
    }
    // u over a part of D, of kTogether items.
    __device__ __forceinline__ void map_parts(int first, const float4 (&w)[kRows]) {
        constexpr int kPack = std::min(kRows, 8);
        struct alignas(kPack * 2) Numbers {
            __nv_bfloat16 values[kPack];
        };
        const int part = static_cast<int>(threadIdx.x) / kUnits, h = static_cast<int>(threadIdx.x) / kQuads % Heads,
                  column = static_cast<int>(threadIdx.x) % kQuads * 4;
#pragma unroll 1
        for (int i = 0; i < kTogether; ++i) {
            float4 sum = {};
#pragma unroll
            for (int r0 = 0; r0 < kRows; r0 += kPack) {
                const auto q = *reinterpret_cast<const Numbers*>(&shared.q[first + i][h][part * kRows + r0]);
#pragma unroll
                for (int e = 0; e < kPack; ++e) {
                    const float x = to_float(q.values[e]);
                    const float4 by = w[r0 + e];
                    sum.x = fmaf(x, by.x, sum.x), sum.y = fmaf(x, by.y, sum.y);
                    sum.z = fmaf(x, by.z, sum.z), sum.w = fmaf(x, by.w, sum.w);
                }
            }
            *reinterpret_cast<float4*>(&shared.u[part][i][h][column]) = sum;
        }
    }
    // A warp a row: phi and its product with z, of `count` items.
    __device__ __forceinline__ void map_rows(const Group& g, int first, int count) {
        constexpr int kMine = (kTogether * Heads + kWarps - 1) / kWarps;
        const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
        float of_z[kMine][4];
#pragma unroll
        for (int i = 0; i < kMine; ++i) {
            const int row = min(warp + i * kWarps, count * Heads - 1);
            const U* z = a.z + (int64_t{g.b0 + first + row / Heads} * a.states + g.head + row % Heads) * kStepFeatures;
#pragma unroll
            for (int k = 0; k < 4; ++k) of_z[i][k] = to_float(z[k * kWarp + lane]);
        }
#pragma unroll
        for (int i = 0; i < kMine; ++i) {
            const int row = warp + i * kWarps, item = row / Heads, h = row % Heads;
            if (row >= count * Heads) break;
            float u[2] = {}, far = 0;
#pragma unroll 4
            for (int p = 0; p < kParts; ++p)
                u[0] += shared.u[p][item][h][lane], u[1] += shared.u[p][item][h][lane + kWarp];
            const StepFeatures phi(u[0], u[1]);
#pragma unroll
            for (int k = 0; k < 4; ++k) {
                shared.phi[first + item][h][lane + k * kWarp] = phi.values[k];
                far = fmaf(phi.values[k], of_z[i][k], far);
            }
            far = warp_sum(far);
            if (lane == 0) shared.far[first + item][h] = far;
        }
    }
    __device__ __forceinline__ void append(const Group& g) {
#pragma unroll 1
        for (unsigned i = threadIdx.x * 8; i < g.count * 2 * D; i += kThreads * 8) {
            const int b = g.b0 + i / (2 * D), position = shared.positions[i / (2 * D)], hk = kv_head(g.head);
            if (position < 0) continue;
            const bool key = i / D % 2 == 0;
            const auto* from = key ? a.k + b * a.k_b + hk * a.k_h : a.v + b * a.v_b + hk * a.v_h;
            const int64_t to = ((int64_t{b} * a.kv_heads + hk) * kStepSlots + position % kStepSlots) * D;
            store_pack((key ? a.ring_k : a.ring_v) + to + i % D, load_pack(from + i % D));
        }
    }

    // --- one item ---

    __device__ __forceinline__ const void* arrived() {
        barrier(shared.full).wait(turn.phase);
        return shared.slots[turn.slot];
    }
    // This warp has read the slot.
    __device__ __forceinline__ void release() {
        __syncwarp();
        if (threadIdx.x % kWarp == 0) barrier(shared.empty).arrive();
        turn.next();
    }
    // Sums over eight lanes: those of head h end up in the lanes whose upper bits spell h.
    template <int N>
    __device__ __forceinline__ static float sum_heads(const float (&values)[N], int step) {
        if constexpr (N == 1) {
            float sum = values[0];
            for (; step > 0; step /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, step);
            return sum;
        } else {
            float half[N / 2];
            const bool upper = threadIdx.x & step;
#pragma unroll
            for (int i = 0; i < N / 2; ++i) {
                const float sent = upper ? values[i] : values[i + N / 2], kept = upper ? values[i + N / 2] : values[i];
                half[i] = kept + __shfl_xor_sync(0xffffffffu, sent, step);
            }
            return sum_heads(half, step / 2);
        }
    }
    // Eight lanes a key, four keys a warp.
    __device__ __forceinline__ void score_keys(int item, int window) {
        constexpr int kSame = 8 / Heads;  // lanes with the same sum
        const int part = threadIdx.x % 8, mine = static_cast<int>(threadIdx.x) / 8;
        float q[Heads][D / 8];
#pragma unroll
        for (int h = 0; h < Heads; ++h)
#pragma unroll
            for (int j = 0; j < D / 64; ++j) {
                const auto pack = load_pack(&shared.q[item][h][j * 64 + part * 8]);
#pragma unroll
                for (int e = 0; e < 8; ++e) q[h][j * 8 + e] = pack.get(e);
            }
#pragma unroll 1
        for (int first = 0; first < window; first += kStepWindow) {
            const auto* keys = static_cast<const __nv_bfloat16*>(arrived());
#pragma unroll
            for (int row = mine; row < kStepWindow; row += kThreads / 8) {
                float dot[Heads] = {};
#pragma unroll
                for (int j = 0; j < D / 64; ++j) {
                    const auto pack = load_pack(keys + row * D + j * 64 + part * 8);
#pragma unroll
                    for (int e = 0; e < 8; ++e)
#pragma unroll
                        for (int h = 0; h < Heads; ++h) dot[h] = fmaf(q[h][j * 8 + e], pack.get(e), dot[h]);
                }
                const float sum = sum_heads(dot, 4);  // of what an earlier slot held, behind the window's end
                if (part % kSame == 0) shared.weights[first + row][part / kSame] = sum * rsqrtf(static_cast<float>(D));
            }
            release();
        }
    }
    // This warp's rows of S, times phi: of every 32 rows the same ones, so that a state's dtype does not change the order of a sum.
    __device__ __forceinline__ void add_states(int item) {
        constexpr int kRows = 32, kMine = kRows / kWarps;
        struct alignas(std::min(kMine, 4) * sizeof(float)) Weights {
            float values[kMine];
        };
        const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
#pragma unroll 1
        for (int h = 0; h < Heads; ++h) {
            float n[kColumns] = {};
#pragma unroll 1
            for (int first = 0; first < kStepFeatures; first += kStateRows) {
                const U* rows = static_cast<const U*>(arrived());
#pragma unroll
                for (int row = 0; row < kStateRows; row += kRows) {
                    const auto phi =
                        *reinterpret_cast<const Weights*>(&shared.phi[item][h][first + row + warp * kMine]);
#pragma unroll
                    for (int m = 0; m < kMine; ++m) {
                        const auto run = load_run_of<D>(rows + (row + warp * kMine + m) * D);
#pragma unroll
                        for (int c = 0; c < kColumns; ++c) n[c] = fmaf(phi.values[m], run.get(c), n[c]);
                    }
                }
                release();
            }
#pragma unroll
            for (int c = 0; c < kColumns; ++c) shared.n[warp][h][lane * kColumns + c] = n[c];
        }
    }
    // A warp a head: weights gamma exp(score - highest), zero behind the window's end, and the reciprocal of all that is added up.
    __device__ __forceinline__ void normalize(int item, int window) {
        const int h = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
        if (h >= Heads) return;
        float score[kStepSlots / kWarp], high = -INFINITY, total = 0;
#pragma unroll
        for (int k = 0; k < kStepSlots / kWarp; ++k) {
            const int j = lane + k * kWarp;
            score[k] = j < window ? shared.weights[j][h] : -INFINITY;
            high = fmaxf(high, score[k]);
        }
        high = warp_max(high);
#pragma unroll
        for (int k = 0; k < kStepSlots / kWarp; ++k) {
            const float weight = shared.gamma[h] * expf(score[k] - high);
            shared.weights[lane + k * kWarp][h] = weight;
            total += weight;
        }
        total = warp_sum(total);
        if (lane == 0) shared.inverse[h] = 1 / (total + shared.far[item][h]);
    }
    __device__ __forceinline__ void add_values(int window) {
        const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
        float n[Heads][kColumns] = {};
#pragma unroll 1
        for (int first = 0; first < window; first += kStepWindow) {
            const auto* values = static_cast<const __nv_bfloat16*>(arrived());
            const int count = min(window - first, kStepWindow);
#pragma unroll 4
            for (int row = warp; row < count; row += kWarps) {
                const auto run = load_run_of<D>(values + row * D);
#pragma unroll
                for (int h = 0; h < Heads; ++h)
#pragma unroll
                    for (int c = 0; c < kColumns; ++c)
                        n[h][c] = fmaf(shared.weights[first + row][h], run.get(c), n[h][c]);
            }
            release();
        }
#pragma unroll
        for (int h = 0; h < Heads; ++h)
#pragma unroll
            for (int c = 0; c < kColumns; ++c) shared.n[warp][h][lane * kColumns + c] += n[h][c];
    }
    __device__ __forceinline__ void store(int b, int head) {
#pragma unroll 1
        for (unsigned i = threadIdx.x * 2; i < Heads * D; i += kThreads * 2) {
            float2 sum = {};
#pragma unroll
            for (int w = 0; w < kWarps; ++w) {
                const float2 part = *reinterpret_cast<const float2*>(&shared.n[w][i / D][i % D]);
                sum.x += part.x, sum.y += part.y;
            }
            const float by = shared.inverse[i / D];
            *reinterpret_cast<uint32_t*>(a.y + b * a.y_b + (head + i / D) * a.y_h + i % D) =
                pack_bf16(sum.x * by, sum.y * by);
        }
    }
    __device__ __forceinline__ void attend(int item, int b, int head) {
        const int position = shared.positions[item], window = position + 1 - begin_of(position);
        if (position < 0) {
#pragma unroll 1
            for (unsigned i = threadIdx.x; i < Heads * D; i += kThreads)
                a.y[b * a.y_b + (head + i / D) * a.y_h + i % D] = __nv_bfloat16{};
            return;
        }
        score_keys(item, window);
        named_sync<kThreads>(1);  // scores are here, and the item before has left n
        normalize(item, window);
        add_states(item);
        named_sync<kThreads>(1);
        add_values(window);
        named_sync<kThreads>(1);
        store(b, head);
    }
    __device__ __forceinline__ void compute(int first, int last) {
        Group g;
#pragma unroll 1
        for (int item = first; item < last; item += g.count) {
            g = group_at(item, last);
            {
                float4 w[kRows];
                load_map(g.head, w);
                load_queries(g);
                named_sync<kThreads>(1);
                if (item == first) wait_for_predecessor();
#pragma unroll 1
                for (int i = 0; i < g.count; i += kTogether) {
                    map_parts(i, w);
                    named_sync<kThreads>(1);
                    map_rows(g, i, min(kTogether, g.count - i));
                    named_sync<kThreads>(1);
                }
            }
            if (g.head % (a.heads / a.kv_heads) == 0) append(g);
#pragma unroll 1
            for (int i = 0; i < g.count; ++i) attend(i, g.b0 + i, g.head);
            named_sync<kThreads>(1);
        }
    }
};

#endif

}  // namespace lc::kernels::decode_stream
