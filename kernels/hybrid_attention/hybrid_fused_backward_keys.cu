// Fused hybrid attention on tensor cores, backward: the walk over the keys, last block first.
//
// MATHS    hybrid_attention.h. For the keys of block c: the window's rows are blocks c and c+1; T and t hold rows of blocks >= c+2.
// TILING   thread block = (batch entry, query head), two warpgroups, blocks of 64 positions in reverse; one thread block an SM
//
//            load   k(c) v(c)                           under step c+1; q, dN and numbers of block c+1 are still there
//            [1]    q(c), dN(c), numbers, k(c-1) on     phi_q(c+1): warpgroup 0    phi_k(c): warpgroup 1    T's copy
//                   their way
//            [2]    dphi_k = v T^T + t                  shares of phi_k.dphi_k     dv = phi_k T
//            [3]    du_k                                s, P, dP = dN v^T, dS of rows c: warpgroup 0   of rows c+1: warpgroup 1
//            [4]    v(c-1) on its way                   dk = dS^T q + du_k W^T     dv += P^T dN
//                   dWk += k^T du_k                     T += phi_q(c+1)^T dN(c+1), t += sum of dZ phi_q
//
//          [n]: barriers. Shared memory: 2 q, 2 dN, 2 k, v [64,D], maps [D,F], phi_q, phi_k [64,128], du [64,F], and P, dS
//          [128,64] in the place of T's copy [128,D]. Beyond the last block lie rows of zeros; T and t are 0 for the last two
//          blocks of keys.
// COST     a row and query head, D = 128: 17 D^2 FLOPs (dWk: 1 more), 6 D bytes and 4 D written by query head.
// NUMERICS scores and weights have the bits that the walk over the rows saw: the same operands on the same sides, the same order
//          of D, the saved maximum. So comparing a score with that maximum finds exactly the keys that it counted. P, dS, du, T
//          enter products as bf16; T and t are f32, t from dZ as the sum of two bf16 numbers. Sums over a group's heads:
//          hybrid_fused_sums.cu.
// LADDER   1 mma.sync. 2 this: wgmma, as the forward.
// SOURCE   arXiv 2410.10254; the order of a step is derived here.
#include "kernels/hybrid_attention/hybrid_fused_backward.cuh"
#include "kernels/hybrid_attention/hybrid_fused_steps.cuh"

namespace lc::kernels {
namespace {

using SeenTile = WgmmaTile<2 * kFusedRows, kFusedRows>;  // numbers of two blocks of rows and the keys of one block

template <int D>
struct KeysRoom {
    RowTile<D> q, dn, k, v;  // 2, 2, 2, 1
    MapTile<D> wq, wk;
    DuTile du;
    FeatureTile phi_q, phi_k;
    SeenTile p, ds;
    StateTile<D> copy;  // over p and ds
    float4* dots;
    float *numbers, *t;  // numbers: 2 x (dZ, m, D / ties [64])
    static constexpr int kBytes = 7 * RowTile<D>::kBytes + 2 * MapTile<D>::kBytes + DuTile::kBytes +
                                  2 * FeatureTile::kBytes + 2 * SeenTile::kBytes +
                                  (kFusedFeatures + 10 * kFusedRows) * int{sizeof(float)};
    static_assert(kBytes <= kFusedSharedBytes && StateTile<D>::kBytes <= 2 * SeenTile::kBytes);

    explicit __device__ KeysRoom(SharedRoom room)
        : q(room.tiles<RowTile<D>>(2)),
          dn(room.tiles<RowTile<D>>(2)),
          k(room.tiles<RowTile<D>>(2)),
          v(room.tiles<RowTile<D>>()),
          wq(room.tiles<MapTile<D>>()),
          wk(room.tiles<MapTile<D>>()),
          du(room.tiles<DuTile>()),
          phi_q(room.tiles<FeatureTile>()),
          phi_k(room.tiles<FeatureTile>()),
          p(room.tiles<SeenTile>()),
          ds(room.tiles<SeenTile>()),
          copy{p.data},
          dots(room.numbers<float4>(kFusedRows)),
          numbers(room.numbers(6 * kFusedRows)),
          t(room.numbers(kFusedFeatures)) {}
    __device__ __forceinline__ float* numbers_of(int b) const { return numbers + b % 2 * 3 * kFusedRows; }
};

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

// dZ, m and D / ties of a block's rows; zeros where there is none.
template <int D>
__device__ __forceinline__ void copy_numbers(const KeysRoom<D>& room, const FusedRowResults& results, int64_t first,
                                             int b, bool valid) {
    constexpr int kChunks = kFusedRows / 4;
    if (threadIdx.x >= 3 * kChunks) return;
    const int which = threadIdx.x / kChunks, place = threadIdx.x % kChunks * 4;
    const float* from = which == 0 ? results.dz : which == 1 ? results.high : results.max_part;
    copy_async(room.numbers_of(b) + which * kFusedRows + place, from + (valid ? first + place : 0), valid);
}

// P and dS of this warpgroup's rows, block c or c+1, against the keys of block c.
template <int D>
__device__ __forceinline__ void make_window(const KeysRoom<D>& room, const RowTile<D>& k, int c, float scale,
                                            float log2_gamma) {
    const int next = warpgroup(), b = c + next;
    const RowTile<D> q = nth_tile(room.q, b % 2), dn = nth_tile(room.dn, b % 2);
    const float* numbers = room.numbers_of(b);
    WindowTile score, dp;
    score.multiply_keys<D>(q, k);
    dp.multiply_keys<D>(dn, room.v);
    wait_products<0>(score.s, dp.s);
    const Place place;
    const TilePairs p(room.p, place, next * kFusedRows, 0), ds(room.ds, place, next * kFusedRows, 0);
    place.each_row([&](int half, int row) {
        const float dz = numbers[row], high = numbers[kFusedRows + row], part = numbers[2 * kFusedRows + row];
        const WindowWeight weight_of(scale, log2_gamma, high);
#pragma unroll
        for (int n = 0; n < kFusedRows / 8; ++n) {
            const float *s = pair_of(score.s, half, n), *x = pair_of(dp.s, half, n);
            const int key = 8 * n + place.column;
            float weight[2], gradient[2];
#pragma unroll
            for (int e = 0; e < 2; ++e) {
                const bool seen = next == 1 || key + e <= row;
                weight[e] = seen ? weight_of(s[e]) : 0.0f;
                gradient[e] = seen && s[e] == high ? -part : 0.0f;
            }
            const uint32_t pair = pack_bf16(weight[0], weight[1]);
            const float2 rounded = unpack_bf16(pair);
            p.store(half, n, pair);
            ds.store(half, n,
                     pack_bf16(scale * fmaf(rounded.x, x[0] + dz, gradient[0]),
                               scale * fmaf(rounded.y, x[1] + dz, gradient[1])));
        }
    });
}

// c (+)= seen^T x over this block's rows (0) or the next one's (1): a [128,64], both kept in `left` until the wait.
template <int D>
__device__ __forceinline__ void add_seen(OutputTile<D>& to, FragmentA (&left)[2][kFusedRows / 16],
                                         const RowTile<D>& own, const RowTile<D>& next, bool keep) {
    multiply_transposed<kFusedRows, Major::MN>(to.c, left[0], own, to.column0(), keep);
    multiply_transposed<kFusedRows, Major::MN>(to.c, left[1], next, to.column0(), true);
}
__device__ __forceinline__ void load_seen(FragmentA (&left)[2][kFusedRows / 16], const SeenTile& seen) {
    load_transposed<kFusedRows>(left[0], seen, 0, 0);
    load_transposed<kFusedRows>(left[1], seen, kFusedRows, 0);
}

template <int D>
__device__ __forceinline__ void store_keys(const FusedKeysArgs& args, const FusedHead& head, const PairRows& to, int c,
                                           OutputTile<D>& tile) {
    if (!to) return;
    tile.each_pair([&](int, int row, auto&& elements) {
        const int j = c * kFusedRows + row;
        if (j >= args.in.shape.length) return;
        elements([&](int, int column, const float* x) {
            to.put(head.b, args.by_query_head ? head.h : head.hk, j, column, make_float2(x[0], x[1]));
        });
    });
}

#endif

template <int D, bool kMap>
__global__ void __launch_bounds__(kFusedThreads, 1) keys_kernel(const __grid_constant__ FusedKeysArgs args) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
    extern __shared__ __align__(1024) unsigned char shared[];
    const KeysRoom<D> room(SharedRoom{shared});
    const FusedShape& s = args.in.shape;
    const FusedHead head(s);
    const __nv_bfloat16 *q = args.in.q.head(head.b, head.h), *k = args.in.k.head(head.b, head.hk),
                        *v = args.in.v.head(head.b, head.hk);
    const int64_t rows = int64_t{s.blocks} * kFusedRows;
    const __nv_bfloat16* dn = args.results.dn + head.item * rows * D;
    const float log2_gamma = log2_gamma_of(args.in, head);
    const bool queries = warpgroup() == 0;  // whose map is this warpgroup's

    const int last = s.blocks - 1;
    copy_block<D>(nth_tile(room.k, last % 2), k, args.in.k.strides[2], last, s.length);
    copy_block<D>(room.v, v, args.in.v.strides[2], last, s.length);
    copy_block<D>(nth_tile(room.q, s.blocks % 2), q, 0, -1, 0);
    copy_block<D>(nth_tile(room.dn, s.blocks % 2), dn, 0, -1, 0);
    copy_numbers(room, args.results, 0, s.blocks, false);
    copy_async_commit();
    load_map<D>(room.wq, args.in.wq, head.h);
    load_map<D>(room.wk, args.in.wk, head.hs);
    if (threadIdx.x < kFusedFeatures) room.t[threadIdx.x] = 0;

    FeatureSums<D> sums;
    MapGradient<D> dwk;
    for (int c = last; c >= 0; --c) {
        const RowTile<D> q_own = nth_tile(room.q, c % 2), q_next = nth_tile(room.q, (c + 1) % 2);
        const RowTile<D> dn_own = nth_tile(room.dn, c % 2), dn_next = nth_tile(room.dn, (c + 1) % 2);
        const RowTile<D> k_own = nth_tile(room.k, c % 2);
        copy_async_wait<0>();
        publish_barrier();  // [1] k(c), v(c) are here; step c+1 is over
        sums.publish(room.copy);
        float u[kFusedMap / 2];
        multiply_map<D>(u, either(queries, q_next, k_own), either(queries, room.wq, room.wk));
        copy_block<D>(q_own, q, args.in.q.strides[2], c, s.length);
        copy_block<D>(dn_own, dn, D, c, static_cast<int>(rows));
        copy_numbers(room, args.results, head.item * rows + c * kFusedRows, c, true);
        copy_async_commit();
        if (c > 0) copy_block<D>(nth_tile(room.k, (c + 1) % 2), k, args.in.k.strides[2], c - 1, s.length);
        copy_async_commit();
        wait_products<0>(u);
        map_rows(u, either(queries, room.phi_q, room.phi_k), nullptr, nullptr);
        publish_barrier();  // [2] features and T's copy are here

        OutputTile<D> dv;
        FeatureGradient dphi;
        dphi.multiply_state<D>(room.v, room.copy);
        begin_products();
        dv.template add<kFusedFeatures>(room.phi_k, 0, room.copy, false);
        end_products();
        wait_products<1>(dphi.g[0], dphi.g[1]);
        dphi.put_dots(
            room.t, [](int) { return 1.0f; }, room.phi_k, room.dots);
        wait_products<0>(dv.c);
        copy_async_wait<1>();
        publish_barrier();  // [3] q(c), dN(c), numbers and shares are here; nobody reads T's copy any more
        dphi.put_du(room.phi_k, room.dots, room.du);
        make_window(room, k_own, c, s.scale, log2_gamma);
        publish_barrier();  // [4] du, P, dS are here; nobody reads v(c) any more
        if (c > 0) copy_block<D>(room.v, v, args.in.v.strides[2], c - 1, s.length);
        copy_async_commit();

        FragmentA left[2][kFusedRows / 16];
        load_seen(left, room.p);
        begin_products();
        add_seen(dv, left, dn_own, dn_next, true);
        end_products();
        wait_products<0>(dv.c, left[0], left[1]);
        store_keys(args, head, args.dv, c, dv);
        OutputTile<D> dk;
        load_seen(left, room.ds);
        begin_products();
        add_seen(dk, left, q_own, q_next, false);
        dk.add_map(room.du, room.wk);
        end_products();
        sums.add(room.phi_q, dn_next, SplitWeights{room.numbers_of(c + 1)});
        wait_products<1>(dk.c, left[0], left[1]);
        store_keys(args, head, args.dk, c, dk);
        wait_products<0>(sums.c, sums.left);
        sums.put_total(room.t);
        if (kMap) {
            dwk.load(k_own);
            dwk.add(room.du);
            wait_products<0>(dwk.c, dwk.left);
        }
    }
    if (kMap) dwk.store(args.dwk_parts, head.item);
#endif
}

}  // namespace

void fused_backward_keys(const FusedKeysArgs& args, int64_t d, Stream stream) {
    dispatch_head_dim(static_cast<int>(d), [&](auto dim) {
        dispatch_bool(args.dwk_parts != nullptr, [&](auto map) {
            constexpr int kBytes = KeysRoom<dim()>::kBytes;
            const auto kernel = keys_kernel<dim(), map()>;
            allow_shared_memory(kernel, kBytes);
            kernel<<<grid_x(args.in.shape.items), kFusedThreads, kBytes, cuda::handle_of(stream)>>>(args);
            LC_LAUNCHED("hybrid_attention", cuda::handle_of(stream));
        });
    });
}

}  // namespace lc::kernels
