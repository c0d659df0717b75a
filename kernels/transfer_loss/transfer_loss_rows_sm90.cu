// Stage 1 on Hopper (sm_90a): the walk over the rows. wgmma, TMA, warpgroups with roles. When it applies: hybrid_fused.h.
//
// MATHS    transfer_loss.h.
// TILING   as hybrid_fused_backward_rows_sm90.cu, whose features and state it has; the window's role makes y and from it dN:
//
//            window     q(b) [k(b-1), k(b)]^T -> P; N = P [v(b-1), v(b)] + phi_q S; y = N / Z, its loss; dN, dZ
//
//          The target comes as a tile, and dN takes its place. phi_q goes to the window through the place of du and of the rows of dq,
//          which are not wanted here: while the window makes dN(b) the features make phi_k(b-1), and the state grows.
// COST     as transfer_loss_fused.cu.
// NUMERICS as transfer_loss_fused.cu; weights, features and 1 / Z as hybrid_fused_forward_sm90.cu.
// LADDER   H200, 8x1024 tokens, 32 heads of 128, 8 KV heads, us with a cold cache; with gradients the walk over the keys, by
//          transfer_loss_fused.cu, is in it: 1 transfer_loss_fused.cu: loss 252, gradients 612. 2 this: loss 120, gradients 462 (D = 64:
//          469 -> 340). 3 phi_k(b-1) under the window instead of behind it, less code, z by column sums: 252 -> 229 of what is not the
//          walk over the keys; the features 144 registers instead of 136, which spilled: 219. Predicted: 190. ncu: the features are busy
//          four fifths of the time, of which they wait for instructions 15 %; the window waits for phi_q 42 %, the state 63 %.
// SOURCE   arXiv 2410.10254, section 3.1; the roles are derived in hybrid_fused_backward_rows_sm90.cu.
#include "kernels/transfer_loss/transfer_loss_rows_sm90.cuh"

#include "kernels/hybrid_attention/hybrid_roles_scores.cuh"
#include "kernels/hybrid_attention/hybrid_rows_features.cuh"
#include "kernels/hybrid_attention/hybrid_rows_state.cuh"

namespace lc::kernels {
namespace {

using namespace hybrid_rows;

struct LossArgs {
    RowsArgs rows;
    float slope;
    double* loss_parts;
};

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

// N of a block: P [v(b-1), v(b)] + phi_q S.
template <int D, bool Far>
__device__ __forceinline__ void make_numerator(float (&n)[D / 2], const RowsRoom<D>& room, RowsBarriers& barriers,
                                               const RowsWalk& walk, int b, const FragmentA (&p)[8]) {
    const int before = walk.value_stage(b - 1), own = walk.value_stage(b);
    barriers.v_full[own].wait(walk.value_parity(b));
    if constexpr (Far) barriers.far_full.wait(walk.far_step(b) % 2);
    const WgmmaDescriptor v_before = mn_major(room.v(before)), v_own = mn_major(room.v(own));
    wgmma_fence();
#pragma unroll
    for (int k = 0; k < kFusedRows; k += 16) wgmma_rs<Major::MN>(n, p[k / 16], v_before + 64 * k, k > 0);
#pragma unroll
    for (int k = 0; k < kFusedRows; k += 16) wgmma_rs<Major::MN>(n, p[4 + k / 16], v_own + 64 * k, true);
    if constexpr (Far) {
        const WgmmaDescriptor phi = k_major(room.phi_q()), state = mn_major(room.state());
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
__device__ __forceinline__ float compare(const float (&n)[D / 2], const typename RowsTraits<D>::Rows& target,
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
__device__ __forceinline__ void keep_rows(const typename RowsTraits<D>::Rows& dn, __nv_bfloat16* to) {
    constexpr int kLanes = D / 8, kStep = kWarp / kLanes;
    const int lane = threadIdx.x % kWarp, row = threadIdx.x % kWarpgroup / kWarp * 16 + lane / kLanes;
    const int column = lane % kLanes * 8;
    __syncwarp();
#pragma unroll
    for (int i = 0; i < 16; i += kStep)
        *reinterpret_cast<uint4*>(to + (row + i) * D + column) =
            *reinterpret_cast<const uint4*>(dn.chunk(row + i, column));
}

template <int D, Upstream U, bool Far>
__device__ __forceinline__ float make_loss(const LossArgs& args, const FusedHead& head, const RowsRoom<D>& room,
                                           RowsBarriers& barriers, const RowsWalk& walk, int b, float factor,
                                           float log_gamma) {
    constexpr bool kWanted = U == Upstream::made && Far;
    const int side = walk.side(b), row = accumulator_row(), t = b * kFusedRows + row;
    const FusedShape& s = args.rows.rows.in.shape;
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
        if (b > walk.first && threadIdx.x % kWarpgroup == 0)
            RowsCopies<D>{args.rows, head, room, barriers, walk}.keys(b + 1);
        __syncwarp();
        wgmma_wait<0>();
        wgmma_settle(before);
        wgmma_settle(own);
        release(barriers.q_free[side]);
        release(barriers.k_free[walk.stage(b - 1)]);
        total = hybrid_roles::weigh(before, own, factor, log_gamma, b == 0, p);
    }
    float n[D / 2];
    make_numerator<D, Far>(n, room, barriers, walk, b, p);
    if constexpr (Far) total.x += room.far()[row], total.y += room.far()[row + 8];
    const float inverse[2] = {hybrid_roles::reciprocal(total.x), hybrid_roles::reciprocal(total.y)};
    const bool inside[2] = {t < s.length, t + 8 < s.length};
    float dots[2] = {};
    barriers.dy_full.wait(walk.step(b) % 2);
    const float squares = compare<D, kWanted>(n, room.dy(), inverse, inside, args.slope, dots);
    if constexpr (kWanted) {
        dots[0] = quad_sum(dots[0]), dots[1] = quad_sum(dots[1]);
        const int64_t first = (head.item * s.blocks + b) * kFusedRows;
        const FusedRowResults& to = args.rows.rows.results;
        if (quad_lane() == 0) {
            room.dot(side)[row] = dots[0], room.dot(side)[row + 8] = dots[1];
            to.dz[first + row] = -dots[0], to.dz[first + row + 8] = -dots[1];
        }
        fence_async_proxy();
        barriers.made_full.arrive();
        keep_rows<D>(room.dy(), to.dn + first * D);
    } else {
        fence_async_proxy();  // the target is read before the copy engine's next one
        if constexpr (Far) barriers.made_full.arrive();
    }
    barriers.dy_free.arrive();
    return squares;
}

template <int D, Upstream U>
__device__ __forceinline__ void make_losses(const LossArgs& args, const FusedHead& head, const RowsRoom<D>& room,
                                            RowsBarriers& barriers) {
    const RowsWalk walk(head);
    const FusedInputs& in = args.rows.rows.in;
    const float factor = in.shape.scale * kLog2E;
    const float log_gamma = log2f(fmaxf(DeviceMix(in.mix_logit, in.spec, head.h).gamma, kLeastGamma));
    barriers.k_full[walk.stage(walk.first - 1)].wait(walk.parity(walk.first - 1));
    barriers.v_full[walk.value_stage(walk.first - 1)].wait(walk.value_parity(walk.first - 1));
    double squares = 0;
    int b = walk.first;
    for (; b < walk.last && !walk.reads_state(b); ++b)
        squares += make_loss<D, U, false>(args, head, room, barriers, walk, b, factor, log_gamma);
    for (; b < walk.last; ++b) squares += make_loss<D, U, true>(args, head, room, barriers, walk, b, factor, log_gamma);
    squares = warp_sum(squares);
    double* parts = reinterpret_cast<double*>(room.inverse(0));  // 1 / Z stays in registers here
    const int thread = threadIdx.x % kWarpgroup;
    if (thread % kWarp == 0) parts[thread / kWarp] = squares;
    named_sync<kWarpgroup>(kWindowBarrier);
    if (thread == 0) args.loss_parts[head.part()] = (parts[0] + parts[1]) + (parts[2] + parts[3]);
}

#endif

template <int D, Upstream U>
__global__ void __launch_bounds__(kRowsThreads, 1) loss_kernel(const __grid_constant__ LossArgs args) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
    constexpr bool kMap = U == Upstream::made;
    using Registers = RowsRegisters<D, kMap>;
    extern __shared__ __align__(kTileAlignment) unsigned char shared[];
    const RowsRoom<D> room{reinterpret_cast<__nv_bfloat16*>(shared)};
    RowsBarriers& barriers = room.barriers();
    const FusedHead head(args.rows.rows.in.shape);
    const int group = warpgroup_index();
    if (threadIdx.x == kState * kWarpgroup) {
        barriers.init(U);
        const RowsWalk walk(head);
        RowsCopies<D>{args.rows, head, room, barriers, walk}.begin();  // the first tiles come while the maps are loaded
    }
    __syncwarp();
    __syncthreads();
    if (group == kWindow) {
        shrink_registers<Registers::kWindow>();
        make_losses<D, U>(args, head, room, barriers);
    } else if (group == kFeatures) {
        shrink_registers<Registers::kFeatures>();
        make_all_features<D, U>(args.rows.rows, head, room, barriers);
    } else {
        grow_registers<Registers::kState>();
        keep_state<D, U, kMap>(args.rows, head, room, barriers);
    }
#endif
}

}  // namespace

void transfer_loss_rows_sm90(const TransferRowsArgs& a, const TransferLoss& tensors, bool gradients, Stream stream) {
    const CUtensorMap target = head_map(tensors.target);
    const LossArgs args{
        {head_map(tensors.q), head_map(tensors.k), head_map(tensors.v), target, target, a.rows}, a.slope, a.loss_parts};
    dispatch_head_dim(static_cast<int>(tensors.q.size(3)), [&](auto dim) {
        dispatch_bool(gradients, [&](auto wanted) {
            constexpr int kBytes = RowsTraits<dim()>::kBytes;
            const auto kernel = loss_kernel < dim(), wanted() ? Upstream::made : Upstream::none > ;
            allow_shared_memory(kernel, kBytes);
            kernel<<<grid_x(a.rows.in.shape.parts()), kRowsThreads, kBytes, cuda::handle_of(stream)>>>(args);
            LC_LAUNCHED("transfer_loss", cuda::handle_of(stream));
        });
    });
}

}  // namespace lc::kernels
