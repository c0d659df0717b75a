// Fused hybrid attention on Hopper (sm_90a): forward. wgmma, TMA, warpgroups with roles. When it applies: hybrid_fused.h.
//
// MATHS    hybrid_attention.h, transposed: y^T = (S^T phi_q^T + v^T P^T) / Z. The state S^T [D,F'] stays in registers, and as it
//          stands, rounded, it is the left operand of the next product: no copy of it in shared memory.
// TILING   thread block = (batch entry, query head, segment), one on each SM, blocks of 64 positions in order. Warpgroups:
//
//            maps       phi_q(b), phi_q.z; phi_k(b-1)                            [64,64] products
//            scores     q(b) [k(b-1), k(b)]^T -> P, 1 / Z
//            outputs    y^T = v(b-1)^T P^T + v(b)^T P^T + S^T phi_q^T; S^T += v(b-1)^T phi_k(b-1): 64 of D each. One sums up z,
//                       one thread queues copies, y leaves through the place of v(b-1).
//
//          A tile goes from role to role through its `full` and `free` barriers, so that the roles work on different blocks.
//          Shared memory: 2 q, 3 k, 3 v [64,D], maps [D,F], 2 phi_q, phi_k, P [64,128].
// COST     as hybrid_fused_forward.cu. On chip a block of 64 rows takes, D = 128: tensor cores 2560 clocks, exponentials 1536,
//          shared memory 3100; seen at 8x1024x32: 5000, of which a tenth is the start of a walk.
// NUMERICS as hybrid_fused_forward.cu, but: 1 / Z and the scales of features by rcp.approx (1 ulp); gamma enters through the
//          exponent; the exponent of a weight is one fma, so that a weight may pass gamma by rounding; z enters phi_q.z as two
//          bf16 numbers. Features are made without the shift of their softmax where nothing can overflow or fall below the
//          least feature (FeatureRows::make).
// LADDER   H200, 8x1024 tokens, 32 heads of 128, 8 KV heads, us, one call after the other (bench, with a cold cache: 102):
//          1 230  hybrid_fused_forward.cu: mma.sync, three barriers a block for all warps.
//          2 198  (H100) its products with wgmma, a warpgroup a product, the same barriers: waiting, not multiplying, took the time.
//          3 148  roles. Each runs four warps, one on each scheduler: what counts is the longest chain of a role, here the maps.
//          4 152  phi_q.z and sums of weights by mma.sync, no divisions: fewer instructions, but an array indexed at run time had
//                 gone to local memory, and the copies' thread waited for q in the middle of the scores.
//          5 121  that mended; q twice, copies queued by the outputs, two blocks ahead.
//          6 102  maps: the projection of k under the store of phi_q, no shift; 1 / Z made once a row; y by the copy engine.
//          7 100  z summed by the outputs, the maps' loads at once and by the maps alone.
//          8  96  (99 in that run without) phi_q's projection queued a block ahead; features without a branch between rows and without
//                 spills, the cuts without int64, which bought nothing here.
//          Lost, same H200, where 7 took 98: two groups that make P, phi_q and phi_k of every other block (meant for 3300 clocks a block
//          and 75 us): 119; with z by the cores 116; each feature map through the same instructions 113; with the features of 8 105.
//          Both groups wait for z, which the other's block ends with. z and the copies of q and k by the scores: 104 and 105 (with and
//          without the projection ahead). z by the cores, chains of mma cut in four: 99.6 and 99.5. Not the maps alone bind, then: a
//          change of one role moves the time by a few percent. Clock stamps at each barrier slow the kernel by half and decide nothing.
//          With the sums of hybrid_fused_segments_sm90.cu: 2x4096 173 -> 127, 1x32768 651 -> 488, 1x1024 36.3 -> 34.0.
//          Going on from a state, 1x16384: 343 as against 338 for a whole sequence (the chunked form, before: 6482); 1x2048: 67 and 62.
//          9 launched early: its first copies and maps under the end of the sums. H100, the same bits; meant to save 3 us. 1x1024 38.6 ->
//            33.6, 1x2048 53.7 -> 49.3 (8 heads 35.4 -> 31.2), 2x4096 134.0 -> 132.2. Up to 1024 positions of few heads without a walk:
//            hybrid_short_forward_sm90.cu.
// SOURCE   arXiv 2410.10254; the roles are derived here.
#include "kernels/common/cuda/early.cuh"
#include "kernels/common/cuda/hopper.h"
#include "kernels/hybrid_attention/hybrid_fused.h"
#include "kernels/hybrid_attention/hybrid_roles_maps.cuh"
#include "kernels/hybrid_attention/hybrid_roles_outputs.cuh"
#include "kernels/hybrid_attention/hybrid_roles_scores.cuh"

namespace lc::kernels {
namespace {

using namespace hybrid_roles;

template <int D>
__global__ void __launch_bounds__(ForwardTraits<D>::kThreads, 1)
    forward_kernel(const __grid_constant__ ForwardArgs args) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
    using Tr = ForwardTraits<D>;
    extern __shared__ __align__(kTileAlignment) unsigned char shared[];
    const ForwardRoom<D> room{reinterpret_cast<__nv_bfloat16*>(shared)};
    ForwardBarriers& barriers = room.barriers();
    const FusedHead head(args.in.shape);
    const int group = warpgroup_index();
    if (threadIdx.x == kOutputs * kWarpgroup) {
        barriers.init(Tr::kOutputThreads);
        const Walk walk(head);
        Copies<D>{args, head, room, barriers, walk}.begin();  // the first tiles come while the maps are loaded
    }
    __syncwarp();
    __syncthreads();
    if (group == kMaps) {
        if constexpr (D == 128) shrink_registers<104>();
        load_map<D, kWarpgroup>(room.map(0), args.in.wq, head.h, threadIdx.x % kWarpgroup);
        load_map<D, kWarpgroup>(room.map(1), args.in.wk, head.hs, threadIdx.x % kWarpgroup);
        fence_async_proxy();
        named_sync<kWarpgroup>(kMapsBarrier);
        const Walk walk(head);
        float u[kFusedMap / 2];
        if (walk.reads_state(walk.first)) project_query(u, room, barriers, walk, walk.first);
        each_step(walk,
                  [&](int b, auto far, auto grows) { make_features<D, far(), grows()>(room, barriers, walk, b, u); });
    } else if (group == kScores) {
        if constexpr (D == 128) shrink_registers<104>();
        make_weights<D>(args, head, room, barriers);
    } else {
        if constexpr (D == 128) grow_registers<152>();
        make_outputs<D>(args, head, room, barriers, group - kOutputs);
    }
#endif
}

}  // namespace

void hybrid_fused_forward_sm90(const HybridAttentionForward& a, Stream stream) {
    if (hybrid_short_covers(a)) return hybrid_short_forward_sm90(a, stream);
    clear_result(a.y, stream);
    FusedInputs in(a);
    in.shape.segments = segments_of(in.shape, a.q.device);
    const int64_t head_dim = a.q.size(3);
    const SegmentStarts starts(in, head_dim, stream);
    const ForwardArgs args{head_map(a.q),
                           head_map(a.k),
                           head_map(a.v),
                           head_map(a.y),
                           in,
                           {device_data<float>(a.s_in), device_data<float>(a.z_in)},
                           device_data<float>(a.s_out),
                           device_data<float>(a.z_out),
                           starts.of_keys()};
    dispatch_head_dim(static_cast<int>(head_dim), [&](auto d) {
        using Tr = ForwardTraits<d()>;
        launch_early(forward_kernel<d()>,
                     {.blocks = in.shape.parts(),
                      .threads = Tr::kThreads,
                      .shared_bytes = Tr::kBytes,
                      .early = args.starts != nullptr},
                     cuda::handle_of(stream), args);
        LC_LAUNCHED("hybrid_attention", cuda::handle_of(stream));
    });
}

}  // namespace lc::kernels
