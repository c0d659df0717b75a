// The next token of every sequence, on the GPU.
//
// MATHS    sample.h, sample_rules.h: the CPU's token, bit for bit.
// TILING   a team per sequence: a block, or, where that leaves multiprocessors idle, a cluster of up to eight (compute capability 9.0).
//          Each walks over its tiles of the vocabulary, 8192 ids, eight a thread, and makes a score anew from logit, bias and
//          penalties in each pass; nothing but the token is written. What blocks of a team tell each other lies in the teller's shared
//          memory; a place is written again only after another meeting of all.
//            best       a pass: the largest score and the lowest id that has it, NaN and infinite logits. Greedy ends here
//            cut        top-k and top-p keep a prefix of the ids in order of rank (score, then id): where does it end? A pass makes a
//                       histogram of their measure (the number of ids for top-k, weight for top-p) over 2048 steps of 1/256 below the
//                       best; where the prefix ends further off, another pass over steps of 1/64. A pass lists the scores of the step
//                       in which it ends, a few; each block compares them all (were they over a thousand: by three more histograms
//                       of 11, 11 and 10 bits of their ranks). Where ties of the last score are cut, find_id gives the last that stays
//            draw       a pass: the weight kept of each tile; then only the tile that holds the token, run by run
// COST     2 V bytes a pass (bf16) out of the L2 cache: 2 passes to draw, 2 more for each of top-k and top-p. A block is bound by
//          instructions, 10 (rank) to 35 (weight) an id and pass, and by one to two atomics an id in the histograms.
// NUMERICS weights are integers (sample_rules.h), so that atomics and any order of sums give the same bits.
// LADDER   V = 128256, one sequence (64), us: greedy, drawn, with top-p, with both
//          1 a block a sequence, three histograms of ranks. Meant for 10, 30, 80, 120; H200 24 (24), 108 (103), 251 (228), 297 (277).
//          2 clusters of eight (two): H100 11 (18), 32 (74), 126 (175), 171 (226).
//          3 listed scores compared directly, no pass for ties where all stay: H100 11 (18), 32, 120, 128.
//          4 a histogram of what is within eight of the best, a thirtieth of the atomics: H100 11, 32, 119, 128. Neither atomics nor the
//            vocabulary's share of a block bind any longer, but code: a pass is 16 ids unrolled, that no instruction cache holds.
//          Beside 4, all passes in loops of two ids: 12 (23), 32 (75), 84 (154), 93 (186), but 256 sequences greedy 81 instead of 59, drawn
//            246 instead of 213: worth it for find_cut alone, which was not tried.
// SOURCE   own; radix selection as in Alabi et al., "Fast k-selection algorithms for graphics processing units", JEA 2012.
#include "kernels/common/cuda/run.cuh"
#include "kernels/sample/sample_rules.h"
#include "kernels/sample/sample_team.cuh"

namespace lc::kernels {
namespace {

using namespace sampling;

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
    int each, first_tile, last_tile;  // tiles of a block of the team; this block's

    __device__ Row(const Args<T>& a, int64_t b, int rank, int blocks)
        : logits(a.logits + b * a.logits_row),
          bias(a.bias && a.settings[b].uses_bias ? a.bias + b * a.bias_row : nullptr),
          seen(a.seen && a.settings[b].uses_seen ? a.seen + b * a.seen_row : nullptr),
          settings(a.settings[b]),
          v(a.v),
          packed(a.packed),
          each(static_cast<int>(ceil_div(tiles(), blocks))),
          first_tile(min(rank * each, tiles())),
          last_tile(min(first_tile + each, tiles())) {}

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
    // f for this thread's ids of tiles [tile, last), and after(tile) behind those of a tile. Loads of several tiles are under way together.
    template <class F, class After>
    __device__ __forceinline__ void walk_tiles(int tile, int last, F&& f, After&& after) const {
        constexpr int kAhead = 4 / static_cast<int>(sizeof(T));
        for (; packed && tile + kAhead <= last && (tile + kAhead) * kTile <= v; tile += kAhead) {
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
        for (; tile < last; ++tile) run(tile, f), after(tile);
    }
    template <class F, class After>
    __device__ __forceinline__ void walk(F&& f, After&& after) const {
        walk_tiles(first_tile, last_tile, f, after);
    }
    template <class F>
    __device__ __forceinline__ void walk(F&& f) const {
        walk(f, [](int) {});
    }
    __device__ __forceinline__ int tiles() const {
        return static_cast<int>(ceil_div(v, kTile));
    }
};

// The first id, in their order, at which the sum of measure(id, score) over ids exceeds target_of(sum of all), which must be less.
template <class T, class Measure, class Target>
__device__ int find_id(const Row<T>& row, const Team& team, Measure&& measure, Target&& target_of) {
    Shared& shared = team.own;
    for (int i = threadIdx.x; i < row.tiles(); i += kThreads) shared.tiles[i] = 0;
    __syncthreads();
    uint64_t own = 0;
    row.walk([&](int id, float, float score) { own += measure(id, score); },
             [&](int tile) {
                 const uint64_t sum = warp_all(own, Sum{});
                 if (threadIdx.x % kWarp == 0 && sum != 0) atomicAdd(&shared.tiles[tile], Atomic{sum});
                 own = 0;
             });
    team.meet();
    // A tile's sum is in the block that has the tile; in the others it is 0.
    uint64_t total = 0;
    for (int i = threadIdx.x; i < row.tiles(); i += kThreads) {
        uint64_t sum = 0;
        for (int block = 0; block < team.blocks; ++block) sum += team.of(block).tiles[i];
        shared.sums[i] = sum;
    }
    __syncthreads();
    for (int tile = 0; tile < row.tiles(); ++tile) total += shared.sums[tile];
    uint64_t target = target_of(total);
    int tile = 0;
    while (tile + 1 < row.tiles() && target >= shared.sums[tile]) target -= shared.sums[tile++];

    const int owner = tile / row.each;
    if (team.rank == owner) {
        row.run(tile, [&](int id, float, float score) { own += measure(id, score); });
        uint64_t before = block_before(shared, own, total);
        if (before <= target && target < before + own)
            row.run(tile, [&](int id, float, float score) {
                const uint64_t after = before + measure(id, score);
                if (before <= target && target < after) shared.id = id;
                before = after;
            });
    }
    team.meet();
    return team.of(owner).id;
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

// Of the ids of this rank those stay with which their measure reaches `wanted`: up to this one.
template <class T, class Measure>
__device__ int last_of_rank(const Row<T>& row, const Team& team, uint32_t rank, Measure&& measure, uint64_t wanted) {
    const auto tie = [&](int, float score) { return sample_rank(score) == rank ? measure(score) : uint64_t{0}; };
    return find_id(row, team, tie, [&](uint64_t) { return wanted - 1; });
}

// Of the prefix `outer`, the shortest one whose measure reaches wanted_of(measure of all of `outer`), at least 1 and at most that.
// measure depends on the score alone and never grows from rank to rank.
template <class T, class Measure, class Wanted>
__device__ Cut find_cut(const Row<T>& row, const Team& team, float best, const Cut& outer, Measure&& measure,
                        Wanted&& wanted_of) {
    Shared& shared = team.own;
    float steps = kFineSteps;
    const auto step_of = [&](float score) { return static_cast<int>(fminf((best - score) * steps, kBins - 1.0f)); };
    uint64_t wanted;
    int step;
    while (true) {
        clear(shared);
        uint64_t total = 0, far = 0;  // far below the best, and there nearly all may be, a thread adds up its own
        row.walk([&](int id, float, float score) {
            const int own_step = step_of(score);
            const uint64_t own = outer.keeps(id, score) ? measure(score) : 0;
            total += own;
            if (own_step == kBins - 1)
                far += own;
            else if (own != 0)
                add(shared, own_step, own);
        });
        total = block_all(shared, total, Sum{}), far = block_all(shared, far, Sum{});
        if (threadIdx.x == 0) add(shared, kBins - 1, far), shared.count = 0, shared.told[3] = total;
        team.meet();
        wanted = wanted_of(team_all(team, 3, Sum{}));
        step = find_bin(team, 0, team.blocks, wanted);
        if (step < kBins - 1 || steps == kCoarseSteps) break;
        steps = kCoarseSteps;
        team.meet();
    }

    row.walk([&](int, float, float score) {
        if (step_of(score) != step) return;
        const uint32_t place = atomicAdd(&shared.count, 1u);
        if (place < kMostListed) shared.listed[place] = score;
    });
    team.meet();
    uint32_t count = 0;
    bool complete = true;
    for (int block = 0; block < team.blocks; ++block) {
        const Shared& other = team.of(block);
        const uint32_t more = other.count;
        complete = complete && more <= kMostListed && count + more <= kMostGathered;
        for (uint32_t i = threadIdx.x; complete && i < more; i += kThreads)
            shared.gathered[count + i] = other.listed[i];
        count += more;
    }
    team.meet();
    if (complete && count <= kThreads) {
        const LastRank last = find_rank(shared, static_cast<int>(count), measure, wanted);
        if (last.all) return {last.rank, INT32_MAX};
        return {last.rank, last_of_rank(row, team, last.rank, measure, wanted)};
    }
    const auto each = [&](auto&& f) {  // score of the step, of the whole vocabulary
        if (!complete)
            return row.walk_tiles(
                0, row.tiles(),
                [&](int, float, float score) {
                    if (step_of(score) == step) f(score);
                },
                [](int) {});
        for (uint32_t i = threadIdx.x; i < count; i += kThreads) f(shared.gathered[i]);
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
        rank = rank << bits | static_cast<uint32_t>(find_bin(team, team.rank, 1, wanted));
        known += bits;
    }
    return {rank, last_of_rank(row, team, rank, measure, wanted)};
}

struct Best {
    float score;
    SampleResult result;
};

template <class T>
__device__ Best find_best(const Row<T>& row, const Team& team) {
    Shared& shared = team.own;
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
    const uint64_t own_wrong = block_all(shared, wrong, Max{}), own_finite = block_all(shared, finite ? 1 : 0, Max{}),
                   own_top =
                       block_all(shared, uint64_t{UINT32_MAX - sample_rank(score)} << 32 | (UINT32_MAX - id), Max{});
    if (threadIdx.x == 0) shared.told[0] = own_wrong, shared.told[1] = own_finite, shared.told[2] = own_top;
    team.meet();
    const auto first = static_cast<uint32_t>(team_all(team, 0, Max{}));
    const bool any = team_all(team, 1, Max{}) != 0;
    const uint64_t top = team_all(team, 2, Max{});
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
__device__ int draw(const Row<T>& row, const Team& team, float best, int64_t position) {
    const SampleSettings& s = row.settings;
    const float sharpness = s.sharpness;
    const auto weight = [&](float score) { return sample_weight(score, best, sharpness); };
    Cut cut;
    if (s.top_k > 0 && s.top_k < row.v)
        cut = find_cut(
            row, team, best, cut, [](float) { return uint64_t{1}; }, [&](uint64_t) { return uint64_t(s.top_k); });
    if (s.top_p < 1)
        cut = find_cut(row, team, best, cut, weight, [&](uint64_t total) { return sample_enough(s.top_p, total); });
    const auto kept = [&](int id, float score) -> uint64_t {
        const uint64_t own = cut.keeps(id, score) ? weight(score) : 0;
        return own >= s.min_weight ? own : 0;
    };
    return find_id(row, team, kept, [&](uint64_t total) { return sample_target(s.random, position, total); });
}

template <class T>
__global__ void __launch_bounds__(kThreads) sample_kernel(const __grid_constant__ Args<T> a) {
    __shared__ Shared shared[1];
    const Team team(shared[0]);
    const int64_t b = static_cast<int>(blockIdx.x) / team.blocks, position = a.positions[b * a.positions_row];
    if (position < 0) {
        if (threadIdx.x == 0 && team.rank == 0) a.results[b] = {};
        return;  // all of the team
    }
    const Row<T> row(a, b, team.rank, team.blocks);
    const Best best = find_best(row, team);
    SampleResult result = best.result;
    const bool drawn = result.status == SampleStatus::drawn;
    if (drawn && !row.settings.greedy) result.id = draw(row, team, best.score, position + 1);
    team.meet();  // nobody leaves while others may look
    if (threadIdx.x != 0 || team.rank != 0) return;
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
        const int64_t batch = args.logits.size(0);
        int blocks = 1;
        while (hopper_applies({}) && blocks < kMostBlocks && 2 * blocks * batch <= multiprocessors()) blocks *= 2;
        if (blocks > 1)
            launch_clusters(sample_kernel<T>, blocks, static_cast<unsigned>(batch), kThreads, 0, queue, a);
        else
            sample_kernel<T><<<grid_x(batch), kThreads, 0, queue>>>(a);
        LC_LAUNCHED("sample", queue);
    });
}

}  // namespace lc::kernels
