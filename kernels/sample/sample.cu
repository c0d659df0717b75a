// The next token of every sequence, on the GPU.
//
// MATHS    sample.h, sample_rules.h: the CPU's token, bit for bit.
// TILING   a block per sequence. Its threads walk over the vocabulary in tiles of 8192 ids, eight a thread, and make a score anew
//          from logit, bias and penalties in each pass; nothing but the token is written.
//            best       a pass: the largest score and the lowest id that has it, NaN and infinite logits. Greedy ends here
//            cut        top-k and top-p keep a prefix of the ids in order of rank (score, then id): where does it end? A pass makes a
//                       histogram of their measure (the number of ids for top-k, weight for top-p) over 2048 steps of 1/64 below the
//                       best. Another one lists the scores of the step in which the prefix ends, a few hundred, in shared memory;
//                       over 11, 11 and 10 bits of their ranks go three more histograms (were they too many, three more passes).
//                       Where ties of the last score are cut, find_id gives the last one that stays
//            draw       a pass: the weight kept of each tile; then only the tile that holds the token, run by run
// COST     2 V bytes a pass (bf16) out of the L2 cache: 2 passes to draw, 2 more for each of top-k and top-p. A block is bound by
//          instructions, 10 (rank) to 35 (weight) an id and pass, and by one to two atomics an id in the histograms: at V = 128256
//          on an H200, 64 sequences (256): 24 us (54) greedy, 103 (196) drawn, 228 (460) with top-p, 277 (556) with both.
// NUMERICS weights are integers (sample_rules.h), so that atomics and any order of sums give the same bits.
// LADDER   1 this. Predicted from instructions alone: 10, 30, 80 and 120 us, a third of what it takes; what it waits for is not yet known.
// SOURCE   own; radix selection as in Alabi et al., "Fast k-selection algorithms for graphics processing units", JEA 2012.
#include "kernels/common/cuda/launch.h"
#include "kernels/common/cuda/reduce.cuh"
#include "kernels/common/cuda/run.cuh"
#include "kernels/sample/sample_rules.h"

namespace lc::kernels {
namespace {

constexpr int kThreads = 1024, kWarps = kThreads / kWarp;
constexpr int kTile = kThreads * kRun, kMostTiles = static_cast<int>(ceil_div(kMostSampleIds, kTile));
constexpr int kBins = 2048;
constexpr float kSteps = 64;       // bins of one unit of score, in a histogram's first pass
constexpr int kMostListed = 4096;  // scores of one step that shared memory takes
static_assert(kMostTiles <= kThreads && kBins % kThreads == 0);

template <class T>
struct Args {
    const T* logits;
    const float* bias;
    int32_t* seen;
    const SampleSettings* settings;
    const int64_t* positions;
    int32_t* ids;
    SampleResult* results;
    int64_t logits_row, bias_row, seen_row, positions_row, ids_row;  // strides
    int v;
    bool packed;  // every row of logits starts on a 16-byte boundary
};

// A sequence's logits and what changes them.
template <class T>
struct Row {
    const T* logits;
    const float* bias;
    const int32_t* seen;
    const SampleSettings& settings;
    int v;
    bool packed;

    __device__ Row(const Args<T>& a, int64_t b)
        : logits(a.logits + b * a.logits_row),
          bias(a.bias && a.settings[b].uses_bias ? a.bias + b * a.bias_row : nullptr),
          seen(a.seen && a.settings[b].uses_seen ? a.seen + b * a.seen_row : nullptr),
          settings(a.settings[b]),
          v(a.v),
          packed(a.packed) {}

    __device__ __forceinline__ float score(int id, float logit) const {
        return sample_score(logit, bias ? bias[id] : 0.0f, seen ? seen[id] : 0, settings);
    }
    // f(id, logit, score) for this thread's ids of one tile.
    template <class F>
    __device__ __forceinline__ void run(int tile, F&& f) const {
        const int first = tile * kTile + static_cast<int>(threadIdx.x) * kRun;
        float values[kRun];
        if (packed && first + kRun <= v) {
            const auto bits = RunBits<T>::load(logits + first);
#pragma unroll
            for (int j = 0; j < kRun; ++j) values[j] = bits.get(j);
        } else {
#pragma unroll
            for (int j = 0; j < kRun; ++j) values[j] = first + j < v ? to_float(logits[first + j]) : 0.0f;
        }
#pragma unroll
        for (int j = 0; j < kRun; ++j)
            if (first + j < v) f(first + j, values[j], score(first + j, values[j]));
    }
    // f for all of this thread's ids, and after(tile) behind those of a tile. Loads of several tiles are under way together.
    template <class F, class After>
    __device__ __forceinline__ void walk(F&& f, After&& after) const {
        constexpr int kAhead = 4 / static_cast<int>(sizeof(T));
        int tile = 0;
        for (; packed && (tile + kAhead) * kTile <= v; tile += kAhead) {
            const int first = tile * kTile + static_cast<int>(threadIdx.x) * kRun;
            RunBits<T> bits[kAhead];
#pragma unroll
            for (int i = 0; i < kAhead; ++i) bits[i] = RunBits<T>::load(logits + first + i * kTile);
#pragma unroll
            for (int i = 0; i < kAhead; ++i) {
#pragma unroll
                for (int j = 0; j < kRun; ++j) {
                    const int id = first + i * kTile + j;
                    f(id, bits[i].get(j), score(id, bits[i].get(j)));
                }
                after(tile + i);
            }
        }
        for (; tile * kTile < v; ++tile) run(tile, f), after(tile);
    }
    template <class F>
    __device__ __forceinline__ void walk(F&& f) const {
        walk(f, [](int) {});
    }
};

using Atomic = unsigned long long;  // what atomicAdd takes

struct Shared {
    uint32_t low[kBins], high[kBins];  // a histogram: sums of 64 bits in halves, whose atomics are native
    Atomic tiles[kMostTiles];
    uint64_t warps[kWarps];
    uint64_t found[2];
    float listed[kMostListed];
    uint32_t count;
};

struct Sum {
    __device__ uint64_t operator()(uint64_t a, uint64_t b) const { return a + b; }
};
struct Max {
    __device__ uint64_t operator()(uint64_t a, uint64_t b) const { return a > b ? a : b; }
};

template <class F>
__device__ uint64_t warp_all(uint64_t value, F f) {
#pragma unroll
    for (int step = kWarp / 2; step > 0; step /= 2) value = f(value, __shfl_xor_sync(0xffffffffu, value, step));
    return value;
}
// Every thread gets the result over the block. Begins and ends with a barrier, or so that none is needed.
template <class F>
__device__ uint64_t block_all(Shared& shared, uint64_t value, F f) {
    value = warp_all(value, f);
    if (threadIdx.x % kWarp == 0) shared.warps[threadIdx.x / kWarp] = value;
    __syncthreads();
    value = warp_all(shared.warps[threadIdx.x % kWarp], f);
    __syncthreads();
    return value;
}

// The sum over the threads before this one; `total` over all.
__device__ uint64_t block_before(Shared& shared, uint64_t value, uint64_t& total) {
    const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
    const auto scan = [&](uint64_t x) {  // up to and with this lane
#pragma unroll
        for (int step = 1; step < kWarp; step *= 2) {
            const uint64_t other = __shfl_sync(0xffffffffu, x, lane - step >= 0 ? lane - step : 0);
            if (lane >= step) x += other;
        }
        return x;
    };
    const uint64_t within = scan(value);
    if (lane == kWarp - 1) shared.warps[warp] = within;
    __syncthreads();
    const uint64_t warps = scan(shared.warps[lane]);
    total = __shfl_sync(0xffffffffu, warps, kWarp - 1);
    const uint64_t before = __shfl_sync(0xffffffffu, warps, warp > 0 ? warp - 1 : 0);
    __syncthreads();
    return within - value + (warp > 0 ? before : 0);
}

__device__ __forceinline__ void add(Shared& shared, int bin, uint64_t measure) {
    const auto low = static_cast<uint32_t>(measure);
    auto high = static_cast<uint32_t>(measure >> 32);
    if (low != 0 && atomicAdd(&shared.low[bin], low) + low < low) ++high;  // it wrapped
    if (high != 0) atomicAdd(&shared.high[bin], high);
}
__device__ void clear(Shared& shared) {
    for (int i = threadIdx.x; i < kBins; i += kThreads) shared.low[i] = shared.high[i] = 0;
    __syncthreads();
}

// The first bin with which the sum from bin 0 on reaches `wanted`, which is at least 1 and at most the sum of all; the sum before it
// comes off `wanted`.
__device__ int find_bin(Shared& shared, uint64_t& wanted) {
    constexpr int kMine = kBins / kThreads;
    __syncthreads();
    uint64_t mine[kMine], sum = 0, total;
#pragma unroll
    for (int i = 0; i < kMine; ++i) {
        const int bin = threadIdx.x * kMine + i;
        sum += mine[i] = uint64_t{shared.high[bin]} << 32 | shared.low[bin];
    }
    uint64_t before = block_before(shared, sum, total);
#pragma unroll
    for (int i = 0; i < kMine; ++i) {
        if (before < wanted && wanted <= before + mine[i])
            shared.found[0] = threadIdx.x * kMine + i, shared.found[1] = before;
        before += mine[i];
    }
    __syncthreads();
    const int bin = static_cast<int>(shared.found[0]);
    wanted -= shared.found[1];
    __syncthreads();
    return bin;
}

// The first id, in their order, at which the sum of measure(id, score) over ids exceeds target_of(sum of all), which must be less.
template <class T, class Measure, class Target>
__device__ int find_id(const Row<T>& row, Shared& shared, Measure&& measure, Target&& target_of) {
    const int tiles = static_cast<int>(ceil_div(row.v, kTile));
    for (int i = threadIdx.x; i < tiles; i += kThreads) shared.tiles[i] = 0;
    __syncthreads();
    uint64_t own = 0;
    row.walk([&](int id, float, float score) { own += measure(id, score); },
             [&](int tile) {
                 const uint64_t sum = warp_all(own, Sum{});
                 if (threadIdx.x % kWarp == 0 && sum != 0) atomicAdd(&shared.tiles[tile], Atomic{sum});
                 own = 0;
             });
    __syncthreads();
    uint64_t total = 0;
    for (int tile = 0; tile < tiles; ++tile) total += shared.tiles[tile];
    uint64_t target = target_of(total);
    int tile = 0;
    while (tile + 1 < tiles && target >= shared.tiles[tile]) target -= shared.tiles[tile++];

    row.run(tile, [&](int id, float, float score) { own += measure(id, score); });
    uint64_t before = block_before(shared, own, total);
    if (before <= target && target < before + own)
        row.run(tile, [&](int id, float, float score) {
            const uint64_t after = before + measure(id, score);
            if (before <= target && target < after) shared.found[0] = id;
            before = after;
        });
    __syncthreads();
    const int id = static_cast<int>(shared.found[0]);
    __syncthreads();
    return id;
}

// A prefix of the ids in order of rank, then id: everything above `rank`, and of that rank the ids up to `last`.
struct Cut {
    uint32_t rank = UINT32_MAX;
    int last = INT32_MAX;
    __device__ bool keeps(int id, float score) const {
        const uint32_t own = sample_rank(score);
        return own < rank || (own == rank && id <= last);
    }
};

// Of the prefix `outer`, the shortest one whose measure reaches wanted_of(measure of all of `outer`), at least 1 and at most that.
// measure depends on the score alone and never grows from rank to rank.
template <class T, class Measure, class Wanted>
__device__ Cut find_cut(const Row<T>& row, Shared& shared, float best, const Cut& outer, Measure&& measure,
                        Wanted&& wanted_of) {
    const auto step_of = [&](float score) { return static_cast<int>(fminf((best - score) * kSteps, kBins - 1.0f)); };
    clear(shared);
    uint64_t total = 0, far = 0;  // far below the best, and there may be nearly all, a thread adds up its own
    row.walk([&](int id, float, float score) {
        const int step = step_of(score);
        const uint64_t own = outer.keeps(id, score) ? measure(score) : 0;
        total += own;
        if (step == kBins - 1)
            far += own;
        else if (own != 0)
            add(shared, step, own);
    });
    total = block_all(shared, total, Sum{}), far = block_all(shared, far, Sum{});
    if (threadIdx.x == 0) add(shared, kBins - 1, far), shared.count = 0;
    uint64_t wanted = wanted_of(total);
    const int step = find_bin(shared, wanted);

    row.walk([&](int, float, float score) {
        if (step_of(score) != step) return;
        const uint32_t place = atomicAdd(&shared.count, 1u);
        if (place < kMostListed) shared.listed[place] = score;
    });
    __syncthreads();
    const uint32_t count = shared.count;
    const auto each = [&](auto&& f) {  // score of the step
        if (count > kMostListed)
            return row.walk([&](int, float, float score) {
                if (step_of(score) == step) f(score);
            });
        for (uint32_t i = threadIdx.x; i < count; i += kThreads) f(shared.listed[i]);
    };
    constexpr int kRankBits = 32;
    uint32_t rank = 0;
    int known = 0;  // leading bits of the rank
    for (const int bits : {11, 11, 10}) {
        clear(shared);
        each([&](float score) {
            const uint32_t own = sample_rank(score);
            if (known > 0 && own >> (kRankBits - known) != rank) return;
            add(shared, static_cast<int>(own >> (kRankBits - known - bits)) & ((1 << bits) - 1), measure(score));
        });
        rank = rank << bits | static_cast<uint32_t>(find_bin(shared, wanted));
        known += bits;
    }
    // Of the ids of this rank those stay with which their measure reaches what is still wanted.
    const auto tie = [&](int, float score) { return sample_rank(score) == rank ? measure(score) : uint64_t{0}; };
    return {rank, find_id(row, shared, tie, [&](uint64_t) { return wanted - 1; })};
}

struct Best {
    float score;
    SampleResult result;
};

template <class T>
__device__ Best find_best(const Row<T>& row, Shared& shared) {
    float score = -INFINITY;
    uint32_t id = 0, wrong = 0;  // wrong: the first id without a usable logit, as 2 (2^20 - id) + (1 for NaN)
    bool finite = false;
    row.walk([&](int i, float logit, float own) {
        const bool nan = logit != logit;
        if ((nan || logit == INFINITY) && wrong == 0)
            wrong = 2 * (static_cast<uint32_t>(kMostSampleIds) - static_cast<uint32_t>(i)) + (nan ? 1 : 0);
        finite = finite || (!nan && logit > -INFINITY && logit < INFINITY);
        if (own > score) score = own, id = static_cast<uint32_t>(i);
    });
    const auto first = static_cast<uint32_t>(block_all(shared, wrong, Max{}));
    const bool any = block_all(shared, finite ? 1 : 0, Max{}) != 0;
    const uint64_t top = block_all(shared, uint64_t{UINT32_MAX - sample_rank(score)} << 32 | (UINT32_MAX - id), Max{});
    const auto rank = UINT32_MAX - static_cast<uint32_t>(top >> 32);
    Best best{};
    best.score = __uint_as_float(rank < 0x80000000u ? 0x7fffffffu - rank : rank);
    if (first != 0) {
        best.result = {static_cast<int32_t>(kMostSampleIds) - static_cast<int32_t>(first / 2),
                       first % 2 ? SampleStatus::nan_logit : SampleStatus::infinite_logit};
    } else if (!any) {
        best.result = {0, SampleStatus::no_logit};
    } else if (!(best.score > -INFINITY && best.score < INFINITY)) {
        best.result = {0, SampleStatus::nothing_left};
    } else {
        best.result = {static_cast<int32_t>(UINT32_MAX - static_cast<uint32_t>(top)), SampleStatus::drawn};
    }
    return best;
}

template <class T>
__device__ int draw(const Row<T>& row, Shared& shared, float best, int64_t position) {
    const SampleSettings& s = row.settings;
    const float sharpness = s.sharpness;
    const auto weight = [&](float score) { return sample_weight(score, best, sharpness); };
    Cut cut;
    if (s.top_k > 0 && s.top_k < row.v)
        cut = find_cut(
            row, shared, best, cut, [](float) { return uint64_t{1}; }, [&](uint64_t) { return uint64_t(s.top_k); });
    if (s.top_p < 1)
        cut = find_cut(row, shared, best, cut, weight, [&](uint64_t total) { return sample_enough(s.top_p, total); });
    const auto kept = [&](int id, float score) -> uint64_t {
        const uint64_t own = cut.keeps(id, score) ? weight(score) : 0;
        return own >= s.min_weight ? own : 0;
    };
    return find_id(row, shared, kept, [&](uint64_t total) { return sample_target(s.random, position, total); });
}

template <class T>
__global__ void __launch_bounds__(kThreads) sample_kernel(const __grid_constant__ Args<T> a) {
    __shared__ Shared shared[1];
    const int64_t b = blockIdx.x, position = a.positions[b * a.positions_row];
    if (position < 0) {
        if (threadIdx.x == 0) a.results[b] = {};
        return;
    }
    const Row<T> row(a, b);
    const Best best = find_best(row, shared[0]);
    SampleResult result = best.result;
    const bool drawn = result.status == SampleStatus::drawn;
    if (drawn && !row.settings.greedy) result.id = draw(row, shared[0], best.score, position + 1);
    if (threadIdx.x != 0) return;
    a.results[b] = result;
    a.ids[b * a.ids_row] = drawn ? result.id : 0;
    if (drawn && row.seen) ++a.seen[b * a.seen_row + result.id];
}

}  // namespace

void sample_cuda(const Sample& args, Stream stream) {
    if (args.logits.size(0) == 0) return;
    dispatch_cuda(args.logits.dtype, "sample", [&](auto type) {
        using T = typename decltype(type)::type;
        const cudaStream_t queue = cuda::handle_of(stream);
        Args<T> a{.logits = device_data<T>(args.logits),
                  .bias = device_data<float>(args.bias),
                  .seen = device_data<int32_t>(args.seen),
                  .settings = reinterpret_cast<const SampleSettings*>(device_data<uint8_t>(args.settings)),
                  .positions = device_data<const int64_t>(args.positions),
                  .ids = device_data<int32_t>(args.ids),
                  .results = reinterpret_cast<SampleResult*>(device_data<int32_t>(args.results)),
                  .logits_row = args.logits.stride(0),
                  .bias_row = args.bias ? args.bias.stride(0) : 0,
                  .seen_row = args.seen ? args.seen.stride(0) : 0,
                  .positions_row = args.positions.stride(0),
                  .ids_row = args.ids.stride(0),
                  .v = static_cast<int>(args.logits.size(1)),
                  .packed = false};
        a.packed = is_pack_aligned(a.logits) && a.logits_row % kRun == 0;
        sample_kernel<T><<<grid_x(args.logits.size(0)), kThreads, 0, queue>>>(a);
        LC_LAUNCHED("sample", queue);
    });
}

}  // namespace lc::kernels
