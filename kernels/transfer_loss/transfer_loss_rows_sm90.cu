// Stage 1 on Hopper (sm_90a): the walk over the rows. wgmma, TMA, warpgroups with roles. When it applies: hybrid_fused.h.
//
// MATHS    transfer_loss.h.
// TILING   thread block = (batch entry, query head, segment), one on each SM, blocks of 64 positions in order. Warpgroups:
//
//            window     q(b) [k(b-1), k(b)]^T -> P; N = P [v(b-1), v(b)] + phi_q S; y = N / Z, its loss; dN, dZ
//            positive,  each for the features of its sign: phi_k(b-1), S += phi_k^T v(b-1) and z in registers; phi_q(b+1), phi_q.z;
//            negative   then g = dN S^T + dZ z -> D, its share of du; half of dWq += q^T du; a bf16 copy of S, once dN tells that the
//                       last was read
//            copies     a warp each for q, k, v and the target
//
//          Softmaxes of the two signs have nothing in common but u, which either makes for itself (512 of 4096 tensor clocks); the
//          signs run one piece of code side by side, and S and dWq, cut in two, leave registers for it. dN takes the target's place, phi_q
//          that of phi_k, du that of phi_q.
//          Shared memory: 2 q, 3 k, 2 v, the target [64,D], maps [D,F], S [F',D], features of two kinds [64,128].
// COST     as transfer_loss_fused.cu. On chip a block of 64 rows takes, D = 128: tensor cores 4096 clocks, exponentials 1536.
// NUMERICS as transfer_loss_fused.cu; weights and 1 / Z as hybrid_fused_forward_sm90.cu, features without a shift where no |u| passes 10.
//          Features that were clamped take part in du: their share of it is below 1e-10. The signs' shares of du are rounded each.
// LADDER   8x1024 tokens, 32 heads of 128, 8 KV heads, us with a cold cache: loss; with dWq, which is this walk and its sums.
//          1 transfer_loss_fused.cu: loss 252. 2 roles: window, features, state: loss 120, and with a walk over the keys 462.
//          3 phi_k(b-1) under the window, less code, z by column sums, more registers for features: loss 112, dWq 216 (H200); 115, 226
//          (H100). The features are busy four fifths of the time, of which they wait for instructions 15 %.
//          4 roles by sign, copies by a thread of theirs. Predicted: 4500 clocks a block and 105. H200: 122, 204. The window waits 3700 clocks
//            of a block for v, whose copy that thread asks for late. With k's projection under dWq 122, 220 (H100); asking for tiles in
//            the L2 cache as well 127, 231: the thread is its group's slowest.
//          5 this, copies by a group of their own: 122, 209 (H100; D = 64 86, 141 after 91, 147); the loss alone lost by it. 9400 clocks
//            a block, and 50000 before the fourth block, code that is new to the multiprocessor and first tiles among them. By clock
//            stamps the window works 6500 of them (weights 2050, loss and dN 1950: four to five clocks an instruction with three warps
//            a scheduler, which issues in one of three clocks) and waits for S, v and q; the signs work 7300 (phi 1000 and 800, du
//            1150). For instructions they wait 2 to 4 %. All of stage 1 on an H200: 311 -> 272, 1x1024 125 -> 91, 1x32768 1355 -> 1301.
//          6 (not kept) one form of a step for all blocks, with S = 0 in the first two: 127, 216; 1x32768 842 after 875, D = 64 158.
// SOURCE   arXiv 2410.10254, section 3.1; the roles are derived here.
#include "kernels/transfer_loss/transfer_rows_features.cuh"

namespace lc::kernels {
namespace {

using namespace transfer_rows;

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

// N of a block: P [v(b-1), v(b)] + phi_q S.
template <int D, bool Far>
__device__ __forceinline__ void make_numerator(float (&n)[D / 2], const LossRoom<D>& room, LossBarriers& barriers,
                                               const LossWalk& walk, int b, const FragmentA (&p)[8]) {
    const int before = walk.value_stage(b - 1), own = walk.value_stage(b);
    barriers.v_full[own].wait(walk.value_parity(b));
    if constexpr (Far) barriers.state_full.wait(walk.far_step(b) % 2);
    const WgmmaDescriptor v_before = mn_major(room.v(before)), v_own = mn_major(room.v(own));
    wgmma_fence();
#pragma unroll
    for (int k = 0; k < kFusedRows; k += 16) wgmma_rs<Major::MN>(n, p[k / 16], v_before + 64 * k, k > 0);
#pragma unroll
    for (int k = 0; k < kFusedRows; k += 16) wgmma_rs<Major::MN>(n, p[4 + k / 16], v_own + 64 * k, true);
    if constexpr (Far) {
        const WgmmaDescriptor phi = k_major(room.features(b)), state = mn_major(room.state());
#pragma unroll
        for (int k = 0; k < kFusedFeatures; k += 16)
            wgmma_ss<Major::MN>(n, phi + k_offset<FeatureTile>(k), state + 64 * k, true);
    }
    wgmma_commit();
    wgmma_wait<0>();
    wgmma_settle(n);
    release(barriers.v_free[before]);
}

// y and the squares of its differences from the target, which this thread returns; where dN is wanted, it takes the target's place, and
// `dots` are dN.y of the rows accumulator_row() and eight below.
template <int D, bool kWanted>
__device__ __forceinline__ float compare(const float (&n)[D / 2], const typename LossTraits<D>::Rows& target,
                                         const float (&inverse)[2], const bool (&inside)[2], float slope,
                                         float (&dots)[2]) {
    float squares = 0;
#pragma unroll
    for (int i = 0; i < D / 16; ++i) {
        FragmentA pairs = load_wgmma_a(target, 0, 16 * i);
#pragma unroll
        for (int r = 0; r < 4; ++r) {
            const int half = r % 2;
            const float2 wanted = unpack_bf16(pairs.r[r]);
            const float2 y = make_float2(n[8 * i + 2 * r] * inverse[half], n[8 * i + 2 * r + 1] * inverse[half]);
            const float2 difference = make_float2(y.x - wanted.x, y.y - wanted.y);
            if (inside[half]) squares = fmaf(difference.x, difference.x, fmaf(difference.y, difference.y, squares));
            if constexpr (!kWanted) continue;
            const float by = inside[half] ? slope * inverse[half] : 0.0f;
            pairs.r[r] = pack_bf16(by * difference.x, by * difference.y);
            const float2 rounded = unpack_bf16(pairs.r[r]);
            dots[half] = fmaf(rounded.x, y.x, fmaf(rounded.y, y.y, dots[half]));
        }
        if constexpr (kWanted) store_operand(target, pairs, i);
    }
    return squares;
}

// This warp's rows of dN to memory [64,D].
template <int D>
__device__ __forceinline__ void keep_rows(const typename LossTraits<D>::Rows& dn, __nv_bfloat16* to) {
    constexpr int kLanes = D / 8, kStep = kWarp / kLanes;
    const int lane = threadIdx.x % kWarp, row = threadIdx.x % kWarpgroup / kWarp * 16 + lane / kLanes;
    const int column = lane % kLanes * 8;
    __syncwarp();
#pragma unroll
    for (int i = 0; i < 16; i += kStep)
        *reinterpret_cast<uint4*>(to + (row + i) * D + column) =
            *reinterpret_cast<const uint4*>(dn.chunk(row + i, column));
}

template <int D, bool kGradients, bool Far>
__device__ __forceinline__ float make_loss(const LossArgs& args, const FusedHead& head, const LossRoom<D>& room,
                                           LossBarriers& barriers, const LossWalk& walk, int b, float factor,
                                           float log_gamma) {
    constexpr bool kWanted = kGradients && Far;
    const int side = walk.side(b), row = accumulator_row(), t = b * kFusedRows + row;
    const FusedShape& s = args.to.rows.in.shape;
    FragmentA p[8];
    float2 total;
    {
        float before[32], own[32];
        barriers.q_full[side].wait(walk.turn(b));
        barriers.k_full[walk.stage(b)].wait(walk.parity(b));
        wgmma_fence();
        multiply_rows<kFusedRows>(before, room.q(side), 0, room.k(walk.stage(b - 1)));
        multiply_rows<kFusedRows>(own, room.q(side), 0, room.k(walk.stage(b)));
        wgmma_commit();
        wgmma_wait<0>();
        wgmma_settle(before);
        wgmma_settle(own);
        release(barriers.q_free[side]);
        release(barriers.k_free[walk.stage(b - 1)]);
        total = hybrid_roles::weigh(before, own, factor, log_gamma, b == 0, p);
    }
    float n[D / 2];
    make_numerator<D, Far>(n, room, barriers, walk, b, p);
    if constexpr (Far) {
        if constexpr (!kGradients) barriers.made_full.arrive();
        total.x += room.far(0)[row] + room.far(1)[row], total.y += room.far(0)[row + 8] + room.far(1)[row + 8];
    }
    const float inverse[2] = {hybrid_roles::reciprocal(total.x), hybrid_roles::reciprocal(total.y)};
    const bool inside[2] = {t < s.length, t + 8 < s.length};
    float dots[2] = {};
    barriers.target_full.wait(walk.step(b) % 2);
    const float squares = compare<D, kWanted>(n, room.target(), inverse, inside, args.to.slope, dots);
    if constexpr (kWanted) {
        dots[0] = quad_sum(dots[0]), dots[1] = quad_sum(dots[1]);
        const int64_t first = (head.item * s.blocks + b) * kFusedRows;
        const FusedRowResults& to = args.to.rows.results;
        if (quad_lane() == 0) {
            room.dz()[row] = to.dz[first + row] = -dots[0];
            room.dz()[row + 8] = to.dz[first + row + 8] = -dots[1];
        }
        fence_async_proxy();
        barriers.made_full.arrive();
        keep_rows<D>(room.target(), to.dn + first * D);
    } else {
        fence_async_proxy();  // the target is read before the copy engine's next one
    }
    barriers.target_free.arrive();
    return squares;
}

template <int D, bool kGradients>
__device__ __forceinline__ void make_losses(const LossArgs& args, const FusedHead& head, const LossRoom<D>& room,
                                            LossBarriers& barriers) {
    const LossWalk walk(head);
    const FusedInputs& in = args.to.rows.in;
    const float factor = in.shape.scale * kLog2E;
    const float log_gamma = log2f(fmaxf(DeviceMix(in.mix_logit, in.spec, head.h).gamma, kLeastGamma));
    barriers.k_full[walk.stage(walk.first - 1)].wait(walk.parity(walk.first - 1));
    barriers.v_full[walk.value_stage(walk.first - 1)].wait(walk.value_parity(walk.first - 1));
    double squares = 0;
    int b = walk.first;
    for (; b < walk.last && !walk.reads_state(b); ++b)
        squares += make_loss<D, kGradients, false>(args, head, room, barriers, walk, b, factor, log_gamma);
    for (; b < walk.last; ++b)
        squares += make_loss<D, kGradients, true>(args, head, room, barriers, walk, b, factor, log_gamma);
    squares = warp_sum(squares);
    double* parts = reinterpret_cast<double*>(room.far(0));  // read for the last time
    const int thread = threadIdx.x % kWarpgroup;
    named_sync<kWarpgroup>(kWindowBarrier);
    if (thread % kWarp == 0) parts[thread / kWarp] = squares;
    named_sync<kWarpgroup>(kWindowBarrier);
    wait_for_predecessor();
    if (thread == 0) args.to.loss_parts[head.part()] = (parts[0] + parts[1]) + (parts[2] + parts[3]);
}

#endif

template <int D, bool kGradients>
__global__ void __launch_bounds__(kThreads, 1) loss_kernel(const __grid_constant__ LossArgs args) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
    extern __shared__ __align__(kTileAlignment) unsigned char shared[];
    const LossRoom<D> room{reinterpret_cast<__nv_bfloat16*>(shared)};
    LossBarriers& barriers = room.barriers();
    const FusedHead head(args.to.rows.in.shape);
    const int role = warpgroup_index();
    if (threadIdx.x == 0) barriers.init(kGradients);
    __syncthreads();
    if (role == kWindow) {
        grow_registers<kWindowRegisters>();
        make_losses<D, kGradients>(args, head, room, barriers);
    } else if (role == kCopies) {
        shrink_registers<kCopyRegisters>();
        if (threadIdx.x % kWarp == 0)
            LossCopies<D>{args, head, room, barriers, LossWalk(head)}.run(threadIdx.x % kWarpgroup / kWarp);
    } else {
        grow_registers<kSignRegisters>();
        SignRole<D, kGradients>(args, head, room, barriers, role - kPositive).run();
    }
#endif
}

}  // namespace

void transfer_loss_rows_sm90(const TransferRowsArgs& a, const TransferLoss& tensors, bool gradients, Stream stream) {
    const LossArgs args{head_map(tensors.q), head_map(tensors.k), head_map(tensors.v), head_map(tensors.target), a};
    dispatch_head_dim(static_cast<int>(tensors.q.size(3)), [&](auto dim) {
        dispatch_bool(gradients, [&](auto wanted) {
            constexpr int kBytes = LossTraits<dim()>::kBytes;
            const auto kernel = loss_kernel<dim(), wanted()>;
            launch_early(kernel,
                         {.blocks = a.rows.in.shape.parts(),
                          .threads = kThreads,
                          .shared_bytes = kBytes,
                          .early = a.rows.starts != nullptr},
                         cuda::handle_of(stream), args);
            LC_LAUNCHED("transfer_loss", cuda::handle_of(stream));
        });
    });
}

}  // namespace lc::kernels
