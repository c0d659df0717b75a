// Stage 1 on tensor cores: loss of hybrid attention against the teacher, and the gradients of its maps, in two walks.
//
// MATHS    transfer_loss.h.
// TILING   thread block = (batch entry, query head), two warpgroups, blocks of 64 positions; one thread block an SM
//
//          rows, in order of the blocks: the forward (hybrid_fused_forward.cu), and behind its barrier [3]
//                   N as there, y = N / Z               loss, dy = c (y - target), dN = dy / Z, shares of dZ = -dN.y
//            [4]    dphi_q = dN S^T + dZ z              shares of phi_q.dphi_q    S += phi_k(b-1)^T v(b-1)
//            [5]    du_q, D
//            [6]    dWq += q^T du_q
//
//          keys, last block c first: T, t hold rows of blocks >= c+2
//            load   q(c+2), dN(c+2), dZ, k(c), v(c)     under step c+1
//            [1]    phi_q(c+2): warpgroup 0             phi_k(c): warpgroup 1
//            [2]    T += phi_q^T dN, t                  T's copy
//            [3]    dphi_k = v T^T + t                  shares of phi_k.dphi_k
//            [4]    du_k
//            [5]    dWk += k^T du_k
//
//          [n]: barriers. y is never stored; dN and dZ of the first two blocks, which no key sees linearly, are not kept.
// COST     a row and query head, D = 128: 20 D^2 FLOPs, 12 D bytes.
// NUMERICS as hybrid_fused_forward.cu; y is not rounded before the loss and dN. dN and du are rounded to bf16 as operands, dZ is
//          made from dN as rounded. Squares of a block's rows are f32 sums of 32 a thread, everything beyond is f64.
// LADDER   1 mma.sync. 2 this: wgmma, as the forward.
// SOURCE   arXiv 2410.10254, section 3.1; the fusion is derived in transfer_loss.h.
#include "kernels/transfer_loss/transfer_loss_fused.h"

#include <optional>

#include "kernels/common/cuda/sum.cuh"
#include "kernels/hybrid_attention/hybrid_fused.h"
#include "kernels/hybrid_attention/hybrid_fused_steps.cuh"
#include "kernels/hybrid_attention/hybrid_fused_sums.cuh"

namespace lc::kernels {
namespace {

struct TransferArgs {
    FusedInputs in;
    AlignedHeads target;
    float slope;  // dy = slope (y - target)
    FusedRowResults results;
    double *loss_parts, *da_parts;  // [items]: sum of squares; sum of D
    float *dwq_parts, *dwk_parts;   // [items,D,F]
};

template <int D>
struct RowsRoom {
    RowTile<D> q, k, v, dn;  // 1, 2, 2, 1
    StateTile<D> state;
    MapTile<D> wq, wk;
    FeatureTile phi_q, phi_k;
    WindowWeights p;
    DuTile du;
    double* sums;
    float4* dots;
    float *z, *high, *sum, *far, *dz;  // dz: [2][64], by the warpgroups' halves of D
    static constexpr int kBytes = 6 * RowTile<D>::kBytes + StateTile<D>::kBytes + 2 * MapTile<D>::kBytes +
                                  2 * FeatureTile::kBytes + WindowWeights::kBytes + DuTile::kBytes +
                                  2 * kWarps * int{sizeof(double)} +
                                  (kFusedFeatures + 11 * kFusedRows) * int{sizeof(float)};
    static_assert(kBytes <= kFusedSharedBytes);

    explicit __device__ RowsRoom(SharedRoom room)
        : q(room.tiles<RowTile<D>>()),
          k(room.tiles<RowTile<D>>(2)),
          v(room.tiles<RowTile<D>>(2)),
          dn(room.tiles<RowTile<D>>()),
          state(room.tiles<StateTile<D>>()),
          wq(room.tiles<MapTile<D>>()),
          wk(room.tiles<MapTile<D>>()),
          phi_q(room.tiles<FeatureTile>()),
          phi_k(room.tiles<FeatureTile>()),
          p(room.tiles<WindowWeights>()),
          du(room.tiles<DuTile>()),
          sums(room.numbers<double>(2 * kWarps)),
          dots(room.numbers<float4>(kFusedRows)),
          z(room.numbers(kFusedFeatures)),
          high(room.numbers(2 * kFusedRows)),
          sum(room.numbers(2 * kFusedRows)),
          far(room.numbers(kFusedRows)),
          dz(room.numbers(2 * kFusedRows)) {}
};

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

// dZ of a row from the shares of the halves of D.
__device__ __forceinline__ float row_dz(const float* dz, int row) {
    return dz[row] + dz[kFusedRows + row];
}

// The teacher's output at this thread's elements of an OutputTile, fetched ahead.
template <int D>
struct TargetTile {
    uint32_t pairs[2][D / 16];

    __device__ __forceinline__ void load(const TransferArgs& args, const FusedHead& head, int64_t first) {
        const Place place;
        const __nv_bfloat16* from = args.target.head(head.b, head.h) + OutputTile<D>::column0() + place.column;
        place.each_row([&](int half, int row) {
            const bool inside = first + row < args.in.shape.length;
#pragma unroll
            for (int n = 0; n < D / 16; ++n)
                pairs[half][n] =
                    inside ? *reinterpret_cast<const uint32_t*>(from + (first + row) * args.target.strides[2] + 8 * n)
                           : 0u;
        });
    }
};

// From N: the squares of y - target and, for gradients, dN and shares of dZ. Returns this thread's sum of squares.
template <int D, bool kGradients>
__device__ __forceinline__ float make_upstream(const TransferArgs& args, const RowsRoom<D>& room, OutputTile<D>& y,
                                               const TargetTile<D>& target, int64_t first) {
    const Place place;
    const TilePairs dn(room.dn, place, 0, y.column0());
    float squares = 0;
    place.each_row([&](int half, int row) {
        const bool inside = first + row < args.in.shape.length;
        const float inverse = 1 / (room.sum[row] + room.sum[kFusedRows + row] + room.far[row]);
        const float slope = args.slope * inverse;
        float dot = 0;
#pragma unroll
        for (int n = 0; n < D / 16; ++n) {
            const float* numerator = pair_of(y.c, half, n);
            const float2 wanted = unpack_bf16(target.pairs[half][n]);
            const float2 out = make_float2(numerator[0] * inverse, numerator[1] * inverse);
            const float2 difference = make_float2(inside ? out.x - wanted.x : 0.0f, inside ? out.y - wanted.y : 0.0f);
            squares = fmaf(difference.x, difference.x, fmaf(difference.y, difference.y, squares));
            if (!kGradients) continue;
            const uint32_t pair = pack_bf16(slope * difference.x, slope * difference.y);
            const float2 rounded = unpack_bf16(pair);
            dot = fmaf(rounded.x, out.x, fmaf(rounded.y, out.y, dot));
            dn.store(half, n, pair);
        }
        if (!kGradients) return;
        dot = quad_sum(dot);
        if (quad_lane() == 0) room.dz[warpgroup() * kFusedRows + row] = -dot;
    });
    return squares;
}

// dN and dZ of a block to workspace.
template <int D>
__device__ __forceinline__ void keep_upstream(const RowsRoom<D>& room, const FusedRowResults& to, int64_t first) {
    each_chunk<RowTile<D>>([&](int row, int column) {
        *reinterpret_cast<uint4*>(to.dn + (first + row) * D + column) =
            *reinterpret_cast<const uint4*>(room.dn.chunk(row, column));
    });
    if (threadIdx.x < kFusedRows) to.dz[first + threadIdx.x] = row_dz(room.dz, threadIdx.x);
}

#endif

template <int D, bool kGradients>
__global__ void __launch_bounds__(kFusedThreads, 1) rows_kernel(const __grid_constant__ TransferArgs args) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
    extern __shared__ __align__(1024) unsigned char shared[];
    const RowsRoom<D> room(SharedRoom{shared});
    const FusedShape& s = args.in.shape;
    const FusedHead head(s);
    const __nv_bfloat16 *q = args.in.q.head(head.b, head.h), *k = args.in.k.head(head.b, head.hk),
                        *v = args.in.v.head(head.b, head.hk);
    const float log2_gamma = log2_gamma_of(args.in, head);
    const bool queries = warpgroup() == 0;  // whose map is this warpgroup's, and which side of the window

    copy_block<D>(room.q, q, args.in.q.strides[2], 0, s.length);
    copy_block<D>(room.k, k, args.in.k.strides[2], 0, s.length);
    copy_block<D>(nth_tile(room.k, 1), k, 0, -1, 0);
    copy_block<D>(nth_tile(room.v, 1), v, 0, -1, 0);
    copy_async_commit();
    load_map<D>(room.wq, args.in.wq, head.h);
    load_map<D>(room.wk, args.in.wk, head.hs);
    if (threadIdx.x < kFusedFeatures) room.z[threadIdx.x] = 0;

    FeatureSums<D> state;
    MapGradient<D> dwq;
    double squares = 0, da = 0;
    for (int b = 0; b < s.blocks; ++b) {
        const RowTile<D> k_before = nth_tile(room.k, (b + 1) % 2), k_own = nth_tile(room.k, b % 2);
        const RowTile<D> v_before = nth_tile(room.v, (b + 1) % 2), v_own = nth_tile(room.v, b % 2);
        copy_async_wait<0>();
        publish_barrier();  // [1] q(b), k(b) are here; step b-1 is over
        float u[kFusedMap / 2];
        WindowTile window;
        multiply_map<D>(u, either(queries, room.q, k_before), either(queries, room.wq, room.wk));
        window.multiply_keys<D>(room.q, either(queries, k_before, k_own));
        copy_block<D>(v_own, v, args.in.v.strides[2], b, s.length);
        copy_async_commit();
        wait_products<1>(u);
        map_rows(u, either(queries, room.phi_q, room.phi_k), queries ? room.z : nullptr, room.far);
        wait_products<0>(window.s);
        if (kGradients) dwq.load(room.q);
        window.mask(b == 0, room.high);
        __syncthreads();  // [2] row maxima are here; nobody reads q(b), k(b-1) any more
        if (b + 1 < s.blocks) {
            copy_block<D>(room.q, q, args.in.q.strides[2], b + 1, s.length);
            copy_block<D>(k_before, k, args.in.k.strides[2], b + 1, s.length);
        }
        copy_async_commit();
        state.publish(room.state);
        const auto p = window.columns_of(room.p);
        window.make_weights(room.high, s.scale, log2_gamma, room.sum,
                            [&](int half, int n, uint32_t pair) { p.store(half, n, pair); });
        TargetTile<D> target;
        target.load(args, head, int64_t{b} * kFusedRows);
        copy_async_wait<1>();
        publish_barrier();  // [3] v(b), weights, sums, features and the state's copy are here

        OutputTile<D> y;
        begin_products();
        y.template add<kFusedRows>(room.p, 0, v_before, false);
        y.template add<kFusedRows>(room.p, kFusedRows, v_own, true);
        y.template add<kFusedFeatures>(room.phi_q, 0, room.state, true);
        end_products();
        wait_products<0>(y.c);
        squares += make_upstream<D, kGradients>(args, room, y, target, int64_t{b} * kFusedRows);
        if (kGradients) publish_barrier();  // [4] dN and shares of dZ are here
        FeatureGradient dphi;
        if (kGradients) dphi.multiply_state<D>(room.dn, room.state);
        state.add(room.phi_k, v_before, UnitWeights{b > 0});
        if (kGradients) {
            if (b >= 2) keep_upstream(room, args.results, (head.item * s.blocks + b) * kFusedRows);
            wait_products<1>(dphi.g[0], dphi.g[1]);
            dphi.put_dots(
                room.z, [&](int r) { return row_dz(room.dz, r); }, room.phi_q, room.dots);
            __syncthreads();  // [5] shares of D are here
            dphi.put_du(room.phi_q, room.dots, room.du);
            if (threadIdx.x < kFusedRows) da += FeatureGradient::row_sum(room.dots[threadIdx.x]);
        }
        wait_products<0>(state.c, state.left);
        state.put_total(room.z);
        if (kGradients) {
            publish_barrier();  // [6] du is here
            dwq.add(room.du);
            wait_products<0>(dwq.c, dwq.left);
        }
    }
    squares = fused_block_sum(squares, room.sums);
    if (threadIdx.x == 0) args.loss_parts[head.item] = squares;
    if (!kGradients) return;
    dwq.store(args.dwq_parts, head.item);
    da = fused_block_sum(da, room.sums + kWarps);
    if (threadIdx.x == 0) args.da_parts[head.item] = da;
#endif
}

template <int D>
struct KeysRoom {
    RowTile<D> q, dn, k, v;  // 1, 2, 1, 2
    StateTile<D> copy;
    MapTile<D> wq, wk;
    DuTile du;
    FeatureTile phi_q, phi_k;
    float4* dots;
    float *dz, *t;  // dz: two
    static constexpr int kBytes = 6 * RowTile<D>::kBytes + StateTile<D>::kBytes + 2 * MapTile<D>::kBytes +
                                  DuTile::kBytes + 2 * FeatureTile::kBytes +
                                  (kFusedFeatures + 6 * kFusedRows) * int{sizeof(float)};
    static_assert(kBytes <= kFusedSharedBytes);

    explicit __device__ KeysRoom(SharedRoom room)
        : q(room.tiles<RowTile<D>>()),
          dn(room.tiles<RowTile<D>>(2)),
          k(room.tiles<RowTile<D>>()),
          v(room.tiles<RowTile<D>>(2)),
          copy(room.tiles<StateTile<D>>()),
          wq(room.tiles<MapTile<D>>()),
          wk(room.tiles<MapTile<D>>()),
          du(room.tiles<DuTile>()),
          phi_q(room.tiles<FeatureTile>()),
          phi_k(room.tiles<FeatureTile>()),
          dots(room.numbers<float4>(kFusedRows)),
          dz(room.numbers(2 * kFusedRows)),
          t(room.numbers(kFusedFeatures)) {}
};

// Only for sequences of three blocks or more.
template <int D>
__global__ void __launch_bounds__(kFusedThreads, 1) keys_kernel(const __grid_constant__ TransferArgs args) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
    extern __shared__ __align__(1024) unsigned char shared[];
    const KeysRoom<D> room(SharedRoom{shared});
    const FusedShape& s = args.in.shape;
    const FusedHead head(s);
    const __nv_bfloat16 *q = args.in.q.head(head.b, head.h), *k = args.in.k.head(head.b, head.hk),
                        *v = args.in.v.head(head.b, head.hk);
    const int rows = s.blocks * kFusedRows;
    const __nv_bfloat16* dn = args.results.dn + head.item * rows * D;
    const bool queries = warpgroup() == 0;  // whose map is this warpgroup's
    const auto fetch_mapped = [&](int c) {
        copy_block<D>(room.q, q, args.in.q.strides[2], c + 2, s.length);
        copy_block<D>(room.k, k, args.in.k.strides[2], c, s.length);
        copy_async_commit();
    };
    const auto fetch_summed = [&](int c) {
        copy_block<D>(nth_tile(room.dn, c % 2), dn, D, c + 2, rows);
        copy_block<D>(nth_tile(room.v, c % 2), v, args.in.v.strides[2], c, s.length);
        if (threadIdx.x < kFusedRows / 4)
            copy_async(room.dz + c % 2 * kFusedRows + threadIdx.x * 4,
                       args.results.dz + head.item * rows + (c + 2) * kFusedRows + threadIdx.x * 4);
        copy_async_commit();
    };
    fetch_summed(s.blocks - 3), fetch_mapped(s.blocks - 3);
    load_map<D>(room.wq, args.in.wq, head.h);
    load_map<D>(room.wk, args.in.wk, head.hs);

    FeatureSums<D> sums;
    MapGradient<D> dwk;
    for (int c = s.blocks - 3; c >= 0; --c) {
        copy_async_wait<0>();
        publish_barrier();  // [1] this step's tiles are here; step c+1 is over
        float u[kFusedMap / 2];
        multiply_map<D>(u, either(queries, room.q, room.k), either(queries, room.wq, room.wk));
        if (c > 0) fetch_summed(c - 1);
        dwk.load(room.k);
        wait_products<0>(u);
        map_rows(u, either(queries, room.phi_q, room.phi_k), nullptr, nullptr);
        publish_barrier();  // [2] features are here; nobody reads q and k any more
        if (c > 0) fetch_mapped(c - 1);
        sums.add(room.phi_q, nth_tile(room.dn, c % 2), SplitWeights{room.dz + c % 2 * kFusedRows});
        sums.put_total(room.t);
        wait_products<0>(sums.c, sums.left);
        sums.publish(room.copy);
        publish_barrier();  // [3] T's copy and t are here
        FeatureGradient dphi;
        dphi.multiply_state<D>(nth_tile(room.v, c % 2), room.copy);
        wait_products<0>(dphi.g[0], dphi.g[1]);
        dphi.put_dots(
            room.t, [](int) { return 1.0f; }, room.phi_k, room.dots);
        __syncthreads();  // [4] shares are here
        dphi.put_du(room.phi_k, room.dots, room.du);
        publish_barrier();  // [5] du is here
        dwk.add(room.du);
        wait_products<0>(dwk.c, dwk.left);
    }
    dwk.store(args.dwk_parts, head.item);
#endif
}

void launch_rows(const TransferArgs& args, int64_t d, bool gradients, Stream stream) {
    dispatch_head_dim(static_cast<int>(d), [&](auto dim) {
        dispatch_bool(gradients, [&](auto wanted) {
            constexpr int kBytes = RowsRoom<dim()>::kBytes;
            const auto kernel = rows_kernel<dim(), wanted()>;
            allow_shared_memory(kernel, kBytes);
            kernel<<<grid_x(args.in.shape.items), kFusedThreads, kBytes, cuda::handle_of(stream)>>>(args);
            LC_LAUNCHED("transfer_loss", cuda::handle_of(stream));
        });
    });
}

void launch_keys(const TransferArgs& args, int64_t d, Stream stream) {
    dispatch_head_dim(static_cast<int>(d), [&](auto dim) {
        constexpr int kBytes = KeysRoom<dim()>::kBytes;
        allow_shared_memory(keys_kernel<dim()>, kBytes);
        keys_kernel<dim()><<<grid_x(args.in.shape.items), kFusedThreads, kBytes, cuda::handle_of(stream)>>>(args);
        LC_LAUNCHED("transfer_loss", cuda::handle_of(stream));
    });
}

}  // namespace

bool transfer_loss_fused_covers(const TransferLoss& args, const HybridAttentionForward& attention) {
    return has_dense_rows(args.target) && hybrid_fused_covers(attention);
}

void transfer_loss_fused(const TransferLoss& a, const HybridAttentionForward& attention, Stream stream) {
    const FusedInputs in(attention);
    const FusedShape& s = in.shape;
    const int64_t d = a.q.size(3), map_size = d * kFusedMap;
    const double numel = static_cast<double>(a.q.numel());
    const HybridMapSlots& out = a.gradients;
    const bool gradients = out.any();
    const DeviceScratch<double> sums(2 * s.items, stream);
    std::optional<FusedRowScratch> rows;
    DeviceScratch<float> dwq, dwk;
    if (gradients) rows.emplace(s, d, stream), dwq = {s.items * map_size, stream};
    if (out.dwk) dwk = {s.items * map_size, stream};
    const TransferArgs args{in,
                            AlignedHeads(a.target),
                            static_cast<float>(2 * a.factor / numel),
                            rows ? rows->results() : FusedRowResults{},
                            sums.data(),
                            sums.data() + s.items,
                            dwq.data(),
                            dwk.data()};
    launch_rows(args, d, gradients, stream);
    sum_total(args.loss_parts, s.items, a.factor / numel, a.loss, stream);
    store_map_gradient(dwq.data(), s, s.heads, d, out.dwq, stream);
    store_mix_gradient(args.da_parts, in, out.dmix_logit, stream);
    if (!out.dwk) return;
    if (s.blocks > 2)
        launch_keys(args, d, stream);
    else
        LC_CUDA(cudaMemsetAsync(dwk.data(), 0, s.items * map_size * sizeof(float), cuda::handle_of(stream)));
    store_map_gradient(dwk.data(), s, s.maps, d, out.dwk, stream);
}

}  // namespace lc::kernels
