// The features' roles in transfer_loss_rows_sm90.cu, a warpgroup for either sign: its half of phi_q and phi_k, of S and z, of D, du and dWq.
#pragma once
#include "kernels/transfer_loss/transfer_rows.cuh"

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

namespace lc::kernels::transfer_rows {

template <int D, bool kGradients>
struct SignRole {
    const LossArgs& args;
    const FusedHead& head;
    const LossRoom<D>& room;
    LossBarriers& barriers;
    const LossWalk walk;
    const int sign;
    const float by;
    SignSums<D> sums;
    SignMap<D> dwq;
    double da = 0;

    __device__ __forceinline__ SignRole(const LossArgs& args, const FusedHead& head, const LossRoom<D>& room,
                                        LossBarriers& barriers, int sign)
        : args(args), head(head), room(room), barriers(barriers), walk(head), sign(sign), by(sign_factor(sign)) {}

    __device__ __forceinline__ Panel half(const FeatureTile& tile) const { return of_sign(tile, sign); }
    __device__ __forceinline__ void meet() const { named_sync<kWarpgroup>(kSignBarrier + sign); }

    // phi.z of this thread's two rows and this sign, in all lanes of a quad.
    static __device__ __forceinline__ float2 dot(const SignFeatures& phi, const float* z) {
        float sum[2] = {};
        phi.each([&](float2 x, int row_half, int, int column) {
            const float2 total = *reinterpret_cast<const float2*>(z + column);
            sum[row_half] = fmaf(x.x, total.x, fmaf(x.y, total.y, sum[row_half]));
        });
        return make_float2(quad_sum(sum[0]), quad_sum(sum[1]));
    }
    // S, and what the window needs of this sign to use it.
    __device__ __forceinline__ void publish(float2 far) const {
        sums.publish(room.state(), sign);
        if (quad_lane() == 0) {
            room.far(sign)[accumulator_row()] = far.x;
            room.far(sign)[accumulator_row() + 8] = far.y;
        }
        fence_async_proxy();
        barriers.state_full.arrive();
    }

    // Ends with u = k(first-1) W.
    __device__ __forceinline__ void begin(float (&u)[kFusedMap / 2]) {
        const TransferRowsArgs& to = args.to;
        const FusedInputs& in = to.rows.in;
        load_map<D, kWarpgroup>(room.map(sign), sign == 0 ? in.wq : in.wk, sign == 0 ? head.h : head.hs,
                                threadIdx.x % kWarpgroup);
        if (sign == 0)
            reinterpret_cast<uint2*>(room.ones().data)[threadIdx.x % kWarpgroup] = make_uint2(0x3f803f80u, 0x3f803f80u);
        fence_async_proxy();
        named_sync<2 * kWarpgroup>(kMapsBarrier);
        wait_for_predecessor();  // for `starts`; what the window keeps of rows comes after the first state
        sums.begin(head.segment == 0
                       ? nullptr
                       : to.rows.starts + (head.item * (in.shape.segments - 1) + head.segment - 1) * kSumsSize<D>,
                   sign);
        if (walk.begins_with_state()) {
            float queries[kFusedMap / 2];
            SignFeatures phi;
            sums.publish_totals(room.z(0, sign));
            project_queries(queries, walk.first);
            wgmma_wait<0>();
            wgmma_settle(queries);
            phi.make(queries, by);
            phi.store(half(room.features(walk.first)));
            meet();
            publish(dot(phi, room.z(0, sign)));
        }
        project_keys(u, walk.first - 1);
        wgmma_wait<0>();
        wgmma_settle(u);
        release(barriers.k_free[walk.stage(walk.first - 1)]);
    }

    __device__ __forceinline__ void project_queries(float (&u)[kFusedMap / 2], int b) const {
        const int side = walk.side(b);
        barriers.q_full[side].wait(walk.turn(b));
        hybrid_roles::project<D>(u, room.q(side), room.map(0));
    }
    __device__ __forceinline__ void project_keys(float (&u)[kFusedMap / 2], int b) const {
        const int stage = walk.stage(b);
        barriers.k_full[stage].wait(walk.parity(b));
        hybrid_roles::project<D>(u, room.k(stage), room.map(1));
    }

    // du of this sign from g = dN S^T, to which dZ z comes, through the softmax of phi_q(b), over which it comes to lie.
    __device__ __forceinline__ void make_du(float (&g)[kFusedMap / 2], const float2& dz, int b) {
        const Panel panel = half(room.features(b));
        SignFeatures phi;
        phi.load(panel);
        const float shift[2] = {dz.x, dz.y};
        const float* z = room.z(walk.far_step(b) % 2, sign);
        float dots[2] = {};
        phi.each([&](float2 x, int row_half, int at, int column) {
            const float2 total = *reinterpret_cast<const float2*>(z + column);
            g[at] = fmaf(shift[row_half], total.x, g[at]), g[at + 1] = fmaf(shift[row_half], total.y, g[at + 1]);
            dots[row_half] = fmaf(x.x, g[at], fmaf(x.y, g[at + 1], dots[row_half]));
        });
        const float2 both = make_float2(quad_sum(dots[0]), quad_sum(dots[1]));
        if (quad_lane() == 0) da -= both.x + both.y;
        put_du(g, phi, both, sign, panel);
    }

    // From u = k(b-1) W phi_k(b-1), with which S grows in registers while its last copy is still read; then phi_q(b+1) in its place, and
    // phi_q.z.
    __device__ __forceinline__ float2 make_features(float (&u)[kFusedMap / 2], int b) {
        const int value = walk.value_stage(b - 1);
        const Panel panel = half(room.features(b + 1));
        float* z = room.z(walk.far_step(b + 1) % 2, sign);
        SignFeatures phi;
        float queries[kFusedMap / 2];
        phi.make(u, by);
        if (kGradients && walk.far_step(b) > 0) barriers.du_free.wait(walk.far_step(b) % 2 ^ 1);  // du(b-1) lies there
        phi.store(panel);
        fence_async_proxy();
        meet();
        barriers.v_full[value].wait(walk.value_parity(b - 1));
        sums.add(panel, room.v(value), room.ones());
        project_queries(queries, b + 1);
        wgmma_wait<0>();
        wgmma_settle(queries);
        sums.settle();
        sums.publish_totals(z);
        phi.make(queries, by);
        meet();
        phi.store(panel);
        return dot(phi, z);
    }

    // The gradient's part of a step that reads the state: g, whose product ends the last copy's use.
    __device__ __forceinline__ void make_gradient(float (&g)[kFusedMap / 2]) const {
        const WgmmaDescriptor left = k_major(room.target()), right = k_major(room.state(), kFusedMap * sign);
        wgmma_fence();
#pragma unroll
        for (int k = 0; k < D; k += 16)
            wgmma_ss<Major::K>(g, left + k_offset<typename LossTraits<D>::Rows>(k),
                               right + k_offset<typename LossTraits<D>::State>(k), k > 0);
        wgmma_commit();
        wgmma_wait<0>();
        wgmma_settle(g);
    }

    // Takes u = k(b-1) W, leaves k(b) W but in the last step.
    template <bool Far, bool Grows>
    __device__ __forceinline__ void step(float (&u)[kFusedMap / 2], int b) {
        constexpr bool kLast = Far && !Grows;
        const int value = walk.value_stage(b - 1), side = walk.side(b);
        float g[kFusedMap / 2];
        float2 far, dz;
        if constexpr (Grows)
            far = make_features(u, b);
        else
            barriers.v_full[value].wait(walk.value_parity(b - 1));
        release(barriers.v_free[value]);
        if constexpr (kGradients) barriers.target_full.wait(walk.step(b) % 2);
        if constexpr (Far) {
            barriers.made_full.wait(walk.far_step(b) % 2);
            if constexpr (kGradients) {
                make_gradient(g);
                dz = make_float2(room.dz()[accumulator_row()], room.dz()[accumulator_row() + 8]);
            }
        }
        if constexpr (kGradients) release(barriers.target_free);
        if constexpr (Grows) {
            meet();  // who read the last copy is done
            publish(far);
        }
        if constexpr (kGradients && Far) {
            make_du(g, dz, b);
            fence_async_proxy();
            barriers.du_full.arrive();
            barriers.du_full.wait(walk.far_step(b) % 2);
            dwq.add(room.q(side), room.features(b), sign);
        }
        if constexpr (!Far) barriers.q_full[side].wait(walk.turn(b));
        if constexpr (!kLast) project_keys(u, b);
        wgmma_wait<0>();
        if constexpr (!kLast) {
            wgmma_settle(u);
            release(barriers.k_free[walk.stage(b)]);
        }
        if constexpr (kGradients && Far) {
            wgmma_settle(dwq.w);
            if constexpr (!kLast) release(barriers.du_free);  // the last du's place is asked for no more
        }
        release(barriers.q_free[side]);
    }

    __device__ __forceinline__ void run() {
        float u[kFusedMap / 2];
        begin(u);
        hybrid_roles::each_step(walk, [&](int b, auto far, auto grows) { step<far(), grows()>(u, b); });
        if constexpr (!kGradients) return;
        named_sync<2 * kWarpgroup>(kMapsBarrier);  // nobody reads features any more
        da = warp_sum(da);
        const int thread = threadIdx.x % kWarpgroup;
        if (thread % kWarp == 0) room.sums(sign)[thread / kWarp] = da;
        const FusedRowsArgs& to = args.to.rows;
        dwq.store(to.dwq_parts + head.part() * D * kFusedMap, sign, reinterpret_cast<float*>(room.features(1).data),
                  kMapsBarrier);
        named_sync<2 * kWarpgroup>(kMapsBarrier);
        if (sign != 0 || thread != 0) return;
        double total = 0;
        for (int i = 0; i < 2 * kWarpgroup / kWarp; ++i) total += room.sums(0)[i];
        to.da_parts[head.part()] = total;
    }
};

}  // namespace lc::kernels::transfer_rows

#endif
