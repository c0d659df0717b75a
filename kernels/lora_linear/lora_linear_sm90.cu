// The large products of adapted layers on Hopper (sm_90a): wgmma, TMA with multicast, blocks that stay; bf16.
//
// MATHS    forward   p = x A^T     y_i = [x | p] [W_i | s_i B_i]^T            an output for each i
//          backward  q = dy B      dx = [dy_0 | dy_1 .. | q] [W_0; W_1; ..; A]
//          The low-rank term is one more step in the sum over k, as many times 16 as it has ranks; p and q are made by the same launch,
//          and so are dA = q^T x and dB = s dy^T p.
// TILING   a pair of blocks (a cluster) makes tiles of 2 x 128 rows and 256 columns; each fetches its own rows of the left operand and half
//          of the right one for both.
//
//            warpgroup 0, 1   64 rows each: [64,256] in registers; the tile before it too, as bf16, which is stored meanwhile
//            warpgroup 2      one thread queues copies, four steps of k ahead: left [128,64], right [256,64] or [64,256]
//
//          Pairs walk 4 pairs of row tiles x all columns or so at a time, so that what they read is in L2. 512 tiles are eight waves of 66
//          clusters, and of 64: two clusters, or as many as are idle, make no tiles but p or q, 256 rows at a time, in the order in which
//          tiles need them, and then dA (lora_sides_sm90.cuh). A tile needs p in its last step only, and waits there for a count. Who makes p
//          waits for nobody. dB is made of the tiles of dy that pass for dx, of up to 8 ranks, else as dA.
// COST     2 rows In Out FLOPs and 2 rows R (In + Out), twice that in the backward: 0.4 and 0.8 % for 8 ranks of o, 4.7 and 9.4 % for
//          64 of q, k, v. x and dy once more through multiprocessors that read 80 GB/s each: 128 MB of o are 400 us of four of them, the
//          time of the product. y and dx are written once, read where they are added to.
// NUMERICS bf16 operands, f32 sums; s_i B_i, p and q are rounded to bf16, y and dx once. The order of a sum depends on shapes alone.
// LADDER   1 cuBLASLt, the low-rank term last with beta = 1: 22 and 37 % over the plain product for q or o, 57 and 137 % for k or v (H100).
//          2 cuBLASLt with beta = 1 on a start written by a pass of our own: slower, beta = 1 costs a product more than it saves.
//          3 p and q by pairs that have one tile less than others, dA and dB in a launch of their own; meant for 3 % in the forward. Its first
//            form waited for a fence of the whole GPU in every step (mbarrier.arrive.release.cluster): 0.64 of cuBLASLt. Then, over the plain
//            products of the same run (H200, forward and all of the backward): q, k, v of rank 8 10 and 21 %, o 11 and 27 %, q, k, v of 64 21
//            and 44 %.
//          4 clusters that make p or q and then dA and nothing else, this kernel beside that of the factors, the last step by 16 ranks: forward
//            8 and 7 %. Without its stores it took 350 us instead of 369 for o: all multiprocessors write 8.6 MB at once.
//          5 a tile in 64 registers, stored in 16 parts during the next: meant for 2 % after 4's 7, measured 4.
//          6 dB of rank 8, of which a launch of its own cost o 14 % and q, k, v 12 in all. Two warps more that read the tiles of dy with
//            mma.sync, meant to be free: 19 and 17 %, each of theirs waits behind wgmma, and they hold the stage. The consumers' wgmma
//            of 8 columns, meant for 1 %: 10 and 8 % when waited for at once, 9 to 11 and 8 % without. What is left: 8 us for it, 10 us of dA
//            behind the last tile (a fifth to a third of x, read by all), 15 us before the launch starts and for adding up slices.
//          7 64 ranks of q, k, v: 192 at once on four multiprocessors, meant for 61 us for 256 rows, took 80, and tiles waited: 30 % in the
//            forward. 64 at a time on twelve, with a thirteenth wave for the others: 15 %. Backward with dB in a launch of its own 31 %,
//            with units like those of dA 24 %: they outlast the tiles by 55 us.
//          8 Launched beside the factors' kernel, pairs are placed as multiprocessors become free: the first tile of dx took 85 thousand cycles,
//            behind it 72, later ones 70. That kernel, eight elements a thread: 26 us of q, k, v of 64 to 9. p of 96 ranks in one pass over x,
//            for two of which tiles waited 24 us. Over cuBLASLt in the same run (H100), of 8 backward o 13.6 to 11.7 %, q, k, v 9.2 to 8.8 %, of
//            32 forward 9 to 1 %, of 64 11.6 to 9.5 and 26.4 to 24.2 %.
//          9 What lost, in the backward of 8 for o: dB from the tiles of dy that q is made of, meant to cost nothing there: m64n8k16 with both
//            operands transposed takes 32 cycles whatever N is, q came after 410 us instead of 240 (of 64 ranks 860, and tiles waited), and as
//            much of dA was left as that was late: 9.0 % for 9.7. dA by the idle warps beside the producer in ordinary arithmetic, meant to leave
//            nothing: shared memory is taken by wgmma and copies, 200 cycles a row for 60, 54 %. dB of up to 32 ranks observed and added to
//            workspace by red, meant to save 48 us of 16 ranks: a tile took 3 to 8 thousand cycles longer, 21 to 26 %. Units of dA of 256 or
//            128 rows, claimed late: no shorter tail.
//            What is left: 4 % as in the forward, 8 us of dB, 18 us from the last tile on, 10 us of the first two tiles (a pass over W).
// SOURCE   arXiv 2106.09685; PTX ISA, "wgmma.mma_async", "cp.async.bulk.tensor".
#include "kernels/common/cuda/cluster.cuh"
#include "kernels/common/cuda/early.cuh"
#include "kernels/lora_linear/lora_roles_sm90.cuh"

namespace lc::kernels {
namespace {

using namespace lora_sm90;

// B: how the right operands lie, [columns,k] (K) or [k,columns] (MN).
template <Major B>
__global__ void __launch_bounds__(kRoleThreads, 1) sum_of_products_kernel(const __grid_constant__ Args args) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
    extern __shared__ unsigned char dynamic[];
    __shared__ Barriers barriers;
    __nv_bfloat16* const shared = aligned_shared(dynamic);
    const int warpgroup = warpgroup_index();
    start_successor();
    if (threadIdx.x == 0) barriers.init();
    cluster_arrive(), cluster_wait();  // the other block's barriers are there as well
    if (warpgroup == kConsumers) {
        shrink_registers<kProducer<B>>();
        if (threadIdx.x == kConsumers * kWarpgroup)
            Producer<B>{args, shared, barriers, {}, static_cast<int>(blockIdx.x) % kPair}.run();
    } else {
        grow_registers<kConsumer<B>>();
        Consumer<B>{args, shared, barriers, warpgroup, {}}.run();
    }
    __syncwarp();
    cluster_arrive(), cluster_wait();  // nobody leaves whose memory the other one still writes
#endif
}

// Pairs that the device holds at a time. Asked once: on another GPU of the same kind it is the same.
template <Major B>
int most_clusters() {
    static const int clusters = std::max(pairs_at_a_time(sum_of_products_kernel<B>, kRoleThreads, kBytes<B>), 2);
    return clusters;
}

int column_tiles_of_all(const Args& args) {
    int tiles = 0;
    for (int o = 0; o < args.output_count; ++o) tiles += tiles_of(args.outputs[o].columns, kN);
    return tiles;
}

// Ranks that are made at a time: what with_ranks knows.
int ranks_at_a_time(int64_t ranks) {
    return ranks <= 8 ? 8 : ranks <= 32 ? 32 : kLow;
}

// Clusters that make outputs, and in all. The others make p or q: as many as the last wave leaves idle, a wave more where they would be late.
struct Share {
    int makers, clusters;
};
Share share_of(const Args& args, int most) {
    const int pairs = tiles_of(args.rows, kPair * kM), tiles = pairs * column_tiles_of_all(args);
    int steps = 0, low_steps = 0;  // of an output, of all of p or q
    for (int i = 0; i < args.outputs[0].count; ++i) steps += args.factors[i].steps;
    for (int i = 0; i < args.low_factors; ++i)
        low_steps +=
            args.factors[i].steps * tiles_of(args.factors[i].low_end - args.factors[i].low_first, args.low_ranks);
    // Of 256 rows, in tiles of outputs.
    const float low = (args.low_ranks < kLow ? 0.6f : 0.8f) * static_cast<float>(low_steps) / static_cast<float>(steps);
    Share best{};
    float least = 0;
    for (int waves = tiles_of(tiles, most - 1); waves <= tiles; ++waves) {
        if (best.makers > 0 && static_cast<float>(waves) >= least) break;
        const int makers = tiles_of(tiles, waves);
        const int helpers = std::min(most - makers, tiles_of(pairs * args.low_blocks, kPair));
        const float time =
            std::max(static_cast<float>(waves), low * static_cast<float>(pairs) / static_cast<float>(helpers * kPair));
        if (best.makers == 0 || time < least) least = time, best = {makers, makers + helpers};
    }
    return best;
}

template <Major B>
void launch(const Args& args, int clusters, Stream stream) {
    // Not early: pairs would be placed as multiprocessors become free, and the first tiles take a fifth longer then.
    launch_early(sum_of_products_kernel<B>,
                 {.blocks = clusters * kPair,
                  .threads = kRoleThreads,
                  .shared_bytes = kBytes<B>,
                  .cluster = kPair,
                  .early = false},
                 cuda::handle_of(stream), args);
    LC_LAUNCHED("lora_linear", cuda::handle_of(stream));
}

CUtensorMap left_map(const DeviceRows& x) {
    return matrix_map(x.data, x.rows, x.columns, x.stride, kM);
}

// What both directions share.
Args args_of(int64_t rows, const LoraFactors& factors, void* low) {
    Args args;
    args.rows = static_cast<int>(rows), args.width = static_cast<int>(factors.width);
    args.low = static_cast<__nv_bfloat16*>(low), args.ready = factors.counters();
    args.low_left = matrix_map(low, rows, factors.width, factors.width, kM);
    return args;
}

}  // namespace

// The body of a kernel, and with it the barriers in static shared memory, is there in code for sm_90a alone.
bool lora_linear_has_sm90() {
    cudaFuncAttributes attributes{};
    if (cudaFuncGetAttributes(&attributes, sum_of_products_kernel<Major::K>) == cudaSuccess)
        return attributes.sharedSizeBytes > 0;
    cudaGetLastError();  // no code at all for this device: the launch that follows says so
    return false;
}

int64_t lora_sm90_counters(int64_t rows) {
    return row_tiles_of(rows) + 2;
}

void lora_forward_sm90(const DeviceRows& x, const std::vector<DeviceRows>& w, const std::vector<const void*>& bias,
                       const LoraFactors& factors, const std::vector<DeviceOutRows>& y, void* p, Stream stream) {
    Args args = args_of(x.rows, factors, p);
    args.low_factors = 1;
    // All in one pass over x where that is possible.
    const bool wide = factors.width > kLow && factors.width <= kMostLow<Major::K>;
    args.low_ranks = wide ? kMostLow<Major::K> : ranks_at_a_time(factors.width);
    args.low_blocks = tiles_of(factors.width, args.low_ranks);
    for (size_t i = 0; i < w.size(); ++i) {
        const LoraFactors::Place& place = factors.places[i];
        Factor& factor = args.factors[i];
        factor.left = left_map(x);
        factor.right = matrix_map(w[i].data, w[i].rows, w[i].columns, w[i].stride, kN / kPair);
        factor.low_right = matrix_map(factors.a(), factors.width, factors.in, factors.in, args.low_ranks);
        factor.steps = tiles_of(x.columns, kK);
        factor.low_end = args.width;
        Output& output = args.outputs[args.output_count++] = Output(y[i]);
        output.bias = static_cast<const __nv_bfloat16*>(bias[i]);
        output.first = static_cast<int>(i), output.count = 1;
        output.set_low(place.first_column, place.first_column + place.rank);
        output.low_right = matrix_map(factors.b_of(place), place.out, factors.width, factors.width, kN / kPair);
    }
    const Share share = share_of(args, most_clusters<Major::K>());
    args.makers = share.makers;
    launch<Major::K>(args, share.clusters, stream);
}

LoraSums lora_backward_sm90(const std::vector<DeviceRows>& dy, const std::vector<DeviceRows>& w,
                            const LoraFactors& factors, void* q, const DeviceOutRows& dx, const LoraSides& sides,
                            Stream stream) {
    Args args = args_of(dx.rows, factors, q);
    args.low_factors = static_cast<int>(w.size()), args.output_count = 1;
    int steps = 0;
    int64_t rank = 0, db_size = 0;  // the largest; numbers
    for (const LoraFactors::Place& place : factors.places)
        rank = std::max(rank, place.rank), db_size += lora_columns(place.rank) * place.out;
    args.low_ranks = ranks_at_a_time(rank);
    for (size_t i = 0; i < w.size(); ++i) {
        const LoraFactors::Place& place = factors.places[i];
        Factor& factor = args.factors[i];
        factor.left = left_map(dy[i]);
        factor.right = matrix_map(w[i].data, w[i].rows, w[i].columns, w[i].stride, kK);
        factor.low_right =
            matrix_map(factors.b_transposed_of(place), factors.width, place.out, factors.out, args.low_ranks);
        factor.steps = tiles_of(dy[i].columns, kK), factor.columns = static_cast<int>(dy[i].columns);
        factor.low_first = static_cast<int>(place.first_column);
        factor.low_end = static_cast<int>(place.first_column + lora_columns(place.rank));
        args.low_blocks += tiles_of(lora_columns(place.rank), args.low_ranks);
        steps += factor.steps;
    }
    Output& output = args.outputs[0] = Output(dx);
    output.count = static_cast<int>(w.size());
    output.set_low(0, factors.width);
    output.low_right = matrix_map(factors.a(), factors.width, factors.in, factors.in, kK);
    const Share share = share_of(args, most_clusters<Major::MN>());
    args.makers = share.makers;

    LoraSums sums;
    args.sum_ranks = ranks_at_a_time(factors.width), args.slice_rows = rank <= 32 ? 512 : 1024;
    const int slices = tiles_of(dx.rows, args.slice_rows);
    const auto add_sum = [&](const DeviceRows& z, const void* low, int64_t stride, int64_t first_rank, int64_t ranks,
                             float* parts) -> Sum& {
        Sum& sum = args.sums[args.sum_count++];
        sum.left = matrix_map(z.data, z.rows, z.columns, z.stride, kK);
        sum.right = matrix_map(low, z.rows, factors.width, stride, kK);
        sum.parts = parts, sum.columns = static_cast<int>(z.columns);
        sum.ranks = static_cast<int>(ranks), sum.first_rank = static_cast<int>(first_rank);
        return sum;
    };
    // A block observes the same columns of dy in all of its tiles.
    const int columns = tiles_of(dx.columns, kN);
    const bool even = args.makers % (kGroup * columns) == 0 && tiles_of(dx.rows, kPair * kM) % kGroup == 0;
    args.observes = sides.p && rank <= 8 && even && steps >= kStages && tiles_of(steps, columns) <= kMostSteps;
    if (sides.p) {
        const int64_t parts = args.observes ? args.makers / columns * kPair : slices;
        sums.db_memory = DeviceScratch<float>(parts * db_size, stream);
        float* to = sums.db_memory.data();
        if (args.observes) args.p = left_map(*sides.p);
        for (size_t i = 0; i < w.size(); ++i) {
            const LoraFactors::Place& place = factors.places[i];
            const int64_t ranks = lora_columns(place.rank);
            sums.db.push_back({to, parts, ranks, 0});
            if (args.observes)
                args.factors[i].db = to;
            else
                add_sum(dy[i], sides.p->data, sides.p->stride, place.first_column, ranks, to);
            to += parts * ranks * place.out;
        }
    }
    if (sides.x) {
        sums.da_memory = DeviceScratch<float>(slices * factors.width * factors.in, stream);
        add_sum(*sides.x, q, factors.width, 0, factors.width, sums.da_memory.data()).of_q = true;
        for (const LoraFactors::Place& place : factors.places)
            sums.da.push_back({sums.da_memory.data(), slices, factors.width, place.first_column});
    }
    launch<Major::MN>(args, share.clusters, stream);
    return sums;
}

}  // namespace lc::kernels
