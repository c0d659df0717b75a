// Fused hybrid attention on Hopper (sm_90a), backward: the walk over the keys, last block first. wgmma, TMA, warpgroups with roles.
//
// MATHS    hybrid_attention.h. For the keys of block c: the window's rows are blocks c and c+1; T and t hold rows of blocks >= c+2.
// TILING   thread block = (batch entry, query head, segment), one on each SM, blocks of 64 positions in reverse. Warpgroups:
//
//            maps        phi_q(c+2) / Z, then phi_k(c), in one tile                  [64,64] products
//            window      rows of blocks c+1, then c:  s = q k(c)^T, dy v(c)^T -> P / Z, dS
//            gradients   dphi_k = v(c) T^T + t -> du;  dWk^T += du^T k(c)
//                        dv = phi_k T + (P / Z)^T dy, dk = dS^T q + du W^T, which leave through the places of P and dS
//            state       T^T += dy(c+2)^T (phi_q(c+2) / Z), t; a copy of T, rounded, for the gradients. One thread queues copies.
//
//          dN = dy / Z never lies in memory: 1 / Z goes into the exponent of P and into the sums of phi_q's softmax. Where that costs no
//          time a thread block walks several query heads of a KV head, and the copy engine adds the later ones' dk and dv to what the
//          first has stored: of 256 items on 132 SMs each takes two.
//          A tile goes from role to role through its `full` and `free` barriers, so that the roles work on different blocks.
//          Shared memory: 2 q, 2 dy, k, v [64,D], maps [D,F], phi [64,128], T's copy [128,D], P and dS of either block [64,64], du.
// COST     as hybrid_fused_backward_keys.cu. On chip a block of 64 keys takes, D = 128: tensor cores 4864 clocks, exponentials 1536,
//          shared memory 5900.
// NUMERICS as hybrid_fused_backward_keys.cu, but: 1 / sums of features by rcp.approx and features without the shift of their softmax
//          where nothing can overflow (FeatureRows::make); features that were clamped take part in du: their share of it is
//          below 1e-10; gamma enters a weight through the exponent, which is one fma; dN is not rounded, P / Z is. Sums over heads
//          that the copy engine makes are rounded to bf16 after each, in order of the heads. Scores
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
//          5 193  weights made before their places are free. Predicted: 150. By ncu what the window waited for, and with it the gradients,
//                 were numbers of its rows: twice a block 1800 clocks from memory.
//          6 201  those by the copy engine; dy and 1 / Z for dN; t by column sums, where mma.sync had waited for all wgmma under way; two
//                 heads to a thread block (sums over groups 50 to 36). Nobody waited for the window any more, but all for
//                 instructions (8 to 23 % of a role's time), and the gradients for one thread's two divisions at each store.
//          7 186  without those; phi_q and phi_k by one piece of code.
//          8 173  without dWk dv and dk at once: one meeting and one wait a block instead of two. Predicted: 165. The window now waits for
//                 q and dy, whose places are free late.
//          From here on an H100, the whole backward cold (434 with 8):
//          9 431  heads of a thread block follow each other without a meeting; q and dy are free before the last products. Predicted: 425.
//         10 +2   (not kept) both blocks of rows by one piece of the window's code. Predicted: -8.
//         11 +2   (not kept) without dWk du by the maps. Predicted: -35. The gradients, free of a quarter of their work, wait 2000 clocks a
//                 block more for the window, and that 1600 for q: each chain of roles is about as long as any other.
//         12 +60  (not kept) 11 with k and v copied behind T's sum, so that it need not wait for their places: phi_q, T, k, phi_k and du
//                 are then one loop.
//         13 -1   (not kept) a place of its own for phi_q, so that it need not wait for dv, and du over phi_k. Predicted: -30. With dWk the
//                 registers do not suffice.
//         14 +16  (not kept) this walk launched early, beside the end of the walk over the rows. Predicted: -3.
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

template <int D, bool kMap>
__global__ void __launch_bounds__(kKeysThreads, 1) keys_kernel(const __grid_constant__ KeysArgs args) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
    extern __shared__ __align__(kTileAlignment) unsigned char shared[];
    const KeysRoom<D, true> room{reinterpret_cast<__nv_bfloat16*>(shared)};
    KeysBarriers& barriers = room.barriers();
    if (threadIdx.x == kState * kWarpgroup) begin_walk(args, head_of<true>(args, 0), room, barriers);
    __syncwarp();
    __syncthreads();
    // f(head, turn) for the heads of this thread block.
    const auto each_head = [&](auto&& f) {
#pragma unroll 1
        for (int i = 0; i < args.heads_together; ++i) f(head_of<true>(args, i), i);
    };
    const int role = warpgroup_index();
    if (role == kMaps) {
        shrink_registers<88>();
        each_head([&](const FusedHead& head, int turn) { make_features(args, head, turn, room, barriers); });
    } else if (role == kSecond) {
        shrink_registers<104>();
        each_head([&](const FusedHead& head, int turn) { make_window(args, head, turn, room, barriers); });
    } else if (role == kGradients) {
        grow_registers<160>();
        each_head([&](const FusedHead& head, int turn) { make_gradients<D, kMap>(args, head, turn, room, barriers); });
    } else {
        grow_registers<160>();
        each_head([&](const FusedHead& head, int turn) { keep_state(args, head, room, barriers, turn); });
    }
#endif
}

}  // namespace

int fused_keys_sm90_heads_together(const FusedShape& s) {
    const int group = s.heads / s.kv_heads;
    const int64_t places = multiprocessors(), waves = ceil_div(s.parts(), places);
    for (int heads = group; heads > 1; --heads)
        if (group % heads == 0 && ceil_div(s.parts() / heads, places) * heads <= waves) return heads;
    return 1;
}

bool fused_keys_sm90_applies(const HybridAttentionForward& tensors, std::initializer_list<GradSlot> outputs) {
    for (const GradSlot& to : outputs)
        if (to &&
            (to.accumulate() || to.view.dtype != DType::bf16 || !has_dense_rows(to.view) || !hopper_applies({to.view})))
            return false;
    return hopper_applies({tensors.q, tensors.k, tensors.v});
}

void fused_backward_keys_sm90(const FusedKeysArgs& args, const HybridAttentionBackward& a, const GradSlot& dk,
                              const GradSlot& dv, Stream stream) {
    const FusedShape& s = args.in.shape;
    const HybridAttentionForward& tensors = a.forward;
    const int64_t d = tensors.q.size(3);
    const KeysArgs to{.q = head_map(tensors.q),
                      .k = head_map(tensors.k),
                      .v = head_map(tensors.v),
                      .dn = head_map(a.dy),
                      .dk = output_of(dk, stream),
                      .dv = output_of(dv, stream),
                      .in = args.in,
                      .dz = args.results.dz,
                      .high = args.results.high,
                      .max_part = args.results.max_part,
                      .inverse = args.results.inverse,
                      .key_heads = args.key_heads,
                      .heads_together = args.heads_together,
                      .dwk_parts = args.dwk_parts,
                      .starts = args.starts};
    dispatch_head_dim(static_cast<int>(d), [&](auto dim) {
        dispatch_bool(args.dwk_parts != nullptr, [&](auto map) {
            constexpr int kBytes = KeysTraits<dim(), true>::kBytes;
            const auto kernel = keys_kernel<dim(), map()>;
            allow_shared_memory(kernel, kBytes);
            kernel<<<grid_x(s.parts() / to.heads_together), kKeysThreads, kBytes, cuda::handle_of(stream)>>>(to);
            LC_LAUNCHED("hybrid_attention", cuda::handle_of(stream));
        });
    });
}

}  // namespace lc::kernels
