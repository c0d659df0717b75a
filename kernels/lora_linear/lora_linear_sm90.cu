// The large products of adapted layers on Hopper (sm_90a): wgmma, TMA with multicast, blocks that stay; bf16.
//
// MATHS    forward   p = x A^T     y_i = [x | p] [W_i | s_i B_i]^T            an output for each i
//          backward  q = dy B      dx = [dy_0 | dy_1 .. | q] [W_0; W_1; ..; A]
//          The low-rank term is one more step of 64 in the sum over k; p and q are tiles of the same launch.
// TILING   a pair of blocks (a cluster) makes tiles of 2 x 128 rows and 256 columns; each fetches its own rows of the left operand and half
//          of the right one for both.
//
//            warpgroup 0, 1   64 rows each: [64,256] in registers
//            warpgroup 2      one thread queues copies, four steps of k ahead: left [128,64], right [256,64] or [64,256]
//
//          Pairs walk 8 x 8 tiles or so at a time, so that what they read is in L2. Low tiles, [128 rows, 64 ranks], come first, on pairs
//          that have one large tile less than others: that time would be lost anyway. A large tile needs p in its last step only, and
//          waits there for a count of the warpgroups that have stored these rows. Low tiles wait for nobody, and are the first work
//          of the first blocks.
// COST     2 rows In Out FLOPs and 64/K of it for the low-rank term (1.6 % for 4096, 1 % for 6144 in a backward of q, k, v), and what does
//          not fit into the last wave of low tiles: 64 x 1 MB through one multiprocessor each at some 80 GB/s for 8192 x 4096, 5 us
//          of all multiprocessors. y and dx are written once, read where they are added to.
// NUMERICS bf16 operands, f32 sums; s_i B_i, p and q are rounded to bf16, y and dx once. The order of a sum depends on shapes alone.
// LADDER   1 cuBLASLt, the low-rank term last with beta = 1: 22 and 37 % over the plain product for q or o, 57 and 137 % for k or v (H100).
//          2 cuBLASLt with beta = 1 on a start written by a pass of our own: slower, beta = 1 costs a product more than it saves.
//          3 this, meant for 3 % in the forward and 2 % in dx. Its first form waited for a fence of the whole GPU in every step
//            (mbarrier.arrive.release.cluster): 0.64 of cuBLASLt. Now, on an H200 with rank 8, forward and all of the backward: q, k, v
//            together 7 and 17 % over their products, q or o 8 and 19 %; cuBLASLt with the same dA and dB 13 and 32, 16 and 28 %.
//          Next: dA and dB in the last wave as well (they read x and dy again): most of what remains.
// SOURCE   arXiv 2106.09685; PTX ISA, "wgmma.mma_async", "cp.async.bulk.tensor".
#include "kernels/common/cuda/cluster.cuh"
#include "kernels/lora_linear/lora_linear_sm90.cuh"

namespace lc::kernels {
namespace {

using namespace lora_sm90;

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

struct Barriers {
    Barrier full[kStages], free[kStages];
    __device__ void init() {
        for (int i = 0; i < kStages; ++i) full[i].init(1), free[i].init(kPair * kConsumerWarps);
        fence_barriers();
    }
};

template <Major B>
struct Stage {
    __nv_bfloat16* base;
    __device__ __forceinline__ Stage(__nv_bfloat16* shared, int stage) : base(shared + stage * (kStageBytes / 2)) {}
    __device__ __forceinline__ TileA a() const { return {base}; }
    __device__ __forceinline__ TileB<B> b() const { return {base + TileA::kBytes / 2}; }
    __device__ __forceinline__ TileLow low() const { return {base + TileA::kBytes / 2}; }
};

// --- the producer ---

__device__ __forceinline__ void await_low(const int* ready) {
    int count;
    do {
        asm volatile("ld.acquire.gpu.global.s32 %0, [%1];" : "=r"(count) : "l"(ready) : "memory");
    } while (count < kReadyAt);
    asm volatile("fence.proxy.async.global;" ::: "memory");  // ordinary stores, read by the copy engine
}

template <Major B>
struct Producer {
    const Args& args;
    __nv_bfloat16* shared;
    Barriers& barriers;
    Turn<kStages> ring;
    int half;

    __device__ __forceinline__ Barrier& begin(int bytes) {
        barriers.free[ring.stage].wait(ring.phase ^ 1);
        Barrier& full = barriers.full[ring.stage];
        full.expect(bytes);
        return full;
    }
    // This block's rows of the left operand; half of the right one, for both blocks.
    __device__ __forceinline__ void large_step(const CUtensorMap& left, int left_k, const CUtensorMap& right,
                                               int right_k, const Tile& tile) {
        Barrier& full = begin(kStageBytes);
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
    __device__ __forceinline__ void low_step(const Factor& factor, int k, const Tile& tile) {
        Barrier& full = begin(TileA::kBytes + TileLow::kBytes);
        const Stage<B> stage(shared, ring.stage);
        copy_panel(stage.a().data, factor.left, tile.row, k, full);
        copy_panel(stage.low().data, factor.low_right, B == Major::K ? tile.column : k, B == Major::K ? k : tile.column,
                   full);
        ring.next();
    }
    __device__ __forceinline__ void run() {
        const int row_tiles = tiles_of(args.rows, kPair * kM) * kPair;
        for_each_tile(args, [&](const Tile& tile) {
            if (tile.low) {
                for (int i = 0; i < args.low_factors; ++i)
                    if (has_share(args.factors[i], tile.column))
                        for (int k = 0; k < args.factors[i].steps; ++k) low_step(args.factors[i], k * kK, tile);
                return;
            }
            const Output& output = args.outputs[tile.output];
            for (int i = output.first; i < output.first + output.count; ++i)
                for (int k = 0; k < args.factors[i].steps; ++k)
                    large_step(args.factors[i].left, k * kK, args.factors[i].right, k * kK, tile);
            for (int k = output.low_first; k < output.low_first + output.low_steps; ++k) {
                await_low(args.ready + k * row_tiles + tile.row_tile);
                large_step(args.low_left, k * kK, output.low_right, k * kK, tile);
            }
        });
    }
};

// --- the consumers ---

// Both blocks may write the stage again once all warps of both are done with it.
__device__ __forceinline__ void release_pair(Barrier& free) {
    __syncwarp();
    if (threadIdx.x % kWarp < kPair) free.arrive_at(threadIdx.x % kWarp);
}

// sum = left right over `steps` stages of the ring.
template <Major B, bool IsLow, int Count>
__device__ __forceinline__ void accumulate(__nv_bfloat16* shared, Barriers& barriers, Turn<kStages>& ring, int steps,
                                           int warpgroup, float (&sum)[Count]) {
    using Right = std::conditional_t<IsLow, TileLow, TileB<B>>;
    int previous = 0;
    for (int step = 0; step < steps; ++step) {
        const Stage<B> stage(shared, ring.stage);
        const Right right_tile{stage.b().data};
        const WgmmaDescriptor left = k_major(stage.a(), 64 * warpgroup);
        const WgmmaDescriptor right = [&] {
            if constexpr (B == Major::K)
                return k_major(right_tile);
            else
                return mn_major(right_tile);
        }();
        barriers.full[ring.stage].wait(ring.phase);
        wgmma_fence();
#pragma unroll
        for (int k = 0; k < kK; k += 16)
            wgmma_ss<B>(sum, left + k_offset<TileA>(k), right + (B == Major::K ? k_offset<Right>(k) : 64 * k),
                        step > 0 || k > 0);
        wgmma_commit();
        wgmma_wait<1>();  // the step before this one
        if (step > 0) release_pair(barriers.free[previous]);
        previous = ring.stage;
        ring.next();
    }
    wgmma_wait<0>();
    wgmma_settle(sum);
    release_pair(barriers.free[previous]);
}

template <Major B>
__device__ __forceinline__ void consume(const Args& args, __nv_bfloat16* shared, Barriers& barriers, int warpgroup) {
    Turn<kStages> ring;
    for_each_tile(args, [&](const Tile& tile) {
        int steps = 0;
        if (tile.low) {
            for (int i = 0; i < args.low_factors; ++i)
                if (has_share(args.factors[i], tile.column)) steps += args.factors[i].steps;
            float sum[kLow / 2];
            accumulate<B, true>(shared, barriers, ring, steps, warpgroup, sum);
            store_low(args, tile, warpgroup, sum);
            return;
        }
        const Output& output = args.outputs[tile.output];
        for (int i = output.first; i < output.first + output.count; ++i) steps += args.factors[i].steps;
        float sum[kN / 2];
        accumulate<B, false>(shared, barriers, ring, steps + output.low_steps, warpgroup, sum);
        store_output(args, tile, warpgroup, sum);
    });
}

#endif

// B: how the right operands lie, [columns,k] (K) or [k,columns] (MN).
template <Major B>
__global__ void __launch_bounds__(kRoleThreads, 1) sum_of_products_kernel(const __grid_constant__ Args args) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
    extern __shared__ unsigned char dynamic[];
    __shared__ Barriers barriers;
    __nv_bfloat16* const shared = aligned_shared(dynamic);
    const int warpgroup = warpgroup_index();
    if (threadIdx.x == 0) barriers.init();
    cluster_arrive(), cluster_wait();  // the other block's barriers are there as well
    if (warpgroup == kConsumers) {
        shrink_registers<kProducer>();
        if (threadIdx.x == kConsumers * kWarpgroup)
            Producer<B>{args, shared, barriers, {}, static_cast<int>(blockIdx.x) % kPair}.run();
    } else {
        grow_registers<kConsumer>();
        consume<B>(args, shared, barriers, warpgroup);
    }
    __syncwarp();
    cluster_arrive(), cluster_wait();  // nobody leaves whose memory the other one still writes
#endif
}

// Pairs that the device holds at a time. Asked once: on another GPU of the same kind it is the same.
template <Major B>
int most_clusters() {
    static const int clusters = [] {
        allow_shared_memory(sum_of_products_kernel<B>, kSharedBytes);
        cudaLaunchAttribute pair{};
        pair.id = cudaLaunchAttributeClusterDimension;
        pair.val.clusterDim = {kPair, 1, 1};
        cudaLaunchConfig_t config{};
        config.gridDim = dim3(kPair), config.blockDim = dim3(kRoleThreads);
        config.dynamicSmemBytes = kSharedBytes, config.attrs = &pair, config.numAttrs = 1;
        int count = 0;
        LC_CUDA(cudaOccupancyMaxActiveClusters(&count, sum_of_products_kernel<B>, &config));
        return std::max(count, 1);
    }();
    return clusters;
}

template <Major B>
void launch(const Args& args, Stream stream) {
    int64_t tiles = 0;
    for (int o = 0; o < args.output_count; ++o) tiles += tiles_of(args.outputs[o].columns, kN);
    tiles *= tiles_of(args.rows, kPair * kM);
    const auto clusters = static_cast<unsigned>(std::min<int64_t>(tiles, most_clusters<B>()));
    launch_clusters(sum_of_products_kernel<B>, kPair, clusters, kRoleThreads, kSharedBytes, cuda::handle_of(stream),
                    args);
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

int64_t lora_sm90_counters(int64_t rows, int64_t width) {
    return int64_t{tiles_of(width, kLow)} * tiles_of(rows, kPair * kM) * kPair;
}

void lora_forward_sm90(const DeviceRows& x, const std::vector<DeviceRows>& w, const std::vector<const void*>& bias,
                       const LoraFactors& factors, const std::vector<DeviceOutRows>& y, void* p, Stream stream) {
    Args args = args_of(x.rows, factors, p);
    args.low_factors = 1;
    for (size_t i = 0; i < w.size(); ++i) {
        const LoraFactors::Place& place = factors.places[i];
        Factor& factor = args.factors[i];
        factor.left = left_map(x);
        factor.right = matrix_map(w[i].data, w[i].rows, w[i].columns, w[i].stride, kN / kPair);
        factor.low_right = matrix_map(factors.a(), factors.width, factors.in, factors.in, kLow);
        factor.steps = tiles_of(x.columns, kK);
        factor.low_end = args.width;
        Output& output = args.outputs[args.output_count++] = Output(y[i]);
        output.bias = static_cast<const __nv_bfloat16*>(bias[i]);
        output.first = static_cast<int>(i), output.count = 1;
        output.low_first = static_cast<int>(place.first_column / kK);
        output.low_steps = tiles_of(place.first_column + place.rank, kK) - output.low_first;
        output.low_right = matrix_map(factors.b_of(place), place.out, factors.width, factors.width, kN / kPair);
    }
    launch<Major::K>(args, stream);
}

void lora_backward_sm90(const std::vector<DeviceRows>& dy, const std::vector<DeviceRows>& w, const LoraFactors& factors,
                        void* q, const DeviceOutRows& dx, Stream stream) {
    Args args = args_of(dx.rows, factors, q);
    args.low_factors = static_cast<int>(w.size()), args.output_count = 1;
    for (size_t i = 0; i < w.size(); ++i) {
        const LoraFactors::Place& place = factors.places[i];
        Factor& factor = args.factors[i];
        factor.left = left_map(dy[i]);
        factor.right = matrix_map(w[i].data, w[i].rows, w[i].columns, w[i].stride, kK);
        factor.low_right = matrix_map(factors.b_of(place), place.out, factors.width, factors.width, kK);
        factor.steps = tiles_of(dy[i].columns, kK);
        factor.low_first = static_cast<int>(place.first_column);
        factor.low_end = static_cast<int>(place.first_column + place.rank);
    }
    Output& output = args.outputs[0] = Output(dx);
    output.count = static_cast<int>(w.size()), output.low_steps = tiles_of(factors.width, kK);
    output.low_right = matrix_map(factors.a(), factors.width, factors.in, factors.in, kK);
    launch<Major::MN>(args, stream);
}

}  // namespace lc::kernels
