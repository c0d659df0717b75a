// Fused hybrid attention on tensor cores: forward. When it applies: hybrid_fused.h; steps: hybrid_fused_steps.cuh.
//
// MATHS    hybrid_attention.h. For the rows of block b: the window is blocks b-1 and b, S and z hold blocks <= b-2.
// TILING   thread block = (batch entry, query head), two warpgroups, blocks of 64 positions in order; one thread block an SM
//
//            load   q(b) k(b)                           under the end of step b-1
//            [1]    v(b) on its way                     phi_q(b), phi_q.z: warpgroup 0    phi_k(b-1): warpgroup 1
//                   scores, row maxima of either side
//            [2]    q(b+1), k(b+1) on their way         weights P of either side, their sums          S's copy
//            [3]    N = P [v(b-1), v(b)] + phi_q S      y = N / Z     S += phi_k(b-1)^T v(b-1), z += sum of phi_k(b-1)
//
//          [n]: barriers. Shared memory: q, 2 k, 2 v, S's copy [64 or 128,D], maps [D,F], phi_q, phi_k, P [64,128].
//          Registers of a warp: 16 features of S in f32. Before the block 0 lie keys of zeros that nobody sees; S and z are 0
//          for the first two blocks.
// COST     a row and query head, D = 128: 10 D^2 FLOPs, 5 D bytes (K and V shared by four heads in L2): 256 FLOP a byte.
// NUMERICS products of bf16 with f32 sums; maps are rounded to bf16; S and z are f32, S enters products as bf16. Z adds up the
//          weights and features as they are rounded for the products, so that a row with one key gives exactly its value.
//          The row maximum is exact: taken over the whole window before any exponential; exp2 (ex2.approx) of (s - m) scale
//          log2 e, at most 1. A gamma below 1e-30 counts as 1e-30: Z never becomes 0, and rows without far keys do not see it.
// LADDER   1 mma.sync, 8 warps: every warp reads all of B for itself. 2 this: wgmma reads B once for four warps, and maps,
//          weights and outputs are worked on while it multiplies.
// SOURCE   arXiv 2410.10254; the order of a step is derived here.
#include "kernels/hybrid_attention/hybrid_fused.h"
#include "kernels/hybrid_attention/hybrid_fused_steps.cuh"

namespace lc::kernels {
namespace {

struct ForwardArgs {
    FusedInputs in;
    AlignedHeads y;
    float *s_out, *z_out;  // [B,Hs,F',D], [B,Hs,F'], or null
};

template <int D>
struct ForwardRoom {
    RowTile<D> q, k, v;  // k, v: two each
    StateTile<D> state;
    MapTile<D> wq, wk;
    FeatureTile phi_q, phi_k;
    WindowWeights p;
    float *z, *high, *sum, *far;  // [F'], [2][64], [2][64], [64]
    static constexpr int kBytes = 5 * RowTile<D>::kBytes + StateTile<D>::kBytes + 2 * MapTile<D>::kBytes +
                                  2 * FeatureTile::kBytes + WindowWeights::kBytes +
                                  (kFusedFeatures + 5 * kFusedRows) * int{sizeof(float)};
    static_assert(kBytes <= kFusedSharedBytes);

    explicit __device__ ForwardRoom(SharedRoom room)
        : q(room.tiles<RowTile<D>>()),
          k(room.tiles<RowTile<D>>(2)),
          v(room.tiles<RowTile<D>>(2)),
          state(room.tiles<StateTile<D>>()),
          wq(room.tiles<MapTile<D>>()),
          wk(room.tiles<MapTile<D>>()),
          phi_q(room.tiles<FeatureTile>()),
          phi_k(room.tiles<FeatureTile>()),
          p(room.tiles<WindowWeights>()),
          z(room.numbers(kFusedFeatures)),
          high(room.numbers(2 * kFusedRows)),
          sum(room.numbers(2 * kFusedRows)),
          far(room.numbers(kFusedRows)) {}
};

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

template <int D>
__device__ __forceinline__ void store_y(const ForwardArgs& args, const ForwardRoom<D>& room, const FusedHead& head,
                                        int b, OutputTile<D>& y) {
    __nv_bfloat16* out = args.y.head(head.b, head.h);
    y.each_pair([&](int, int row, auto&& elements) {
        const int64_t i = int64_t{b} * kFusedRows + row;
        if (i >= args.in.shape.length) return;
        const float inverse = 1 / (room.sum[row] + room.sum[kFusedRows + row] + room.far[row]);
        __nv_bfloat16* to = out + i * args.y.strides[2];
        elements([&](int, int column, const float* n) {
            *reinterpret_cast<uint32_t*>(to + column) = pack_bf16(n[0] * inverse, n[1] * inverse);
        });
    });
}

template <int D>
__device__ __forceinline__ void store_state(const ForwardArgs& args, const FusedHead& head,
                                            const FeatureSums<D>& state) {
    const FusedShape& s = args.in.shape;
    if (!args.s_out || head.h % (s.heads / s.maps) != 0) return;
    const int64_t first = (head.b * s.maps + head.hs) * kFusedFeatures;
    state.put_total(args.z_out + first);
    const Place place;
    place.each_row([&](int half, int row) {
        float* to = args.s_out + (first + warpgroup() * kFusedMap + row) * D + place.column;
#pragma unroll
        for (int n = 0; n < D / 8; ++n) {
            const float* x = pair_of(state.c, half, n);
            *reinterpret_cast<float2*>(to + 8 * n) = make_float2(x[0], x[1]);
        }
    });
}

#endif

template <int D>
__global__ void __launch_bounds__(kFusedThreads, 1) forward_kernel(const __grid_constant__ ForwardArgs args) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
    extern __shared__ __align__(1024) unsigned char shared[];
    const ForwardRoom<D> room(SharedRoom{shared});
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
        copy_async_wait<1>();
        publish_barrier();  // [3] v(b), weights, sums, features and the state's copy are here

        OutputTile<D> y;
        begin_products();
        y.template add<kFusedRows>(room.p, 0, v_before, false);
        y.template add<kFusedRows>(room.p, kFusedRows, v_own, true);
        y.template add<kFusedFeatures>(room.phi_q, 0, room.state, true);
        end_products();
        if (b + 1 == s.blocks) store_state(args, head, state);
        state.add(room.phi_k, v_before, UnitWeights{b > 0});
        wait_products<1>(y.c);
        store_y(args, room, head, b, y);
        wait_products<0>(state.c, state.left);
        state.put_total(room.z);
    }
#endif
}

}  // namespace

void hybrid_fused_forward(const HybridAttentionForward& a, Stream stream) {
    const auto dense = [](const TensorView& view) { return view ? device_data<float>(view) : nullptr; };
    const ForwardArgs args{FusedInputs(a), AlignedHeads(a.y), dense(a.s_out), dense(a.z_out)};
    dispatch_head_dim(static_cast<int>(a.q.size(3)), [&](auto d) {
        constexpr int kBytes = ForwardRoom<d()>::kBytes;
        allow_shared_memory(forward_kernel<d()>, kBytes);
        forward_kernel<d()><<<grid_x(args.in.shape.items), kFusedThreads, kBytes, cuda::handle_of(stream)>>>(args);
        LC_LAUNCHED("hybrid_attention", cuda::handle_of(stream));
    });
}

}  // namespace lc::kernels
