// Fused linear attention on tensor cores, backward: the walk over the rows.
//
// MATHS    linear_attention.h. With A = phi_q phi_k^T inside a block and G = dN v^T + dZ on and below its diagonal
//
//            dphi_q = S dN + z dZ + G phi_k             dN = dy / Z       dZ = -(N.dy) / Z^2
//            N.dy   = sum_j A_j (v_j.dy) + phi_q.(S dy)
//
//          with S, z of the blocks before: N is not made again, and y is not read. Left for the walk over the keys: 1 / Z
//          and dZ.
// TILING   thread block = (batch entry, query head), 8 warps, blocks of 64 positions in order; one thread block an SM
//
//            load   q(b) k(b) v(b) dy(b)                under step b-1
//                   S dy                                phi_q, phi_q.z: warps 0-3   phi_k: warps 4-7: under [6] of b-1
//            [1]    q(b+1), k(b+1) on their way         A, dy v^T: sums of A and of A (dy v^T) over either side's keys
//                                                       shares of phi_q.(S dy)
//            [2]    dy(b+1) on its way                  Z, dZ          S += phi_k^T v
//            [3]    v(b+1) on its way                   G = dy v^T / Z + dZ    S dN + z dZ
//            [4]    dphi_q += G phi_k                   shares of phi_q.dphi_q    z
//            [5]    du_q
//            [6]    dq = du_q W^T                       dWq += q^T du_q
//
//          [n]: barriers. Shared memory: 2 q, k, v, dy [64,D], maps [D,F], phi_q, phi_k [64,128], G [64,64], du [64,F].
// COST     a row and query head, D = 128: 10 D^2 FLOPs (dWq: 1 more), 7 D bytes.
// NUMERICS as the forward; Z is made again of the same A and features. S, G and du are rounded to bf16 as operands; division
//          by Z follows the products of dy. dZ is made from the products that dphi_q is made of, so that a row's
//          phi_q.dphi_q is 0 but for rounding and the epsilon of Z. A tiny Z makes G large, but a feature's share of A is
//          at most Z: what leaves through the softmaxes is bounded by |v| |dy|.
// LADDER   1 this.
// SOURCE   arXiv 2312.06635; dZ from the products of the step is derived here.
#include "kernels/linear_attention/linear_fused_backward.cuh"
#include "kernels/linear_attention/linear_fused_steps.cuh"

namespace lc::kernels {
namespace {

template <int D>
struct RowsRoom {
    SharedTile<D> q, k, v, dy;  // 2, 1, 1, 1
    SharedTile<kFusedMap> wq, wk, du;
    SharedTile<kFusedFeatures> phi_q, phi_k;
    SharedTile<kFusedRows> g;
    float *z, *sum, *dot, *far, *inverse, *dz, *map_inverse, *dots;  // map_inverse: of phi_q's sums
    static constexpr int kBytes =
        SharedTile<D>::bytes(5 * kFusedRows) + SharedTile<kFusedMap>::bytes(2 * D + kFusedRows) +
        SharedTile<kFusedFeatures>::bytes(2 * kFusedRows) + SharedTile<kFusedRows>::bytes(kFusedRows) +
        (kFusedFeatures + (9 + FeatureGradient::kDots) * kFusedRows) * int{sizeof(float)};
    static_assert(kBytes <= kFusedSharedBytes);

    explicit __device__ RowsRoom(SharedRoom room)
        : q(room.tile<D>(2 * kFusedRows)),
          k(room.tile<D>(kFusedRows)),
          v(room.tile<D>(kFusedRows)),
          dy(room.tile<D>(kFusedRows)),
          wq(room.tile<kFusedMap>(D)),
          wk(room.tile<kFusedMap>(D)),
          du(room.tile<kFusedMap>(kFusedRows)),
          phi_q(room.tile<kFusedFeatures>(kFusedRows)),
          phi_k(room.tile<kFusedFeatures>(kFusedRows)),
          g(room.tile<kFusedRows>(kFusedRows)),
          z(room.floats(kFusedFeatures)),
          sum(room.floats(2 * kFusedRows)),
          dot(room.floats(2 * kFusedRows)),
          far(room.floats(kFusedRows)),
          inverse(room.floats(kFusedRows)),
          dz(room.floats(kFusedRows)),
          map_inverse(room.floats(2 * kFusedRows)),
          dots(room.floats(FeatureGradient::kDots * kFusedRows)) {}
};

// tile = dy v^T; sums of A as rounded, and of A (dy v^T), over this warp's keys.
template <int D>
__device__ __forceinline__ void make_products(const RowsRoom<D>& room, CausalTile& tile) {
    CausalTile a;
    multiply_features(a, room.phi_q, room.phi_k);
    tile.multiply<D>([&](int m, int k) { return load_a(room.dy, m, k); },
                     [&](int n, int k) { return load_b(room.v, n, k); });
    float sum[2] = {}, dot[2] = {};
    a.each_pair([&](int half, int, int n, int) {
        const float2 weight = unpack_bf16(pack_bf16(a.c[n].c[2 * half], a.c[n].c[2 * half + 1]));
        sum[half] += weight.x + weight.y;
        dot[half] += weight.x * tile.c[n].c[2 * half] + weight.y * tile.c[n].c[2 * half + 1];
    });
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const float total = quad_sum(sum[half]), product = quad_sum(dot[half]);
        const int place = a.side * kFusedRows + a.row + 8 * half + quad_row();
        if (quad_lane() == 0) room.sum[place] = total, room.dot[place] = product;
    }
}

// 1 / Z and dZ of every row; dphi's shares of N.dy are there where there is a past.
template <int D>
__device__ __forceinline__ void divide_rows(const RowsRoom<D>& room, bool past, const LinearRowResults& results,
                                            int64_t first) {
    const int row = threadIdx.x;
    if (row >= kFusedRows) return;
    const float inverse =
        1 / (room.sum[row] + room.sum[kFusedRows + row] + room.far[row] + static_cast<float>(kLinearEpsilon));
    float dot = room.dot[row] + room.dot[kFusedRows + row];
    if (past) dot += FeatureGradient::total_dot(room.dots, row, 0);
    room.inverse[row] = results.inverse[first + row] = inverse;
    room.dz[row] = results.dz[first + row] = -dot * inverse * inverse;
}

template <int D, bool kMap>
__global__ void __launch_bounds__(kFusedThreads, 1) rows_kernel(const __grid_constant__ LinearRowsArgs args) {
    extern __shared__ __align__(128) unsigned char shared[];
    const RowsRoom<D> room(SharedRoom{shared});
    const FusedShape& s = args.in.shape;
    const FusedHead head(s);
    const __nv_bfloat16 *q = args.in.q.head(head.b, head.h), *k = args.in.k.head(head.b, head.hk),
                        *v = args.in.v.head(head.b, head.hk), *dy = args.dy.head(head.b, head.h);

    copy_block(room.q, q, args.in.q.strides[2], 0, s.length);
    copy_block(room.k, k, args.in.k.strides[2], 0, s.length);
    copy_block(room.v, v, args.in.v.strides[2], 0, s.length);
    copy_block(room.dy, dy, args.dy.strides[2], 0, s.length);
    copy_async_commit();
    load_map<D>(room.wq, args.in.wq, head.h);
    load_map<D>(room.wk, args.in.wk, head.hs);
    if (threadIdx.x < kFusedRows) room.far[threadIdx.x] = 0;

    copy_async_wait<0>();
    __syncthreads();

    FeatureSums<D> state;
    MapGradient<D> dwq;
    for (int b = 0; b < s.blocks; ++b) {  // q(b), k(b), v(b), dy(b) are here; step b-1 is in [6]
        const bool past = b > 0, next = b + 1 < s.blocks;
        const int64_t first = (head.item * s.blocks + b) * kFusedRows;  // among the rows of all items
        const SharedTile<D> q_own = nth_tile(room.q, b % 2);
        FeatureGradient dphi;
        if (past) dphi.multiply_sums(room.dy, state);
        const int map_row = warp_index() % 4 * 16;
        if (warp_index() < 4) map_rows(q_own, map_row, room.wq, room.phi_q, past ? room.z : nullptr, room.far);
        if (warp_index() >= 4) map_rows(room.k, map_row, room.wk, room.phi_k, nullptr, nullptr);
        __syncthreads();  // [1] features are here; step b-1 is over; nobody reads k(b) any more
        if (next) {
            copy_block(nth_tile(room.q, (b + 1) % 2), q, args.in.q.strides[2], b + 1, s.length);
            copy_block(room.k, k, args.in.k.strides[2], b + 1, s.length);
        }
        CausalTile g;
        make_products(room, g);
        put_inverse_sums(room.phi_q, room.map_inverse);
        if (past) put_shares(dphi, room.phi_q, room.dots);
        __syncthreads();  // [2] sums and shares are here; nobody reads dy(b) any more
        if (next) copy_block(room.dy, dy, args.dy.strides[2], b + 1, s.length);
        divide_rows(room, past, args.results, first);
        if (next) state.add(room.phi_k, room.v, UnitWeights{});
        __syncthreads();  // [3] 1 / Z and dZ are here; nobody reads v(b) any more
        if (next) copy_block(room.v, v, args.in.v.strides[2], b + 1, s.length);
        copy_async_commit();
        put_score_gradient(g, room.g, [&](int row, float x) { return fmaf(x, room.inverse[row], room.dz[row]); });
        if (past) {
            scale_rows(dphi, room.inverse);
            dphi.add_total(room.z, [&](int row) { return room.dz[row]; });
        }
        __syncthreads();  // [4] G is here; nobody reads the old z any more
        if (next) state.put_total(room.z);
        add_features(
            dphi, [&](int m, int c) { return load_a(room.g, m, c); }, room.phi_k);
        put_dots(dphi, room.phi_q, room.map_inverse, room.dots);
        __syncthreads();  // [5] shares are here
        dphi.put_du(room.phi_q, room.dots, room.du);
        copy_async_wait<0>();
        __syncthreads();  // [6] du, q(b+1), k(b+1), v(b+1), dy(b+1) are here; nobody reads features any more

        if (args.dq) {
            OutputTile<D> dq;
            dq.add_map(room.du, room.wq);
            dq.each_row([&](int r, auto&& elements) {
                const int64_t t = int64_t{b} * kFusedRows + r;
                if (t >= s.length) return;
                elements([&](int, int column, const float* x) {
                    args.dq.put(head.b, head.h, t, column, make_float2(x[0], x[1]));
                });
            });
        }
        if (kMap) dwq.add(q_own, room.du);
    }
    if (kMap) dwq.store(args.dwq_parts, head.item);
}

}  // namespace

void linear_backward_rows(const LinearRowsArgs& args, int64_t d, Stream stream) {
    dispatch_head_dim(static_cast<int>(d), [&](auto dim) {
        dispatch_bool(args.dwq_parts != nullptr, [&](auto map) {
            constexpr int kBytes = RowsRoom<dim()>::kBytes;
            const auto kernel = rows_kernel<dim(), map()>;
            allow_shared_memory(kernel, kBytes);
            kernel<<<grid_x(args.in.shape.items), kFusedThreads, kBytes, cuda::handle_of(stream)>>>(args);
            LC_LAUNCHED("linear_attention", cuda::handle_of(stream));
        });
    });
}

}  // namespace lc::kernels
