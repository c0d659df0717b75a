// The two roles of the large products on Hopper: who fetches, and who multiplies. lora_linear_sm90.cu says what.
#pragma once
#include "kernels/lora_linear/lora_sides_sm90.cuh"

namespace lc::kernels::lora_sm90 {

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

struct Barriers {
    Barrier full[kStages], free[kStages];
    SoloBarriers low, sums;
    ObserverBarriers p;
    __device__ void init() {
        for (int i = 0; i < kStages; ++i) full[i].init(1), free[i].init(kPair * kConsumerWarps);
        low.init(), sums.init();
        p.full.init(1), p.free.init(kConsumerWarps);
        fence_barriers();
    }
};
static_assert(kBytes<Major::K> + static_cast<int>(sizeof(Barriers)) + 1024 <= kSharedLimit &&
                  kBytes<Major::MN> + static_cast<int>(sizeof(Barriers)) + 1024 <= kSharedLimit,
              "tiles, and barriers in static memory");

__device__ __forceinline__ TileA tile_of_p(__nv_bfloat16* shared) {
    return {shared + kStages * (kStageBytes / 2)};
}
__device__ __forceinline__ Observer::Sums& sums_of(__nv_bfloat16* shared) {
    return *reinterpret_cast<Observer::Sums*>(tile_of_p(shared).data + TileA::kBytes / 2);
}

template <Major B>
struct Stage {
    __nv_bfloat16* base;
    __device__ __forceinline__ Stage(__nv_bfloat16* shared, int stage) : base(shared + stage * (kStageBytes / 2)) {}
    __device__ __forceinline__ TileA a() const { return {base}; }
    __device__ __forceinline__ TileB<B> b() const { return {base + TileA::kBytes / 2}; }
};

// --- the producer ---

template <Major B>
struct Producer {
    const Args& args;
    __nv_bfloat16* shared;
    Barriers& barriers;
    Turn<kStages> ring;
    int half;

    // This block's rows of the left operand; half of the right one, for both blocks.
    __device__ __forceinline__ void step(const CUtensorMap& left, int left_k, const CUtensorMap& right, int right_k,
                                         const Tile& tile) {
        barriers.free[ring.stage].wait(ring.phase ^ 1);
        Barrier& full = barriers.full[ring.stage];
        full.expect(kStageBytes);
        const Stage<B> stage(shared, ring.stage);
        constexpr uint16_t kBoth = 3;
        copy_panel(stage.a().data, left, tile.row, left_k, full);
        if constexpr (B == Major::K) {
            constexpr int kHalf = kN / kPair;
            copy_panel(stage.b().data + half * kHalf * kK, right, tile.column + half * kHalf, right_k, full, kBoth);
        } else {
#pragma unroll
            for (int i = 0; i < kN / 64 / kPair; ++i) {
                const int panel = half * (kN / 64 / kPair) + i;
                copy_panel(stage.b().data + panel * TileB<B>::kPanel, right, right_k, tile.column + 64 * panel, full,
                           kBoth);
            }
        }
        ring.next();
    }
    __device__ __forceinline__ void outputs() {
        int p_phase = 1;
        for_each_tile(args, [&](const Tile& tile) {
            const Output& output = args.outputs[tile.output];
            if (args.observes) {
                barriers.p.free.wait(p_phase), p_phase ^= 1;
                barriers.p.full.expect(TileA::kBytes);
                copy_panel(tile_of_p(shared).data, args.p, tile.row, 0, barriers.p.full);
            }
            for (int i = output.first; i < output.first + output.count; ++i)
                for (int k = 0; k < args.factors[i].steps; ++k)
                    step(args.factors[i].left, k * kK, args.factors[i].right, k * kK, tile);
            await_count(args.ready + tile.row_tile, args.low_blocks);
            for (int k = output.low_first; k < output.low_first + output.low_steps; ++k)
                step(args.low_left, k * kK, output.low_right, k * kK, tile);
        });
    }
    // Afterwards nothing is under way in the pair's ring.
    __device__ __forceinline__ void drain() {
        for (int i = 0; i < kStages; ++i) barriers.free[ring.stage].wait(ring.phase ^ 1), ring.next();
    }
    __device__ __forceinline__ void run() {
        outputs();
        with_ranks<kMostLow<B>>(args.low_ranks, [&](auto ranks) {
            SoloProducer<Solo<ranks(), Major::K>> solo{args, shared, barriers.low, {}};
            solo.low(), solo.drain();
        });
        if constexpr (B == Major::MN)
            with_ranks<kLow>(args.sum_ranks, [&](auto ranks) {
                SoloProducer<Solo<ranks(), Major::MN>>{args, shared, barriers.sums, {}}.sums([&] { drain(); });
            });
    }
};

// --- the consumers ---

template <Major B>
struct Consumer {
    const Args& args;
    __nv_bfloat16* shared;
    Barriers& barriers;
    int warpgroup;
    Turn<kStages> ring;

    // sum (+)= left right, `Count` times 16 columns of the stage from `first` on.
    template <int Count>
    __device__ __forceinline__ void multiply(float (&sum)[kN / 2], int first, bool add) {
        const Stage<B> stage(shared, ring.stage);
        const WgmmaDescriptor left = k_major(stage.a(), 64 * warpgroup) + first;
        const WgmmaDescriptor right = [&] {
            if constexpr (B == Major::K)
                return k_major(stage.b()) + first;
            else
                return mn_major(stage.b()) + 64 * first;
        }();
        barriers.full[ring.stage].wait(ring.phase);
        wgmma_fence();
#pragma unroll
        for (int k = 0; k < 16 * Count; k += 16)
            wgmma_ss<B>(sum, left + k, right + (B == Major::K ? k : 64 * k), add || k > 0);
        wgmma_commit();
    }
    // The step before this one is done with its stage.
    __device__ __forceinline__ void pass(int& previous) {
        wgmma_wait<1>();
        if (previous >= 0) release_pair(barriers.free[previous]);
        previous = ring.stage;
        ring.next();
    }
    __device__ __forceinline__ bool observe(Observer& observer, int step) {
        if constexpr (B == Major::MN) {
            if (step != observer.next) return false;
            barriers.full[ring.stage].wait(ring.phase);
            observer.begin(Stage<B>(shared, ring.stage).a(), step);
            return true;
        }
        return false;
    }
    __device__ __forceinline__ void outputs(Observer& observer) {
        Held held;
        for_each_tile(args, [&](const Tile& tile) {
            const Output& output = args.outputs[tile.output];
            int steps = 0, previous = -1;
            for (int i = output.first; i < output.first + output.count; ++i) steps += args.factors[i].steps;
            float sum[kN / 2];
            if (steps < Held::kParts) held.store_all<false>();
            observer.begin_tile();
#pragma unroll
            for (int step = 0; step < Held::kParts; ++step) {
                if (step >= steps) break;
                const bool observed = observe(observer, step);
                multiply<kK / 16>(sum, 0, step > 0), held.store<false>(step), pass(previous);
                if (observed) observer.keep(step);
            }
            for (int step = Held::kParts; step < steps; ++step) {
                const bool observed = observe(observer, step);
                multiply<kK / 16>(sum, 0, true), pass(previous);
                if (observed) observer.keep(step);
            }
            observer.end_tile();
            for (int step = 0; step < output.low_steps; ++step) {
                const int first = step == 0 ? output.low_begin : 0;
                const int count = ((step + 1 == output.low_steps ? output.low_end : kK) - first) / 16;
                if (count == 1)
                    multiply<1>(sum, first, true);
                else if (count == 2)
                    multiply<2>(sum, first, true);
                else
                    multiply<kK / 16>(sum, 0, true);
                pass(previous);
            }
            wgmma_wait<0>();
            wgmma_settle(sum);
            release_pair(barriers.free[previous]);
            finish_tile(output, tile.row + 64 * warpgroup + accumulator_row(), tile.column, sum, held);
        });
        held.store_all<false>();
    }
    __device__ __forceinline__ void run() {
        Observer observer(args, sums_of(shared), tile_of_p(shared), barriers.p, warpgroup);
        outputs(observer);
        observer.store();
        with_ranks<kMostLow<B>>(args.low_ranks, [&](auto ranks) {
            SoloConsumer<Solo<ranks(), Major::K>>{args, shared, barriers.low, warpgroup, {}}.low();
        });
        if constexpr (B == Major::MN)
            with_ranks<kLow>(args.sum_ranks, [&](auto ranks) {
                SoloConsumer<Solo<ranks(), Major::MN>>{args, shared, barriers.sums, warpgroup, {}}.sums();
            });
    }
};

#endif

}  // namespace lc::kernels::lora_sm90
