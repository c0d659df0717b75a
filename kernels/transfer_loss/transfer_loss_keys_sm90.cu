// Stage 1 on Hopper (sm_90a): the walk over the keys, last block first. wgmma, TMA, warpgroups with roles.
//
// MATHS    transfer_loss.h, sweep 2. Before the keys of block c T and t take the rows of block c+2.
// TILING   the roles of hybrid_fused_backward_keys_sm90.cu without a window:
//
//            maps        phi_k(c)
//            second      phi_q(c+2)
//            gradients   dphi_k = v(c) T^T + t -> du, over phi_k;  dWk^T += du^T k(c)
//            state       T^T += dN(c+2)^T phi_q(c+2), t; a copy of T, rounded, for the gradients. One thread queues copies.
//
//          Shared memory: two each of q, dN, k, v [64,D], maps [D,F], phi_q, phi_k [64,128], T's copy [128,D].
// COST     a row and query head, D = 128: 7 D^2 FLOPs, 5 D bytes. On chip a block of 64 keys takes: tensor cores 1792 clocks,
//          exponentials 1024, shared memory 2800; HBM 2400 where all SMs ask at once.
// NUMERICS as hybrid_fused_backward_keys_sm90.cu.
// LADDER   H200, 8x1024 tokens, 32 heads of 128, 8 KV heads, us; what stage 1 takes with either walk:
//          1 605  the walk over the keys in transfer_loss_fused.cu.
//          2 506  this, with the roles that the backward has. Predicted for the walk: 55; seen by clock stamps: 3500 clocks a block, 56 us,
//                 the gradients' chain again.
//          3 501  less work in it, as in hybrid_fused_backward_keys_sm90.cu.
//          4 353 to 313 with the walk over the rows in three roles; this walk 82 to 80 of it, t by column sums.
//          5 (not kept) roles by sign as in transfer_loss_rows_sm90.cu, two for rows and two for keys; phi_k stays in registers, t comes from
//            a product. Predicted: 50. With its sums 107 after 93 (H200), 112 after 100 (H100): 4300 clocks a block all the same, of which
//            features 1200, made by all four warps of a scheduler at once, and 1000 to 1400 of waits for copies that have no warp to
//            queue them: without the window's registers there is none left.
// SOURCE   arXiv 2410.10254, section 3.1; the roles are derived here.
#include "kernels/transfer_loss/transfer_loss_keys_sm90.cuh"

#include "kernels/common/cuda/early.cuh"
#include "kernels/hybrid_attention/hybrid_keys_gradients.cuh"
#include "kernels/hybrid_attention/hybrid_keys_state.cuh"

namespace lc::kernels {
namespace {

using namespace hybrid_keys;

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

// phi of one tile after another: of block c + 2 of q, or of block c of k.
template <int D, bool kQueries>
__device__ __forceinline__ void make_features(const KeysArgs& args, const KeysRoom<D, false>& room,
                                              KeysBarriers& barriers) {
    const FusedHead head = head_of<false>(args, 0);
    const KeysWalk<false> walk(head, args.in.shape.blocks);
    const WgmmaTile<D, kFusedMap> map = room.map(kQueries ? 0 : 1);
    load_map<D, kWarpgroup>(map, kQueries ? args.in.wq : args.in.wk, kQueries ? head.h : head.hs,
                            threadIdx.x % kWarpgroup);
    fence_async_proxy();
    named_sync<kWarpgroup>(kQueries ? kSecondBarrier : kMapsBarrier);
    for (int c = walk.from; c >= walk.to; --c) {
        const int stage = walk.key_stage(c), parity = walk.key_parity(c);
        (kQueries ? barriers.q_full : barriers.k_full)[stage].wait(parity);
        Barrier& read = kQueries ? barriers.phi_q_free : barriers.phi_k_free;
        make_phi(kQueries ? room.q(stage) : room.k(stage), map, (kQueries ? barriers.q_free : barriers.k_free)[stage],
                 kQueries ? room.phi_q() : room.phi_k(), kQueries ? barriers.phi_q_full : barriers.phi_k_full,
                 [&] { read.wait((walk.step(c) - 1) & 1); });
    }
}

template <int D>
__device__ __forceinline__ void make_map_gradient(const KeysArgs& args, const KeysRoom<D, false>& room,
                                                  KeysBarriers& barriers) {
    const FusedHead head = head_of<false>(args, 0);
    const KeysWalk<false> walk(head, args.in.shape.blocks);
    float dwk[D / 2] = {};
    for (int c = walk.from; c >= walk.to; --c) {
        const int stage = walk.key_stage(c), parity = walk.key_parity(c), turn = walk.step(c) & 1;
        float g[kFusedFeatures / 2];
        barriers.v_full[stage].wait(parity);
        barriers.copy_full.wait(turn);
        begin_dphi(g, room.t());
        wgmma_fence();
        add_dphi<D>(g, room.v(stage), room.copy());
        wgmma_commit();
        wgmma_wait<0>();
        wgmma_settle(g);
        release(barriers.v_free[stage]);
        barriers.copy_free.arrive();
        barriers.phi_k_full.wait(turn);
        put_du(g, room.phi_k(), room.du());
        fence_async_proxy();
        named_sync<kWarpgroup>(kGradientsBarrier);
        barriers.k_full[stage].wait(parity);
        wgmma_fence();
        accumulate<D>(dwk, room.du(), room.k(stage));
        wgmma_commit();
        wgmma_wait<0>();
        wgmma_settle(dwk);
        release(barriers.k_free[stage]);
        barriers.phi_k_free.arrive();
    }
    store_dwk<D>(dwk, args.dwk_parts + head.part() * D * kFusedMap);
}

#endif

template <int D>
__global__ void __launch_bounds__(kKeysThreads, 1) keys_kernel(const __grid_constant__ KeysArgs args) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
    extern __shared__ __align__(kTileAlignment) unsigned char shared[];
    const KeysRoom<D, false> room{reinterpret_cast<__nv_bfloat16*>(shared)};
    KeysBarriers& barriers = room.barriers();
    const int role = warpgroup_index();
    wait_for_predecessor();
    if (threadIdx.x == kState * kWarpgroup) begin_walk(args, head_of<false>(args, 0), room, barriers);
    __syncwarp();
    __syncthreads();
    if (role == kMaps) {
        shrink_registers<88>();
        make_features<D, false>(args, room, barriers);
    } else if (role == kSecond) {
        shrink_registers<88>();
        make_features<D, true>(args, room, barriers);
    } else if (role == kGradients) {
        grow_registers<168>();
        make_map_gradient<D>(args, room, barriers);
    } else {
        grow_registers<168>();
        keep_state<D, false>(args, head_of<false>(args, 0), room, barriers);
    }
#endif
}

}  // namespace

void transfer_loss_keys_sm90(const FusedInputs& in, const HybridAttentionForward& tensors,
                             const FusedRowResults& results, float* dwk_parts, const float* starts, Stream stream) {
    const FusedShape& s = in.shape;
    const int64_t d = tensors.q.size(3);
    const KeysArgs args{.q = head_map(tensors.q),
                        .k = head_map(tensors.k),
                        .v = head_map(tensors.v),
                        .dn = head_map(padded_heads(results.dn, s, d, stream.device)),
                        .dk = {},
                        .dv = {},
                        .in = in,
                        .dz = results.dz,
                        .high = nullptr,
                        .max_part = nullptr,
                        .inverse = nullptr,
                        .key_heads = s.heads,
                        .heads_together = 1,
                        .dwk_parts = dwk_parts,
                        .starts = starts};
    dispatch_head_dim(static_cast<int>(d), [&](auto dim) {
        constexpr int kBytes = KeysTraits<dim(), false>::kBytes;
        launch_early(keys_kernel<dim()>, {.blocks = s.parts(), .threads = kKeysThreads, .shared_bytes = kBytes},
                     cuda::handle_of(stream), args);
        LC_LAUNCHED("transfer_loss", cuda::handle_of(stream));
    });
}

}  // namespace lc::kernels
