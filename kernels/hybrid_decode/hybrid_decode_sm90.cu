// One decode step on Hopper (sm_90a), for what models run: states and windows stream through shared memory. hybrid_decode_fold.cu has
// folded before.
//
// MATHS    hybrid_decode.h; terraced windows with w = 64, F = 64, softmax maps, a state for each query head.
// TILING   a block an SM. An item is a sequence and a query head, or four heads of a group once there are enough of these; a block walks
//          a stretch of items, sequence by sequence of the same heads.
//
//            copier        one thread: keys of the window, S of each head, values of the window, item after item, into a ring of slots
//                          by bulk copies, as far ahead as the ring reaches. The step's own key and value come last of their block
//            eight warps   phi(q) of up to sixteen items, for which a thread holds its weights in registers; then item by item
//                          scores     a row of keys eight lanes, all heads of the item
//                          weights    a warp a head
//                          phi S      a warp every eighth four of 32 rows, a lane four columns
//                          P v        likewise, all heads of the item; the warps' sums meet in shared memory
//
//          Shared memory: 10 slots of 16 KiB (a slot: 64 keys, or 32 or 64 rows of S), q, phi, weights, partial sums: 227 KiB at D = 128.
// COST     a query head: 4 F' D bytes of S (2 in bf16), a window's 4 D bytes a key once an item; maps from the L2 cache once in sixteen
//          items. One multiply-add a number: bound by memory. A copy of all that takes 41 us at batch 64, 160 at 256 (f32).
// NUMERICS as hybrid_decode_packed.cu: f32 on bf16 or f32 numbers. Rows of S are added up in one order whatever their dtype.
// LADDER   H200 (copies at 4.19 TB/s), 32 heads of 128, 8 KV heads, mean window, nothing folds; us at batch 1 / 16 / 64 / 256:
//          1 25 / 34 / 118 / 453  hybrid_decode_packed.cu, fold included, f32; in bf16 25 / 30 / 106 / 390.
//          2 18 / 29 /  72 / 208  this in outline, four heads an item; predicted for 64: 60. It was 139 KB of code (feature maps of every
//                                 kind, any window, 64-bit divisions), more than the instruction caches hold: each step fetched it anew,
//                                 and a fold in front that found nothing to do cost 14 us instead of 2.
//          3  8 / 18 /  47 / 176  48 KB of it, for one kind of map and window; a query head an item for small batches (12 with four).
//                                 83 and 89 % of a copy; in bf16 35 and 126: 66 and 73 %. Launched early: 0.5 us less.
//          4  7 / 17 /  46 / 174  the fold launched early too, queries of the next four items on their way during these; bf16 33 and 122.
//                                 There the warps were the bound (clocks an item of 15500: maps 3200, as weights come behind all that the
//                                 copier has requested; scores 2900, states 4500, values 2200).
//          5  6 / 16 /  47 / 167  this: a block's maps once, weights requested ahead of the stream and kept in registers. 84 and 94 % of a
//                                 copy; bf16 7 / 15 / 34 / 114: 67 and 80 %. At batch 64 an SM has four items, and the first one's chain
//                                 is in nobody's shadow.
//          Lost: sixteen warps instead of eight (52 / 196); two heads an item (17 at batch 16, 13 at 8: not worth the code).
// SOURCE   arXiv 2410.10254.
#include <limits>

#include "kernels/common/cuda/hopper.h"
#include "kernels/hybrid_decode/hybrid_decode_stream.cuh"

namespace lc::kernels {
namespace {

using namespace decode_stream;

// Items, Heads neighbouring query heads of a sequence each, lie sequence by sequence for each run of heads; a block takes a stretch.
template <class U, int D, int Heads>
__global__ void __launch_bounds__(kBlock, 1)
    stream_kernel(const __grid_constant__ Args<__nv_bfloat16, U> a, int batch) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
    extern __shared__ __align__(128) unsigned char memory[];
    auto& shared = *reinterpret_cast<Shared<D, Heads>*>(memory);
    start_successor();
    if (threadIdx.x == 0) {
        for (int i = 0; i < kSlots; ++i)
            reinterpret_cast<Barrier&>(shared.full[i]).init(1),
                reinterpret_cast<Barrier&>(shared.empty[i]).init(kWarps);
        fence_barriers();
    }
    __syncthreads();
    const int items = batch * (a.heads / Heads), each = items / static_cast<int>(gridDim.x),
              more = items % static_cast<int>(gridDim.x), block = static_cast<int>(blockIdx.x);
    const int first = block * each + min(block, more), last = first + each + (block < more ? 1 : 0);
    Attend<U, D, Heads> work{a, shared, batch};
    if (threadIdx.x < kThreads) return work.compute(first, last);
    if (threadIdx.x != kThreads) return;
    wait_for_predecessor();
    work.copy_items(first, last);
#endif
}

// The maps' products are under way while the fold before it finds what there is to do.
template <class U, int D, int Heads>
void run(const HybridDecode& decode, int64_t blocks, Stream stream) {
    const Args<__nv_bfloat16, U> a = args_of<__nv_bfloat16, U>(decode);
    launch(true, stream_kernel<U, D, Heads>, blocks, kBlock, sizeof(Shared<D, Heads>), cuda::handle_of(stream), a,
           static_cast<int>(decode.q.size(0)));
}

// Heads of an item: four that share keys, where every multiprocessor gets more than one such item.
template <class U, int D>
void run(const HybridDecode& a, Stream stream) {
    const int64_t heads = a.q.size(1), group = heads / a.k.size(1), rows = a.q.size(0) * heads,
                  blocks = multiprocessors_of(stream.device);
    if (group % 4 == 0 && rows >= 6 * blocks) return run<U, D, 4>(a, std::min(rows / 4, blocks), stream);
    run<U, D, 1>(a, std::min(rows, blocks), stream);
}

}  // namespace

bool hybrid_decode_sm90(const HybridDecode& a, Stream stream) {
    constexpr int64_t kMostRows = std::numeric_limits<int>::max();
    if (!is_model_step(a) || a.s.size(1) != a.q.size(1) || a.q.size(0) * a.q.size(1) > kMostRows) return false;
    if (!hopper_applies({a.q, a.k, a.v}) || !hybrid_decode_fold_blocks(a, true, stream)) return false;
    dispatch_bool(a.q.size(3) == 128, [&](auto wide) {
        constexpr int kD = wide() ? 128 : 64;
        a.s.dtype == DType::bf16 ? run<__nv_bfloat16, kD>(a, stream) : run<float, kD>(a, stream);
    });
    return true;
}

}  // namespace lc::kernels
