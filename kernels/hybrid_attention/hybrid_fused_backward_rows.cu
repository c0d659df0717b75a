// Fused hybrid attention on tensor cores, backward: the walk over the rows.
//
// MATHS    hybrid_attention.h. Left for the walk over the keys: dN, dZ, m, D / ties of every row.
// TILING   thread block = (batch entry, query head), two warpgroups, blocks of 64 positions in order; one thread block an SM
//
//            load   q(b) k(b)                           under step b-1
//            [1]    v(b), k(b+1) on their way           phi_q(b), phi_q.z: warpgroup 0    phi_k(b-1): warpgroup 1
//                   scores, row maxima of either side   dy, y of a quarter row a thread
//            [2]    q(b+1) on its way; S's copy         weights P, their sums, how many keys tie for the maximum
//            [3]    dN = dy / Z, dZ = -dN.y
//            [4]    dphi_q = dN S^T + dZ z              shares of phi_q.dphi_q    dP = dN v^T    S += phi_k(b-1)^T v(b-1)
//            [5]    du_q, D                             dS = P (dP + dZ) - [s = m] D / ties
//            [6]    dq = dS [k(b-1), k(b)] + du_q W^T   dWq += q^T du_q
//
//          [n]: barriers. Shared memory: q, 3 k, 2 v, dN [64,D], S's copy [128,D], maps [D,F], phi_q, phi_k [64,128], du [64,F];
//          dS [64,128] in the place of phi_k. The first two blocks of rows meet an S and z of zeros.
// COST     a row and query head, D = 128: 13 D^2 FLOPs (dWq: 1 more), 9 D bytes and 2 D written for the second walk.
// NUMERICS as the forward; the weights are made again by its instructions, bit by bit. dN, dS, du are rounded to bf16 as
//          operands. dZ is made from dN as rounded and from y as the forward stored it: a row's dS then add up to zero but for
//          the rounding of y. D is made by the identity -phi_q.dphi_q, without clamped features: their share is below 1e-10
//          of the largest |dphi_q|. Sums of D are f64.
// LADDER   1 mma.sync. 2 this: wgmma, as the forward.
// SOURCE   arXiv 2410.10254; the gradient through the row maximum and the identity for D are derived in hybrid_attention.h.
#include "kernels/hybrid_attention/hybrid_fused_backward.cuh"
#include "kernels/hybrid_attention/hybrid_fused_steps.cuh"

namespace lc::kernels {
namespace {

template <int D>
struct RowsRoom {
    RowTile<D> q, k, v, dn;  // 1, 3, 2, 1
    StateTile<D> state;
    MapTile<D> wq, wk;
    DuTile du;
    FeatureTile phi_q, phi_k;
    WindowWeights ds;  // over phi_k
    double* sums;
    float4* dots;
    float *z, *high, *sum, *ties, *far, *dz;
    static constexpr int kBytes = 7 * RowTile<D>::kBytes + StateTile<D>::kBytes + 2 * MapTile<D>::kBytes +
                                  DuTile::kBytes + 2 * FeatureTile::kBytes + kWarps * int{sizeof(double)} +
                                  (kFusedFeatures + 12 * kFusedRows) * int{sizeof(float)};
    static_assert(kBytes <= kFusedSharedBytes);

    explicit __device__ RowsRoom(SharedRoom room)
        : q(room.tiles<RowTile<D>>()),
          k(room.tiles<RowTile<D>>(3)),
          v(room.tiles<RowTile<D>>(2)),
          dn(room.tiles<RowTile<D>>()),
          state(room.tiles<StateTile<D>>()),
          wq(room.tiles<MapTile<D>>()),
          wk(room.tiles<MapTile<D>>()),
          du(room.tiles<DuTile>()),
          phi_q(room.tiles<FeatureTile>()),
          phi_k(room.tiles<FeatureTile>()),
          ds{phi_k.data},
          sums(room.numbers<double>(kWarps)),
          dots(room.numbers<float4>(kFusedRows)),
          z(room.numbers(kFusedFeatures)),
          high(room.numbers(2 * kFusedRows)),
          sum(room.numbers(2 * kFusedRows)),
          ties(room.numbers(2 * kFusedRows)),
          far(room.numbers(kFusedRows)),
          dz(room.numbers(kFusedRows)) {}
};

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

// A quarter of one row of dy and y a thread, in registers until Z is known.
template <int D>
struct UpstreamRows {
    static constexpr int kPacks = D / 32;
    Pack<__nv_bfloat16> dy[kPacks], y[kPacks];

    static __device__ __forceinline__ int row() { return threadIdx.x / 4; }
    static __device__ __forceinline__ int column(int i) { return (i * 4 + threadIdx.x % 4) * 8; }

    __device__ __forceinline__ void load(const FusedRowsArgs& args, const FusedHead& head, int64_t first) {
        const int64_t t = first + row();
        const bool inside = t < args.in.shape.length;
        const __nv_bfloat16 *from_dy = args.dy.head(head.b, head.h) + t * args.dy.strides[2],
                            *from_y = args.y.head(head.b, head.h) + t * args.y.strides[2];
#pragma unroll
        for (int i = 0; i < kPacks; ++i) {
            dy[i] = y[i] = Pack<__nv_bfloat16>{};
            if (inside) dy[i] = load_pack(from_dy + column(i)), y[i] = load_pack(from_y + column(i));
        }
    }
    // dN to the tile and to `out` [64,D]; dZ to dz and dz_out [64].
    __device__ __forceinline__ void divide(float denominator, const RowTile<D>& dn, float* dz, __nv_bfloat16* out,
                                           float* dz_out) const {
        const float inverse = 1 / denominator;
        float dot = 0;
#pragma unroll
        for (int i = 0; i < kPacks; ++i) {
            Pack<__nv_bfloat16> result;
#pragma unroll
            for (int e = 0; e < 8; ++e) {
                result.set(e, dy[i].get(e) * inverse);
                dot = fmaf(result.get(e), y[i].get(e), dot);
            }
            store_pack(dn.chunk(row(), column(i)), result);
            store_pack(out + row() * D + column(i), result);
        }
        dot = quad_sum(dot);
        if (threadIdx.x % 4 == 0) dz[row()] = dz_out[row()] = -dot;
    }
};

// dS of one side of the window from dP, to the tile; D / ties and m of every row to workspace. Returns this thread's part of the
// sum of D: that of its rows if it is the one that has it.
template <int D>
__device__ __forceinline__ float make_ds(const RowsRoom<D>& room, WindowTile& dp, const uint32_t (&weights)[2][8],
                                         uint32_t highest, float scale, float* high_out, float* part_out) {
    const auto out = dp.columns_of(room.ds);
    float sum = 0;
    Place().each_row([&](int half, int row) {
        const float dz = room.dz[row], d = FeatureGradient::row_sum(room.dots[row]);
        const float part = d / (room.ties[row] + room.ties[kFusedRows + row]);
#pragma unroll
        for (int n = 0; n < kFusedRows / 8; ++n) {
            const float2 p = unpack_bf16(weights[half][n]);
            const float* x = pair_of(dp.s, half, n);
            const float left = p.x * (x[0] + dz) - (highest >> (16 * half + 2 * n) & 1 ? part : 0.0f);
            const float right = p.y * (x[1] + dz) - (highest >> (16 * half + 2 * n + 1) & 1 ? part : 0.0f);
            out.store(half, n, pack_bf16(scale * left, scale * right));
        }
        if (dp.side == 0 && quad_lane() == 0)
            sum += d, high_out[row] = WindowTile::top(room.high, row), part_out[row] = part;
    });
    return sum;
}

template <int D>
__device__ __forceinline__ void store_dq(const FusedRowsArgs& args, const FusedHead& head, int b, OutputTile<D>& dq) {
    dq.each_pair([&](int, int row, auto&& elements) {
        const int64_t t = int64_t{b} * kFusedRows + row;
        if (t >= args.in.shape.length) return;
        elements(
            [&](int, int column, const float* x) { args.dq.put(head.b, head.h, t, column, make_float2(x[0], x[1])); });
    });
}

#endif

template <int D, bool kMap>
__global__ void __launch_bounds__(kFusedThreads, 1) rows_kernel(const __grid_constant__ FusedRowsArgs args) {
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
    copy_block<D>(nth_tile(room.k, 2), k, 0, -1, 0);
    copy_block<D>(nth_tile(room.v, 1), v, 0, -1, 0);
    copy_async_commit();
    load_map<D>(room.wq, args.in.wq, head.h);
    load_map<D>(room.wk, args.in.wk, head.hs);
    if (threadIdx.x < kFusedFeatures) room.z[threadIdx.x] = 0;

    FeatureSums<D> state;
    MapGradient<D> dwq;
    double da = 0;
    for (int b = 0; b < s.blocks; ++b) {
        const int64_t first = (head.item * s.blocks + b) * kFusedRows;  // among the rows of all items
        const RowTile<D> k_before = nth_tile(room.k, (b + 2) % 3), k_own = nth_tile(room.k, b % 3);
        const RowTile<D> v_before = nth_tile(room.v, (b + 1) % 2), v_own = nth_tile(room.v, b % 2);
        copy_async_wait<0>();
        publish_barrier();  // [1] q(b), k(b) are here; step b-1 is over
        float u[kFusedMap / 2];
        WindowTile window;
        multiply_map<D>(u, either(queries, room.q, k_before), either(queries, room.wq, room.wk));
        window.multiply_keys<D>(room.q, either(queries, k_before, k_own));
        copy_block<D>(v_own, v, args.in.v.strides[2], b, s.length);
        copy_async_commit();
        if (b + 1 < s.blocks) copy_block<D>(nth_tile(room.k, (b + 1) % 3), k, args.in.k.strides[2], b + 1, s.length);
        wait_products<1>(u);
        map_rows(u, either(queries, room.phi_q, room.phi_k), queries ? room.z : nullptr, room.far);
        wait_products<0>(window.s);
        if (kMap) dwq.load(room.q);
        window.mask(b == 0, room.high);
        UpstreamRows<D> upstream;
        upstream.load(args, head, int64_t{b} * kFusedRows);
        __syncthreads();  // [2] row maxima are here; nobody reads q(b) any more
        if (b + 1 < s.blocks) copy_block<D>(room.q, q, args.in.q.strides[2], b + 1, s.length);
        copy_async_commit();
        state.publish(room.state);
        uint32_t weights[2][8];
        window.make_weights(room.high, s.scale, log2_gamma, room.sum,
                            [&](int half, int n, uint32_t pair) { weights[half][n] = pair; });
        const uint32_t highest = window.find_highest(room.high, room.ties);
        __syncthreads();  // [3] sums of weights and features are here
        const int row = UpstreamRows<D>::row();
        upstream.divide(room.sum[row] + room.sum[kFusedRows + row] + room.far[row], room.dn, room.dz,
                        args.results.dn + first * D, args.results.dz + first);
        copy_async_wait<1>();
        publish_barrier();  // [4] v(b), dN, dZ, the state's copy are here

        FeatureGradient dphi;
        dphi.multiply_state<D>(room.dn, room.state);
        window.multiply_keys<D>(room.dn, either(queries, v_before, v_own));  // dP
        state.add(room.phi_k, v_before, UnitWeights{b > 0});
        wait_products<2>(dphi.g[0], dphi.g[1]);
        dphi.put_dots(
            room.z, [&](int r) { return room.dz[r]; }, room.phi_q, room.dots);
        wait_products<1>(window.s);
        __syncthreads();  // [5] shares of D are here; nobody reads phi_k, and dS and du of step b-1, any more
        dphi.put_du(room.phi_q, room.dots, room.du);
        da +=
            make_ds(room, window, weights, highest, s.scale, args.results.high + first, args.results.max_part + first);
        wait_products<0>(state.c, state.left);
        state.put_total(room.z);
        publish_barrier();  // [6] dS, du are here

        OutputTile<D> dq;
        begin_products();
        dq.template add<kFusedRows>(room.ds, 0, k_before, false);
        dq.template add<kFusedRows>(room.ds, kFusedRows, k_own, true);
        dq.add_map(room.du, room.wq);
        end_products();
        if (kMap) dwq.add(room.du);
        wait_products<kMap ? 1 : 0>(dq.c);
        if (args.dq) store_dq(args, head, b, dq);
        if (kMap) wait_products<0>(dwq.c, dwq.left);
    }
    if (kMap) dwq.store(args.dwq_parts, head.item);
    da = fused_block_sum(da, room.sums);
    if (threadIdx.x == 0) args.da_parts[head.item] = da;
#endif
}

}  // namespace

void fused_backward_rows(const FusedRowsArgs& args, int64_t d, Stream stream) {
    dispatch_head_dim(static_cast<int>(d), [&](auto dim) {
        dispatch_bool(args.dwq_parts != nullptr, [&](auto map) {
            constexpr int kBytes = RowsRoom<dim()>::kBytes;
            const auto kernel = rows_kernel<dim(), map()>;
            allow_shared_memory(kernel, kBytes);
            kernel<<<grid_x(args.in.shape.items), kFusedThreads, kBytes, cuda::handle_of(stream)>>>(args);
            LC_LAUNCHED("hybrid_attention", cuda::handle_of(stream));
        });
    });
}

}  // namespace lc::kernels
