// Fused hybrid attention on Hopper (sm_90a), backward: the walk over the rows. wgmma, TMA, warpgroups with roles. When it applies:
// hybrid_fused.h.
//
// MATHS    hybrid_attention.h. Left for the walk over the keys: 1 / Z, dZ, m, D / ties of every row; dN where it is asked for
//          (FusedRowResults).
// TILING   thread block = (batch entry, query head, segment), one on each SM, blocks of 64 positions in order. Warpgroups:
//
//            window     q(b) [k(b-1), k(b)]^T -> P, 1 / Z; dy(b) [v(b-1), v(b)]^T -> dS; dq = dS [k(b-1), k(b)] + du W^T
//            features   phi_k(b-1); phi_q(b), phi_q.z; g = dy S^T - (dy.y) z -> D, du
//            state      S += phi_k^T v(b-1); dWq += q^T du; z, a bf16 copy of S, once du tells that the last was read; dy.y of block b+1
//
//          dN is dy / Z row by row, so that products take dy as it comes and 1 / Z enters behind them: nobody waits for Z before they are
//          made. P, dS, phi_q and their gradients stay in registers, S and dWq in f32 for the whole walk. dy.y is the diagonal of a
//          product by mma.sync. A tile goes from role to role through its `full` and `free` barriers.
//          Shared memory: 2 q, 3 k, 2 v, dy [64,D], maps [D,F], S [F',D], phi_k [64,128], du, rows of dq on their way out [64,64].
// COST     as hybrid_fused_backward_rows.cu. On chip a block of 64 rows takes, D = 128: tensor cores 3328 clocks (dWq: 256 more),
//          exponentials 1536.
// NUMERICS as hybrid_fused_backward_rows.cu, but: dy is not divided and rounded before products, and dZ is made from it, so that a row's
//          dS add up to zero as there. The keys tied for a maximum carry a minus sign in P, and twice their weights over twice the highest
//          is how many they are. Weights and features as hybrid_fused_forward_sm90.cu.
// LADDER   H200, 8x1024 tokens, 32 heads of 128, 8 KV heads, frozen maps, us with a cold cache. Meant, by counting the instructions of the
//          longest role: 95, 4500 clocks a block.
//          1 403  hybrid_fused_backward_rows.cu: mma.sync, six barriers a block for all warps.
//          2 389  roles: 21400 clocks. The state waited 17000 of them for its own loads of y and dy, four of 2000 one after another, for
//                 dy.y and again for dN; the window 5000 for stores of dq, 16 bytes of a row at a time.
//          3 271  dq by way of shared memory in pieces of 128 bytes; two such loads after another instead of four: 15000 clocks.
//                 With dWq, whose registers leave room for one, 357 (1: 439).
//          4 238  y held from a block ahead, dy read from its tile: 13000 clocks, all roles equally busy. With dWq 351; D = 64 308 -> 182;
//                 one sequence of 1024 63 -> 51, of 16384 824 -> 501. Not what the count of instructions promised: a scheduler issues
//                 4400 a block, one every three clocks. By the counters of ncu the window, the features and the state waited for
//                 instructions 22, 34 and 17 % of their time (a block's code is 70 KB), for each other or copies 32, 25 and 39 %,
//                 and mma.sync for all wgmma that was under way.
//          5 200  phi_k before phi_q, so that S grows in registers while its copy is still read; both by one piece of code, and so the
//                 two tries at a softmax; dq in other forms left to hybrid_fused_backward_rows.cu: 65 KB. Predicted: 170.
//          6 191  dN not made, nor written: the walk over the keys takes dy and 1 / Z. z by column sums on the cores. Predicted: 180.
//                 10500 clocks; the features and the window wait for instructions 29 and 26 %, where both run code without
//                 exponentials, and are the limit; the state now waits for du a third of the time.
//          7 +17  (not kept; H100, whole backward) phi_k by the state, which waits most, so that the features have a third less to do.
//                 Predicted: -30. A second piece of code for features next to phi_q's costs more than the work that moved.
//          8 -5   (H100, whole backward) the window gets D before du is made, goes on to dS, and waits for du only ahead of the last
//                 product of dq. Predicted: -19; by clock stamps it had waited 1200 clocks a block there.
// SOURCE   arXiv 2410.10254; the roles are derived here.
#include "kernels/common/cuda/hopper.h"
#include "kernels/hybrid_attention/hybrid_rows_features.cuh"
#include "kernels/hybrid_attention/hybrid_rows_state.cuh"
#include "kernels/hybrid_attention/hybrid_rows_window.cuh"

namespace lc::kernels {
namespace {

using namespace hybrid_rows;

template <int D, bool kMap>
__global__ void __launch_bounds__(kRowsThreads, 1) rows_kernel(const __grid_constant__ RowsArgs args) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
    extern __shared__ __align__(kTileAlignment) unsigned char shared[];
    const RowsRoom<D> room{reinterpret_cast<__nv_bfloat16*>(shared)};
    RowsBarriers& barriers = room.barriers();
    const FusedHead head(args.rows.in.shape);
    const int group = warpgroup_index();
    if (threadIdx.x == kState * kWarpgroup) {
        barriers.init();
        const RowsWalk walk(head);
        RowsCopies<D>{args, head, room, barriers, walk}.begin();  // the first tiles come while the maps are loaded
    }
    __syncwarp();
    __syncthreads();
    if (group == kWindow) {
        shrink_registers<RowsRegisters<D, kMap>::kWindow>();
        make_windows<D>(args, head, room, barriers);
    } else if (group == kFeatures) {
        shrink_registers<RowsRegisters<D, kMap>::kFeatures>();
        make_all_features<D>(args.rows, head, room, barriers);
    } else {
        grow_registers<RowsRegisters<D, kMap>::kState>();
        keep_state<D, kMap>(args, head, room, barriers);
    }
#endif
}

}  // namespace

bool fused_rows_sm90_applies(const HybridAttentionBackward& a) {
    const PairRows dq(a.dq);
    const bool packs = dq.narrow && !dq.accumulate && (dq.strides[0] | dq.strides[1] | dq.strides[2]) % 8 == 0;
    return (!a.dq || packs) && hopper_applies({a.forward.q, a.forward.k, a.forward.v, a.forward.y, a.dy});
}

void fused_backward_rows_sm90(const FusedRowsArgs& args, const HybridAttentionBackward& a, Stream stream) {
    const RowsArgs all{head_map(a.forward.q), head_map(a.forward.k), head_map(a.forward.v),
                       head_map(a.dy),        head_map(a.forward.y), args};
    dispatch_head_dim(static_cast<int>(a.forward.q.size(3)), [&](auto dim) {
        dispatch_bool(args.dwq_parts != nullptr, [&](auto map) {
            constexpr int kBytes = RowsTraits<dim()>::kBytes;
            const auto kernel = rows_kernel<dim(), map()>;
            allow_shared_memory(kernel, kBytes);
            kernel<<<grid_x(args.in.shape.parts()), kRowsThreads, kBytes, cuda::handle_of(stream)>>>(all);
            LC_LAUNCHED("hybrid_attention", cuda::handle_of(stream));
        });
    });
}

}  // namespace lc::kernels
