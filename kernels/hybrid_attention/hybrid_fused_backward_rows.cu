// Fused hybrid attention on tensor cores, backward: the walk over the rows.
//
// MATHS    hybrid_attention.h. Left for the walk over the keys: dN, dZ, m, D / ties of every row.
// TILING   thread block = (batch entry, query head, segment), 8 warps, blocks of 64 positions in order; one thread block an SM
//
//            load   q(b) k(b)                           under step b-1
//            [1]    v(b), q(b+1), k(b+1) on their way   phi_q(b), phi_q.z: warps 0-3   phi_k(b-1): warps 4-7
//                   scores, row maxima of either side   dy, y of a quarter row a thread
//            [2]    weights P, their sums, how many keys tie for the maximum
//            [3]    dN = dy / Z, dZ = -dN.y
//            [4]    dphi_q = dN S^T + dZ z              shares of phi_q.dphi_q    dP = dN v^T
//            [5]    du_q, D                             dS = P (dP + dZ) - [s = m] D / ties
//            [6]    dq = dS [k(b-1), k(b)] + du_q W^T   dWq += q^T du_q    S += phi_k(b-1)^T v(b-1), z
//
//          [n]: barriers. Shared memory: 2 q, 3 k, 2 v, dN [64,D], maps [D,F], phi_q, phi_k, dS [64,128], du [64,F].
// COST     a row and query head, D = 128: 13 D^2 FLOPs (dWq: 1 more), 9 D bytes and 2 D written for the second walk.
// NUMERICS as the forward; the weights are made again by its instructions, bit by bit. dN, dS, du are rounded to bf16 as
//          operands. dZ is made from dN as rounded and from y as the forward stored it: a row's dS then add up to zero but for
//          the rounding of y. D is made by the identity -phi_q.dphi_q, without clamped features: their share is below 1e-10
//          of the largest |dphi_q|. Sums of D are f64.
// LADDER   1 this.
// SOURCE   arXiv 2410.10254; the gradient through the row maximum and the identity for D are derived in hybrid_attention.h.
#include "kernels/hybrid_attention/hybrid_fused_backward.cuh"
#include "kernels/hybrid_attention/hybrid_fused_segments.cuh"

namespace lc::kernels {
namespace {

template <int D>
struct RowsRoom {
    static constexpr int kQueryTiles = 2, kKeyTiles = 3;
    SharedTile<D> q, k, v, dn;  // 2, 3, 2, 1
    SharedTile<kFusedMap> wq, wk, du;
    SharedTile<kFusedFeatures> phi_q, phi_k, ds;
    float *z, *high, *sum, *ties, *far, *dz, *dots;
    static constexpr int kBytes = SharedTile<D>::bytes(8 * kFusedRows) +
                                  SharedTile<kFusedMap>::bytes(2 * D + kFusedRows) +
                                  SharedTile<kFusedFeatures>::bytes(3 * kFusedRows) +
                                  (kFusedFeatures + (8 + FeatureGradient::kDots) * kFusedRows) * int{sizeof(float)};
    static_assert(kBytes + 1024 <= kFusedSharedBytes);

    explicit __device__ RowsRoom(SharedRoom room)
        : q(room.tile<D>(2 * kFusedRows)),
          k(room.tile<D>(3 * kFusedRows)),
          v(room.tile<D>(2 * kFusedRows)),
          dn(room.tile<D>(kFusedRows)),
          wq(room.tile<kFusedMap>(D)),
          wk(room.tile<kFusedMap>(D)),
          du(room.tile<kFusedMap>(kFusedRows)),
          phi_q(room.tile<kFusedFeatures>(kFusedRows)),
          phi_k(room.tile<kFusedFeatures>(kFusedRows)),
          ds(room.tile<kFusedFeatures>(kFusedRows)),
          z(room.floats(kFusedFeatures)),
          high(room.floats(2 * kFusedRows)),
          sum(room.floats(2 * kFusedRows)),
          ties(room.floats(2 * kFusedRows)),
          far(room.floats(kFusedRows)),
          dz(room.floats(kFusedRows)),
          dots(room.floats(FeatureGradient::kDots * kFusedRows)) {}
};

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
    __device__ __forceinline__ void divide(float denominator, const SharedTile<D>& dn, float* dz, __nv_bfloat16* out,
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

template <int D, bool kMap>
__global__ void __launch_bounds__(kFusedThreads, 1) rows_kernel(const __grid_constant__ FusedRowsArgs args) {
    extern __shared__ __align__(128) unsigned char shared[];
    __shared__ double sums[kWarps];
    const RowsRoom<D> room(SharedRoom{shared});
    const FusedShape& s = args.in.shape;
    const FusedHead head(s);
    const HeadInputs x(args.in, head);
    const float factor = s.scale * kLog2E;

    begin_rows<D>(args.in, head, x, room);
    FeatureSums<D> state;
    begin_segment(state, room.z, args.starts, s, head);
    MapGradient<D> dwq;
    double da = 0;
    for (int b = head.first; b < head.last; ++b) {
        const bool far = b >= 2, grows = b >= 1 && b + 1 < head.last;
        const int64_t first = (head.item * s.blocks + b) * kFusedRows;  // among the rows of all items
        const SharedTile<D> q_own = nth_tile(room.q, b % 2);
        const SharedTile<D> k_before = nth_tile(room.k, (b + 2) % 3), k_own = nth_tile(room.k, b % 3);
        const SharedTile<D> v_before = nth_tile(room.v, (b + 1) % 2), v_own = nth_tile(room.v, b % 2);
        copy_async_wait<0>();
        __syncthreads();  // [1] q(b), k(b) are here; step b-1 is over
        copy_block(v_own, x.v, args.in.v.strides[2], b, s.length);
        copy_async_commit();
        if (b + 1 < head.last) {
            copy_block(nth_tile(room.q, (b + 1) % 2), x.q, args.in.q.strides[2], b + 1, s.length);
            copy_block(nth_tile(room.k, (b + 1) % 3), x.k, args.in.k.strides[2], b + 1, s.length);
        }
        copy_async_commit();
        const int map_row = warp_index() % 4 * 16;
        if (warp_index() < 4 && far) map_rows(q_own, map_row, room.wq, room.phi_q, room.z, room.far);
        if (warp_index() >= 4 && grows) map_rows(k_before, map_row, room.wk, room.phi_k, nullptr, nullptr);
        WindowTile window;
        window.make_scores(q_own, window.side == 0 ? k_before : k_own, b == 0, room.high);
        UpstreamRows<D> upstream;
        upstream.load(args, head, int64_t{b} * kFusedRows);
        __syncthreads();  // [2] row maxima are here
        uint32_t weights[2][8];
        window.make_weights(room.high, factor, x.gamma, room.sum,
                            [&](int half, int n, uint32_t pair) { weights[half][n] = pair; });
        const uint32_t highest = window.find_highest(room.high, room.ties);
        __syncthreads();  // [3] sums of weights and features are here
        const int row = UpstreamRows<D>::row();
        upstream.divide(room.sum[row] + room.sum[kFusedRows + row] + room.far[row], room.dn, room.dz,
                        args.results.dn + first * D, args.results.dz + first);
        copy_async_wait<1>();
        __syncthreads();  // [4] v(b), dN, dZ are here

        FeatureGradient dphi;
        if (far) {
            dphi.multiply_sums(room.dn, state);
            dphi.add_total(room.z, [&](int r) { return room.dz[r]; });
            dphi.put_dots(room.phi_q, room.dots);
        }
        window_scores(window.s, room.dn, window.row, window.side == 0 ? v_before : v_own);  // dP
        __syncthreads();  // [5] shares of D are here; nobody reads dS and du of step b-1 any more
        if (far) dphi.put_du(room.phi_q, room.dots, room.du);
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const int r = window.row + 8 * half + quad_row();
            const float dz = room.dz[r];
            float d = 0;
            if (far) d = -(FeatureGradient::total_dot(room.dots, r, 0) + FeatureGradient::total_dot(room.dots, r, 1));
            const float part = d / (room.ties[r] + room.ties[kFusedRows + r]);
#pragma unroll
            for (int n = 0; n < 8; ++n) {
                const float2 p = unpack_bf16(weights[half][n]);
                const float* dp = &window.s[0][n].c[2 * half];
                const float left = p.x * (dp[0] + dz) - (highest >> (16 * half + 2 * n) & 1 ? part : 0.0f);
                const float right = p.y * (dp[1] + dz) - (highest >> (16 * half + 2 * n + 1) & 1 ? part : 0.0f);
                pair_at(room.ds, r, window.side * kFusedRows + 8 * n + 2 * quad_lane()) =
                    pack_bf16(s.scale * left, s.scale * right);
            }
            if (window.side == 0 && quad_lane() == 0) {
                da += d;
                args.results.high[first + r] = window.top(room.high, half);
                args.results.max_part[first + r] = part;
            }
        }
        __syncthreads();  // [6] dS, du are here

        if (args.dq) {
            OutputTile<D> dq;
            dq.template add<kFusedRows>([&](int m, int c) { return load_a(room.ds, m, c); }, k_before);
            dq.template add<kFusedRows>([&](int m, int c) { return load_a(room.ds, m, kFusedRows + c); }, k_own);
            if (far) dq.add_map(room.du, room.wq);
            dq.each_row([&](int r, auto&& elements) {
                const int64_t t = int64_t{b} * kFusedRows + r;
                if (t >= s.length) return;
                elements([&](int, int column, const float* pair) {
                    args.dq.put(head.b, head.h, t, column, make_float2(pair[0], pair[1]));
                });
            });
        }
        if (kMap && far) dwq.add(q_own, room.du);
        if (grows) {
            state.add(room.phi_k, v_before, UnitWeights{});
            state.put_total(room.z);
        }
    }
    if (kMap) dwq.store(args.dwq_parts, head.part());
    da = fused_block_sum(da, sums);
    if (threadIdx.x == 0) args.da_parts[head.part()] = da;
}

}  // namespace

void fused_backward_rows(const FusedRowsArgs& args, int64_t d, Stream stream) {
    dispatch_head_dim(static_cast<int>(d), [&](auto dim) {
        dispatch_bool(args.dwq_parts != nullptr, [&](auto map) {
            constexpr int kBytes = RowsRoom<dim()>::kBytes;
            const auto kernel = rows_kernel<dim(), map()>;
            allow_shared_memory(kernel, kBytes);
            kernel<<<grid_x(args.in.shape.parts()), kFusedThreads, kBytes, cuda::handle_of(stream)>>>(args);
            LC_LAUNCHED("hybrid_attention", cuda::handle_of(stream));
        });
    });
}

}  // namespace lc::kernels
