// Fused hybrid attention on Hopper (sm_90a), backward: the walk over the keys, last block first. wgmma, TMA, warpgroups with roles.
//
// MATHS    hybrid_attention.h. For the keys of block c: the window's rows are blocks c and c+1; T and t hold rows of blocks >= c+2.
// TILING   thread block = (batch entry, query head, segment), one on each SM, blocks of 64 positions in reverse. Warpgroups:
//
//            maps        phi_q(c+2), then phi_k(c), in one tile                  [64,64] products
//            window      rows of blocks c+1, then c:  s = q k(c)^T, dP = dN v(c)^T -> P, dS
//            gradients   dphi_k = v(c) T^T + t -> du;  dWk^T += du^T k(c)
//                        dv = phi_k T + P^T dN, dk = dS^T q + du W^T, which leave through the places of P and dS
//            state       T^T += dN(c+2)^T phi_q(c+2), t; a copy of T, rounded, for the gradients. One thread queues copies.
//
//          A tile goes from role to role through its `full` and `free` barriers, so that the roles work on different blocks.
//          Shared memory: 2 q, 2 dN, k, v [64,D], maps [D,F], phi [64,128], T's copy [128,D], P and dS of either block [64,64], du.
// COST     as hybrid_fused_backward_keys.cu. On chip a block of 64 keys takes, D = 128: tensor cores 4864 clocks, exponentials 1536,
//          shared memory 5900.
// NUMERICS as hybrid_fused_backward_keys.cu, but: 1 / sums of features by rcp.approx and features without the shift of their softmax
//          where nothing can overflow (FeatureRows::make); features that were clamped take part in du: their share of it is
//          below 1e-10; gamma enters a weight through the exponent, which is one fma. Scores
//          have the same bits from wgmma as from mma.sync, whichever operand comes first (seen on an H200): either walk over the
//          rows may come before.
// LADDER   H200, 8x1024 tokens, 32 heads of 128, 8 KV heads, us, one call after the other:
//          1 518  hybrid_fused_backward_keys.cu: mma.sync, four barriers a block for all warps.
//          2 202  roles; 160 registers for each of the two that hold sums, 88 and 104 for the others. Predicted: 120 to 140. Seen
//                 by clock stamps: 11000 clocks a block, all of them the gradients' chain, of which du 2650 and the stores of dk and
//                 dv 1900; window and maps wait for it half of the time. An instruction of a warp that is alone with its code on a
//                 scheduler takes two to four clocks: instructions of the longest role count, not products.
//          3 183  t enters dphi_k before the product, clamped features take part, no general stores in the kernel.
//          4 209  (not kept) du made by the maps while phi_k is in registers: dWk, and with it the place of k, then wait for du behind
//                 both projections, and the window behind k. With two places for k it may pay: T's copy leaves no room.
// SOURCE   arXiv 2410.10254; the roles are derived here.
#include "kernels/common/cuda/hopper.h"
#include "kernels/common/dispatch.h"
#include "kernels/hybrid_attention/hybrid_keys_gradients.cuh"
#include "kernels/hybrid_attention/hybrid_keys_state.cuh"
#include "kernels/hybrid_attention/hybrid_keys_window.cuh"

namespace lc::kernels {

namespace {

using namespace hybrid_keys;

KeysOutput output_of(const GradSlot& to, Stream stream) {
    if (!to) return {};
    clear_result(to.view, stream);
    return {.map = head_map(to.view), .wanted = true};
}

template <int D>
__global__ void __launch_bounds__(kKeysThreads, 1) keys_kernel(const __grid_constant__ KeysArgs args) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
    extern __shared__ __align__(kTileAlignment) unsigned char shared[];
    const KeysRoom<D, true> room{reinterpret_cast<__nv_bfloat16*>(shared)};
    KeysBarriers& barriers = room.barriers();
    const int role = warpgroup_index();
    if (threadIdx.x == kState * kWarpgroup) begin_walk(args, room, barriers);
    __syncwarp();
    __syncthreads();
    if (role == kMaps) {
        shrink_registers<88>();
        make_features(args, room, barriers);
    } else if (role == kSecond) {
        shrink_registers<104>();
        make_window(args, room, barriers);
    } else if (role == kGradients) {
        grow_registers<160>();
        make_gradients(args, room, barriers);
    } else {
        grow_registers<160>();
        keep_state(args, room, barriers);
    }
#endif
}

}  // namespace

bool fused_keys_sm90_applies(const HybridAttentionForward& tensors, std::initializer_list<GradSlot> outputs) {
    for (const GradSlot& to : outputs)
        if (to &&
            (to.accumulate() || to.view.dtype != DType::bf16 || !has_dense_rows(to.view) || !hopper_applies({to.view})))
            return false;
    return hopper_applies({tensors.q, tensors.k, tensors.v});
}

void fused_backward_keys_sm90(const FusedKeysArgs& args, const HybridAttentionForward& tensors, const GradSlot& dk,
                              const GradSlot& dv, Stream stream) {
    const FusedShape& s = args.in.shape;
    const int64_t d = tensors.q.size(3);
    const KeysArgs to{.q = head_map(tensors.q),
                      .k = head_map(tensors.k),
                      .v = head_map(tensors.v),
                      .dn = head_map(padded_heads(args.results.dn, s, d, stream.device)),
                      .dk = output_of(dk, stream),
                      .dv = output_of(dv, stream),
                      .in = args.in,
                      .dz = args.results.dz,
                      .high = args.results.high,
                      .max_part = args.results.max_part,
                      .by_query_head = args.by_query_head,
                      .dwk_parts = args.dwk_parts,
                      .starts = args.starts};
    dispatch_head_dim(static_cast<int>(d), [&](auto dim) {
        constexpr int kBytes = KeysTraits<dim(), true>::kBytes;
        allow_shared_memory(keys_kernel<dim()>, kBytes);
        keys_kernel<dim()><<<grid_x(s.parts()), kKeysThreads, kBytes, cuda::handle_of(stream)>>>(to);
        LC_LAUNCHED("hybrid_attention", cuda::handle_of(stream));
    });
}

}  // namespace lc::kernels
