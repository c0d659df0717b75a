// Fused linear attention on tensor cores, backward: the walk over the keys, last block first.
//
// MATHS    linear_attention.h. For the keys of block c: T and t hold the rows of blocks > c; inside the block, with A and G
//          of linear_fused_backward_rows.cu
//
//            dphi_k = T v + t + G^T phi_q               dv = T^T phi_k + A^T dN
// TILING   thread block = (batch entry, query head), 8 warps, blocks of 64 positions in reverse; one thread block an SM
//
//            load   q(c) k(c) v(c) dy(c) 1/Z dZ         under step c+1
//                   T v + t        T's copy             phi_q: warps 0-3   phi_k: warps 4-7: under [4] of c+1
//            [1]    q(c-1), k(c-1) on their way         A, G, dN       dv = phi_k T
//            [2]    v(c-1), dy(c-1) on their way        dphi_k += G^T phi_q       shares of phi_k.dphi_k
//                                                       dv += A^T dN              T += phi_q^T dN, t += sum of dZ phi_q
//            [3]    1/Z, dZ of c-1 on their way         du_k
//            [4]    dk = du_k W^T                       dWk += k^T du_k
//
//          [n]: barriers. Shared memory: q, 2 k, v, dy, dN [64,D], T's copy [128,D], maps [D,F], phi_q, phi_k [64,128],
//          A, G [64,64], du [64,F].
// COST     a row and query head, D = 128: 12 D^2 FLOPs (dWk: 1 more), 5 D bytes and 4 D written by query head.
// NUMERICS A and G have the bits that the walk over the rows saw: G is made from dy and divided afterwards, so that the one
//          key of a row gets 0 from it, whatever Z is. A, G, dN, du, T enter products as bf16; T and t are f32, t from dZ
//          as the sum of two bf16 numbers. Sums over a group's heads: kernels/hybrid_attention/hybrid_fused_sums.cu.
// LADDER   1 this.
// SOURCE   arXiv 2312.06635; the order of a step is derived here.
#include "kernels/linear_attention/linear_fused_backward.cuh"
#include "kernels/linear_attention/linear_fused_steps.cuh"

namespace lc::kernels {
namespace {

template <int D>
struct KeysRoom {
    SharedTile<D> q, k, v, dy, dn, copy;  // 1, 2, 1, 1, 1; T's copy
    SharedTile<kFusedMap> wq, wk, du;
    SharedTile<kFusedFeatures> phi_q, phi_k;
    SharedTile<kFusedRows> a, g;
    float *inverse, *dz, *t, *map_inverse, *dots;  // map_inverse: of phi_k's sums
    static constexpr int kBytes =
        SharedTile<D>::bytes(6 * kFusedRows + kFusedFeatures) + SharedTile<kFusedMap>::bytes(2 * D + kFusedRows) +
        SharedTile<kFusedFeatures>::bytes(2 * kFusedRows) + SharedTile<kFusedRows>::bytes(2 * kFusedRows) +
        (kFusedFeatures + (4 + FeatureGradient::kDots) * kFusedRows) * int{sizeof(float)};
    static_assert(kBytes <= kFusedSharedBytes);

    explicit __device__ KeysRoom(SharedRoom room)
        : q(room.tile<D>(kFusedRows)),
          k(room.tile<D>(2 * kFusedRows)),
          v(room.tile<D>(kFusedRows)),
          dy(room.tile<D>(kFusedRows)),
          dn(room.tile<D>(kFusedRows)),
          copy(room.tile<D>(kFusedFeatures)),
          wq(room.tile<kFusedMap>(D)),
          wk(room.tile<kFusedMap>(D)),
          du(room.tile<kFusedMap>(kFusedRows)),
          phi_q(room.tile<kFusedFeatures>(kFusedRows)),
          phi_k(room.tile<kFusedFeatures>(kFusedRows)),
          a(room.tile<kFusedRows>(kFusedRows)),
          g(room.tile<kFusedRows>(kFusedRows)),
          inverse(room.floats(kFusedRows)),
          dz(room.floats(kFusedRows)),
          t(room.floats(kFusedFeatures)),
          map_inverse(room.floats(2 * kFusedRows)),
          dots(room.floats(FeatureGradient::kDots * kFusedRows)) {}
};

// 1 / Z and dZ of a block's rows, the first of them `first`.
template <int D>
__device__ __forceinline__ void copy_numbers(const KeysRoom<D>& room, const LinearRowResults& results, int64_t first) {
    constexpr int kChunks = kFusedRows / 4;
    if (threadIdx.x >= 2 * kChunks) return;
    const int place = threadIdx.x % kChunks * 4;
    const bool inverse = threadIdx.x < kChunks;
    copy_async((inverse ? room.inverse : room.dz) + place, (inverse ? results.inverse : results.dz) + first + place);
}

// dN from dy: a quarter of a row a thread.
template <int D>
__device__ __forceinline__ void divide_rows(const KeysRoom<D>& room) {
    const int row = threadIdx.x / 4;
    const float inverse = room.inverse[row];
#pragma unroll
    for (int i = 0; i < D / 32; ++i) {
        const int column = (i * 4 + threadIdx.x % 4) * 8;
        auto pack = load_pack(room.dy.chunk(row, column));
#pragma unroll
        for (int e = 0; e < 8; ++e) pack.set(e, pack.get(e) * inverse);
        store_pack(room.dn.chunk(row, column), pack);
    }
}

// A and G of the block.
template <int D>
__device__ __forceinline__ void make_scores(const KeysRoom<D>& room) {
    CausalTile tile;
    multiply_features(tile, room.phi_q, room.phi_k);
    tile.each_pair([&](int half, int query, int n, int key) {
        pair_at(room.a, query, key) = pack_bf16(tile.c[n].c[2 * half], tile.c[n].c[2 * half + 1]);
    });
    CausalTile gradient;
    gradient.multiply<D>([&](int m, int k) { return load_a(room.dy, m, k); },
                         [&](int n, int k) { return load_b(room.v, n, k); });
    put_score_gradient(gradient, room.g, [&](int row, float x) { return fmaf(x, room.inverse[row], room.dz[row]); });
}

template <int D>
__device__ __forceinline__ void store_keys(const LinearKeysArgs& args, const FusedHead& head, const PairRows& to, int c,
                                           OutputTile<D>& tile) {
    tile.each_row([&](int r, auto&& elements) {
        const int64_t j = int64_t{c} * kFusedRows + r;
        if (j >= args.in.shape.length) return;
        elements([&](int, int column, const float* x) {
            to.put(head.b, args.by_query_head ? head.h : head.hk, j, column, make_float2(x[0], x[1]));
        });
    });
}

template <int D, bool kMap>
__global__ void __launch_bounds__(kFusedThreads, 1) keys_kernel(const __grid_constant__ LinearKeysArgs args) {
    extern __shared__ __align__(128) unsigned char shared[];
    const KeysRoom<D> room(SharedRoom{shared});
    const FusedShape& s = args.in.shape;
    const FusedHead head(s);
    const __nv_bfloat16 *q = args.in.q.head(head.b, head.h), *k = args.in.k.head(head.b, head.hk),
                        *v = args.in.v.head(head.b, head.hk), *dy = args.dy.head(head.b, head.h);

    const int last = s.blocks - 1;
    copy_block(nth_tile(room.k, last % 2), k, args.in.k.strides[2], last, s.length);
    copy_block(room.q, q, args.in.q.strides[2], last, s.length);
    copy_block(room.v, v, args.in.v.strides[2], last, s.length);
    copy_block(room.dy, dy, args.dy.strides[2], last, s.length);
    copy_async_commit();
    const int64_t rows = head.item * s.blocks * kFusedRows;  // the item's first row among those of all items
    copy_numbers(room, args.results, rows + last * kFusedRows);
    copy_async_commit();
    load_map<D>(room.wq, args.in.wq, head.h);
    load_map<D>(room.wk, args.in.wk, head.hs);

    copy_async_wait<1>();
    __syncthreads();

    FeatureSums<D> sums;
    MapGradient<D> dwk;
    for (int c = last; c >= 0; --c) {            // q(c), k(c), v(c), dy(c) are here; step c+1 is in [4]
        const bool later = c<last, next = c> 0;  // are there rows of later blocks; does a block follow
        const SharedTile<D> k_own = nth_tile(room.k, c % 2);
        FeatureGradient dphi;
        if (later) {
            dphi.multiply_sums(room.v, sums);
            dphi.add_total(room.t, [](int) { return 1.0f; });
            sums.publish(room.copy);
        }
        const int map_row = warp_index() % 4 * 16;
        if (warp_index() < 4) map_rows(room.q, map_row, room.wq, room.phi_q, nullptr, nullptr);
        if (warp_index() >= 4) map_rows(k_own, map_row, room.wk, room.phi_k, nullptr, nullptr);
        copy_async_wait<0>();
        __syncthreads();  // [1] features, T's copy, 1 / Z, dZ are here; step c+1 is over; nobody reads q(c) any more
        if (next) {
            copy_block(room.q, q, args.in.q.strides[2], c - 1, s.length);
            copy_block(nth_tile(room.k, (c + 1) % 2), k, args.in.k.strides[2], c - 1, s.length);
        }
        make_scores(room);
        divide_rows(room);
        put_inverse_sums(room.phi_k, room.map_inverse);
        OutputTile<D> dv;
        if (args.dv && later)
            dv.template add<kFusedFeatures>([&](int m, int x) { return load_a(room.phi_k, m, x); }, room.copy);
        __syncthreads();  // [2] A, G, dN are here; nobody reads v(c), dy(c) any more
        if (next) {
            copy_block(room.v, v, args.in.v.strides[2], c - 1, s.length);
            copy_block(room.dy, dy, args.dy.strides[2], c - 1, s.length);
        }
        copy_async_commit();
        add_features(
            dphi, [&](int m, int x) { return load_a_transposed(room.g, m, x); }, room.phi_q);
        put_dots(dphi, room.phi_k, room.map_inverse, room.dots);
        if (args.dv) {
            dv.template add<kFusedRows>([&](int m, int x) { return load_a_transposed(room.a, m, x); }, room.dn);
            store_keys(args, head, args.dv, c, dv);
        }
        if (next) {
            sums.add(room.phi_q, room.dn, SplitWeights{room.dz});
            sums.put_total(room.t);
        }
        __syncthreads();  // [3] shares are here; nobody reads 1 / Z, dZ any more
        if (next) copy_numbers(room, args.results, rows + (c - 1) * kFusedRows);
        copy_async_commit();
        dphi.put_du(room.phi_k, room.dots, room.du);
        copy_async_wait<1>();
        __syncthreads();  // [4] du, q(c-1), k(c-1), v(c-1), dy(c-1) are here; nobody reads features any more

        if (args.dk) {
            OutputTile<D> dk;
            dk.add_map(room.du, room.wk);
            store_keys(args, head, args.dk, c, dk);
        }
        if (kMap) dwk.add(k_own, room.du);
    }
    if (kMap) dwk.store(args.dwk_parts, head.item);
}

}  // namespace

void linear_backward_keys(const LinearKeysArgs& args, int64_t d, Stream stream) {
    dispatch_head_dim(static_cast<int>(d), [&](auto dim) {
        dispatch_bool(args.dwk_parts != nullptr, [&](auto map) {
            constexpr int kBytes = KeysRoom<dim()>::kBytes;
            const auto kernel = keys_kernel<dim(), map()>;
            allow_shared_memory(kernel, kBytes);
            kernel<<<grid_x(args.in.shape.items), kFusedThreads, kBytes, cuda::handle_of(stream)>>>(args);
            LC_LAUNCHED("linear_attention", cuda::handle_of(stream));
        });
    });
}

}  // namespace lc::kernels
