// The state's role in hybrid_fused_backward_rows_sm90.cu: S and z, dWq; dy.y, and dN if it is asked for; the copies of q, v and dy.
#pragma once
#include "kernels/hybrid_attention/hybrid_rows.cuh"

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

namespace lc::kernels::hybrid_rows {

// Sixteen bytes each of this thread's rows accumulator_row() and eight below.
struct PackPair {
    uint4 upper, lower;
};

// Those rows of a head of y or dy in memory; zeros behind its end.
struct RowPair {
    const __nv_bfloat16 *upper, *lower;
    bool has_upper, has_lower;

    __device__ __forceinline__ RowPair(const AlignedHeads& x, const FusedHead& head, int b, int length) {
        const int64_t t = int64_t{b} * kFusedRows + accumulator_row();
        has_upper = t < length, has_lower = t + 8 < length;
        upper = x.head(head.b, head.h) + t * x.strides[2], lower = upper + 8 * x.strides[2];
    }
    __device__ __forceinline__ PackPair load(int column) const {
        PackPair result{};
        if (has_upper) result.upper = *reinterpret_cast<const uint4*>(upper + column);
        if (has_lower) result.lower = *reinterpret_cast<const uint4*>(lower + column);
        return result;
    }
};

// x.y of two rows, on the diagonals of two products of sixteen rows with sixteen: a product sums over columns in any order, if it is the
// same for both.
struct RowDots {
    Accumulator c[2] = {};

    __device__ __forceinline__ void add(const PackPair& x, const PackPair& y) {
        const FragmentA left{{x.upper.x, x.lower.x, x.upper.y, x.lower.y}};
        const FragmentB right{{y.upper.x, y.upper.y, y.lower.x, y.lower.y}};
        const FragmentA next_left{{x.upper.z, x.lower.z, x.upper.w, x.lower.w}};
        const FragmentB next_right{{y.upper.z, y.upper.w, y.lower.z, y.lower.w}};
        mma(c[0], left, right, 0), mma(c[1], left, right, 1);
        mma(c[0], next_left, next_right, 0), mma(c[1], next_left, next_right, 1);
    }
    // In one lane of each row's four.
    static __device__ __forceinline__ bool has_result() { return quad_lane() == quad_row() / 2; }
    __device__ __forceinline__ float upper() const { return quad_row() % 2 == 0 ? c[0].c[0] : c[0].c[1]; }
    __device__ __forceinline__ float lower() const { return quad_row() % 2 == 0 ? c[1].c[2] : c[1].c[3]; }
};

__device__ __forceinline__ int pack_column(int i) {
    return 32 * i + 8 * quad_lane();
}

__device__ __forceinline__ uint32_t scale_pair(uint32_t pair, float by) {
    const float2 x = unpack_bf16(pair);
    return pack_bf16(x.x * by, x.y * by);
}
__device__ __forceinline__ uint4 scale_pack(const uint4& x, float by) {
    return make_uint4(scale_pair(x.x, by), scale_pair(x.y, by), scale_pair(x.z, by), scale_pair(x.w, by));
}

// This thread's share of y of a block: dy.y for the other roles, dN = dy / Z and dZ = -dN.y for the walk over the keys. Where S and dWq
// leave registers for it (kHeld), loads are queued a block ahead and kept until Z is known; else both steps load a piece at a time.
template <int D, bool kMap>
struct UpstreamRows {
    static constexpr int kPacks = D / 32;
    static constexpr bool kHeld = D == 64 || !kMap;
    PackPair y[kHeld ? kPacks : 1];

    static __device__ __forceinline__ PackPair load_tile(const typename RowsTraits<D>::Rows& tile, int i) {
        const int row = accumulator_row(), column = pack_column(i);
        return {*reinterpret_cast<const uint4*>(tile.chunk(row, column)),
                *reinterpret_cast<const uint4*>(tile.chunk(row + 8, column))};
    }
    __device__ __forceinline__ void load(const RowsArgs& args, const FusedHead& head, int b) {
        if constexpr (!kHeld) return;
        const RowPair from(args.rows.y, head, b, args.rows.in.shape.length);
#pragma unroll
        for (int i = 0; i < kPacks; ++i) y[i] = from.load(pack_column(i));
    }
    __device__ __forceinline__ void make_dots(const RowsArgs& args, const FusedHead& head, const RowsRoom<D>& room,
                                              RowsBarriers& barriers, const RowsWalk& walk, int b) {
        RowDots dots;
        barriers.dy_full.wait(walk.step(b) % 2);
        if constexpr (kHeld) {
#pragma unroll
            for (int i = 0; i < kPacks; ++i) dots.add(load_tile(room.dy(), i), y[i]);
        } else {
            const RowPair from(args.rows.y, head, b, args.rows.in.shape.length);
#pragma unroll 1
            for (int i = 0; i < kPacks; ++i) dots.add(load_tile(room.dy(), i), from.load(pack_column(i)));
        }
        if (RowDots::has_result()) {
            float* to = room.dot(walk.side(b)) + accumulator_row();
            to[0] = dots.upper(), to[8] = dots.lower();
        }
        barriers.dot_full.arrive();
        if (!args.rows.results.dn) barriers.dy_free.arrive();
    }
    __device__ __forceinline__ void divide(const RowsArgs& args, const FusedHead& head, const RowsRoom<D>& room,
                                           RowsBarriers& barriers, const RowsWalk& walk, int b) {
        const FusedShape& s = args.rows.in.shape;
        const int row = accumulator_row();
        const int64_t first = (head.item * s.blocks + b) * kFusedRows + row;
        __nv_bfloat16* to = args.rows.results.dn + first * D;
        const auto part = [&](int i, float upper, float lower) {
            const int column = pack_column(i);
            const PackPair dy = load_tile(room.dy(), i), dn{scale_pack(dy.upper, upper), scale_pack(dy.lower, lower)};
            *reinterpret_cast<uint4*>(to + column) = dn.upper;
            *reinterpret_cast<uint4*>(to + 8 * D + column) = dn.lower;
        };
        barriers.dy_full.wait(walk.step(b) % 2);
        barriers.inverse_full.wait(walk.step(b) % 2);
        const float upper = room.inverse(walk.side(b))[row], lower = room.inverse(walk.side(b))[row + 8];
#pragma unroll 1
        for (int i = 0; i < kPacks; ++i) part(i, upper, lower);
        barriers.dy_free.arrive();
    }
};

// S [F',D] and dWq [D,F] of this warpgroup: features 64 i .. and rows 64 i .. of D.
template <int D>
struct RowsState {
    float s[2][D / 2], dwq[D / 64][kFusedMap / 2];

    // f(element, feature, column) for the elements of S.
    template <class F>
    __device__ __forceinline__ void each(F&& f) {
#pragma unroll
        for (int i = 0; i < 2; ++i)
#pragma unroll
            for (int j = 0; j < D / 2; ++j)
                f(s[i][j], 64 * i + accumulator_row() + j / 2 % 2 * 8, j / 4 * 8 + 2 * quad_lane() + j % 2);
    }
    // S from `from` [F',D] or zero; dWq zero.
    __device__ __forceinline__ void begin(const float* from) {
        each([&](float& x, int feature, int column) { x = from ? from[feature * D + column] : 0; });
#pragma unroll
        for (int i = 0; i < D / 64; ++i)
#pragma unroll
            for (float& x : dwq[i]) x = 0;
    }
    // A bf16 copy for products. By all threads before they arrive at a barrier.
    __device__ __forceinline__ void publish(const WgmmaTile<kFusedFeatures, D>& copy) const {
#pragma unroll
        for (int i = 0; i < 2; ++i)
#pragma unroll
            for (int j = 0; j < D / 16; ++j)
                store_operand(WgmmaTile<kFusedFeatures, D>{copy.data + 64 * i * 64}, wgmma_operand(s[i], j), j);
        fence_async_proxy();
    }
    // Queues S += phi_k^T v.
    __device__ __forceinline__ void add(const FeatureTile& phi_k, const WgmmaTile<kFusedRows, D>& v) {
        const WgmmaDescriptor right = mn_major(v);
        wgmma_fence();
#pragma unroll
        for (int i = 0; i < 2; ++i)
#pragma unroll
            for (int k = 0; k < kFusedRows; k += 16)
                wgmma_ss<Major::MN, Major::MN>(s[i], mn_major(phi_k) + i * FeatureTile::kPanel + 64 * k, right + 64 * k,
                                               true);
        wgmma_commit();
    }
    // Queues dWq += q^T du.
    __device__ __forceinline__ void add_map(const WgmmaTile<kFusedRows, D>& q,
                                            const WgmmaTile<kFusedRows, kFusedMap>& du) {
        const WgmmaDescriptor right = mn_major(du);
        wgmma_fence();
#pragma unroll
        for (int i = 0; i < D / 64; ++i)
#pragma unroll
            for (int k = 0; k < kFusedRows; k += 16)
                wgmma_ss<Major::MN, Major::MN>(dwq[i], mn_major(q) + i * WgmmaTile<kFusedRows, D>::kPanel + 64 * k,
                                               right + 64 * k, true);
        wgmma_commit();
    }
    __device__ __forceinline__ void settle() {
#pragma unroll
        for (int i = 0; i < 2; ++i) wgmma_settle(s[i]);
#pragma unroll
        for (int i = 0; i < D / 64; ++i) wgmma_settle(dwq[i]);
    }
    // dWq to [D,F].
    __device__ __forceinline__ void store_map(float* to) const {
#pragma unroll
        for (int i = 0; i < D / 64; ++i)
#pragma unroll
            for (int j = 0; j < kFusedMap / 2; j += 2)
                *reinterpret_cast<float2*>(to + (64 * i + accumulator_row() + j / 2 % 2 * 8) * kFusedMap + j / 4 * 8 +
                                           2 * quad_lane()) = make_float2(dwq[i][j], dwq[i][j + 1]);
    }
};

// A step of the state: with features that read it, with ones to add. S grows in registers while the last copy of it is still read.
template <int D, bool kMap>
__device__ __forceinline__ void make_state(const RowsArgs& args, const FusedHead& head, const RowsRoom<D>& room,
                                           RowsBarriers& barriers, const RowsWalk& walk, int b, RowsState<D>& state,
                                           UpstreamRows<D, kMap>& upstream) {
    const RowsCopies<D> copies{args, head, room, barriers, walk};
    const bool leads = threadIdx.x % kWarpgroup == 0, far = walk.reads_state(b), grows = walk.grows_state(b);
    const int before = walk.value_stage(b - 1);
    float more = 0;  // of z
    if (leads) copies.prefetch(b + 2);
    __syncwarp();
    if (grows) {
        barriers.v_full[before].wait(walk.value_parity(b - 1));
        barriers.phi_k_full.wait(walk.growth(b) % 2);
        state.add(room.phi_k(), room.v(before));
        ColumnSums sums;
        sums.add(room.phi_k(), [](int) { return 1.0f; });
        more = sums.total();
        wgmma_wait<0>();
        state.settle();
        barriers.phi_k_free.arrive();
    }
    release(barriers.v_free[before]);
    if (args.rows.results.dn) upstream.divide(args, head, room, barriers, walk, b);
    if (b + 1 < walk.last) upstream.load(args, head, b + 1);
    if (leads) copies.upstream(b + 1);
    __syncwarp();
    // Behind 1 / Z the window is done with the dots of the block before, whose place the next block's take.
    if (!args.rows.results.dn) barriers.inverse_full.wait(walk.step(b) % 2);
    if (far) {
        barriers.du_full.wait(walk.far_step(b) % 2);
        if constexpr (kMap) {
            state.add_map(room.q(walk.side(b)), room.du());
            wgmma_wait<0>();
            state.settle();
        }
        release(barriers.du_free);
    }
    if (grows) {  // who read the copy and z in this step is done
        const int feature = threadIdx.x % kWarpgroup;
        room.z().put(feature, room.z().z[feature] + more);
        state.publish(room.state());
        barriers.state_full.arrive();
    }
    release(barriers.q_free[walk.side(b)]);
    if (leads) copies.queries(b + 2), copies.values(b + 1);
    __syncwarp();
    if (b + 1 < walk.last) upstream.make_dots(args, head, room, barriers, walk, b + 1);
}

template <int D, bool kMap>
__device__ __forceinline__ void keep_state(const RowsArgs& args, const FusedHead& head, const RowsRoom<D>& room,
                                           RowsBarriers& barriers) {
    const FusedShape& s = args.rows.in.shape;
    const RowsWalk walk(head);
    const float* starts = head.segment == 0
                              ? nullptr
                              : args.rows.starts + (head.item * (s.segments - 1) + head.segment - 1) * kSumsSize<D>;
    RowsState<D> state;
    UpstreamRows<D, kMap> upstream;
    upstream.load(args, head, walk.first);
    state.begin(starts);
    room.z().begin(kStateBarrier, starts ? starts + kFusedFeatures * D : nullptr);
    if (walk.begins_with_state()) {
        state.publish(room.state());
        barriers.state_full.arrive();
    }
    upstream.make_dots(args, head, room, barriers, walk, walk.first);
#pragma unroll 1
    for (int b = walk.first; b < walk.last; ++b)
        make_state<D, kMap>(args, head, room, barriers, walk, b, state, upstream);
    if constexpr (kMap) state.store_map(args.rows.dwq_parts + head.part() * D * kFusedMap);
}

}  // namespace lc::kernels::hybrid_rows

#endif
