// Fused hybrid attention on tensor cores, backward: the walk over the keys, last block first.
//
// MATHS    hybrid_attention.h. For the keys of block c: the window's rows are blocks c and c+1; T and t hold rows of blocks >= c+2.
// TILING   thread block = (batch entry, query head, segment), 8 warps, blocks of 64 positions in reverse; one thread block an SM
//
//            load   k(c) v(c)                           under step c+1; q, dN and numbers of block c+1 are still there
//            [1]    q(c), dN(c), numbers, k(c-1) on     phi_q(c+1): warps 0-3    phi_k(c): warps 4-7    T's copy
//                   their way
//            [2]    dphi_k = v T^T + t                  shares of phi_k.dphi_k   dv = phi_k T
//            [3]    du_k                                s, P, dP = dN v^T, dS of rows c and c+1 (16 x 64 a warp)
//            [4]    v(c-1) on its way                   dk = dS^T q + du_k W^T   dv += P^T dN
//                   dWk += k^T du_k                     T += phi_q(c+1)^T dN(c+1), t += sum of dZ phi_q
//
//          [n]: barriers. Shared memory: 2 q, 2 dN, 2 k, v [64,D], maps [D,F], phi_q, phi_k [64,128], du [64,F], and P, dS
//          [128,64] in the place of T's copy [128,D].
// COST     a row and query head, D = 128: 17 D^2 FLOPs (dWk: 1 more), 6 D bytes and 4 D written by query head.
// NUMERICS scores and weights have the bits that the walk over the rows saw: the same operands on the same sides, the same order
//          of D, the saved maximum. So comparing a score with that maximum finds exactly the keys that it counted. P, dS, du, T
//          enter products as bf16; T and t are f32, t from dZ as the sum of two bf16 numbers. Sums over a group's heads:
//          hybrid_fused_sums.cu.
// LADDER   1 this.
// SOURCE   arXiv 2410.10254; the order of a step is derived here.
#include "kernels/hybrid_attention/hybrid_fused_backward.cuh"
#include "kernels/hybrid_attention/hybrid_fused_segments.cuh"

namespace lc::kernels {
namespace {

template <int D>
struct KeysRoom {
    SharedTile<D> q, dn, k, v;  // 2, 2, 2, 1
    SharedTile<kFusedMap> wq, wk, du;
    SharedTile<kFusedFeatures> phi_q, phi_k;
    SharedTile<kFusedRows> p, ds;  // [128,64] each
    SharedTile<D> copy;            // over p and ds
    float *numbers, *t, *dots;     // numbers: 2 x (dZ, m, D / ties [64])
    static constexpr int kBytes =
        SharedTile<D>::bytes(7 * kFusedRows) + SharedTile<kFusedMap>::bytes(2 * D + kFusedRows) +
        SharedTile<kFusedFeatures>::bytes(2 * kFusedRows) + SharedTile<kFusedRows>::bytes(4 * kFusedRows) +
        (kFusedFeatures + (6 + FeatureGradient::kDots) * kFusedRows) * int{sizeof(float)};
    static_assert(kBytes <= kFusedSharedBytes);

    explicit __device__ KeysRoom(SharedRoom room)
        : q(room.tile<D>(2 * kFusedRows)),
          dn(room.tile<D>(2 * kFusedRows)),
          k(room.tile<D>(2 * kFusedRows)),
          v(room.tile<D>(kFusedRows)),
          wq(room.tile<kFusedMap>(D)),
          wk(room.tile<kFusedMap>(D)),
          du(room.tile<kFusedMap>(kFusedRows)),
          phi_q(room.tile<kFusedFeatures>(kFusedRows)),
          phi_k(room.tile<kFusedFeatures>(kFusedRows)),
          p(room.tile<kFusedRows>(2 * kFusedRows)),
          ds(room.tile<kFusedRows>(2 * kFusedRows)),
          copy{p.data},
          numbers(room.floats(6 * kFusedRows)),
          t(room.floats(kFusedFeatures)),
          dots(room.floats(FeatureGradient::kDots * kFusedRows)) {}
    __device__ __forceinline__ float* numbers_of(int b) const { return numbers + b % 2 * 3 * kFusedRows; }
};

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

// P and dS of a warp's 16 rows against the keys of block c: warps 0-3 the rows of block c, warps 4-7 those of c+1.
template <int D>
__device__ __forceinline__ void make_window(const KeysRoom<D>& room, const SharedTile<D>& k, int c, float scale,
                                            float gamma) {
    constexpr int kStep = 32;  // keys whose scores are in registers at a time
    const int next = warp_index() / 4, row = warp_index() % 4 * 16, b = c + next;
    const SharedTile<D> q = nth_tile(room.q, b % 2), dn = nth_tile(room.dn, b % 2);
    const float* numbers = room.numbers_of(b) + row;
#pragma unroll
    for (int column = 0; column < kFusedRows; column += kStep) {
        Accumulator s[1][kStep / 8], dp[1][kStep / 8];
        window_scores(s, q, row, k, column);
        window_scores(dp, dn, row, room.v, column);
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const int r = 8 * half + quad_row();
            const float dz = numbers[r], high = numbers[kFusedRows + r], part = numbers[2 * kFusedRows + r];
#pragma unroll
            for (int n = 0; n < kStep / 8; ++n) {
                const int key = column + 8 * n + 2 * quad_lane();
                float weight[2], gradient[2];
#pragma unroll
                for (int e = 0; e < 2; ++e) {
                    const float score = s[0][n].c[2 * half + e];
                    const bool seen = next == 1 || key + e <= row + r;
                    weight[e] = seen ? window_weight(score, high, scale * kLog2E, gamma) : 0.0f;
                    gradient[e] = seen && score == high ? -part : 0.0f;
                }
                const uint32_t pair = pack_bf16(weight[0], weight[1]);
                const float2 rounded = unpack_bf16(pair);
                gradient[0] += rounded.x * (dp[0][n].c[2 * half] + dz);
                gradient[1] += rounded.y * (dp[0][n].c[2 * half + 1] + dz);
                pair_at(room.p, next * kFusedRows + row + r, key) = pair;
                pair_at(room.ds, next * kFusedRows + row + r, key) =
                    pack_bf16(scale * gradient[0], scale * gradient[1]);
            }
        }
    }
}

template <int D>
__device__ __forceinline__ void store_keys(const FusedKeysArgs& args, const FusedHead& head, const PairRows& to, int c,
                                           OutputTile<D>& tile) {
    if (!to) return;
    tile.each_row([&](int r, auto&& elements) {
        const int j = c * kFusedRows + r;
        if (j >= args.in.shape.length) return;
        elements([&](int, int column, const float* x) {
            to.put(head.b, head.h / (args.in.shape.heads / args.key_heads), j, column, make_float2(x[0], x[1]));
        });
    });
}

template <int D, bool kMap>
__global__ void __launch_bounds__(kFusedThreads, 1) keys_kernel(const __grid_constant__ FusedKeysArgs args) {
    extern __shared__ __align__(128) unsigned char shared[];
    const KeysRoom<D> room(SharedRoom{shared});
    const FusedShape& s = args.in.shape;
    const FusedHead head(s);
    const HeadInputs x(args.in, head);
    const int64_t rows = int64_t{s.blocks} * kFusedRows;
    const __nv_bfloat16* dn = args.results.dn + head.item * rows * D;

    const int from = s.blocks - 1 - head.first, to = s.blocks - head.last;  // this segment's blocks, both included
    copy_block(nth_tile(room.k, from % 2), x.k, args.in.k.strides[2], from, s.length);
    copy_block(room.v, x.v, args.in.v.strides[2], from, s.length);
    copy_block(nth_tile(room.q, (from + 1) % 2), x.q, args.in.q.strides[2], from + 1, s.length);
    copy_block(nth_tile(room.dn, (from + 1) % 2), dn, D, from + 1, static_cast<int>(rows));
    copy_numbers(room, args.results, head.item * rows + (from + 1) * kFusedRows, from + 1, head.first > 0);
    copy_async_commit();
    load_map<D>(room.wq, args.in.wq, head.h);
    load_map<D>(room.wk, args.in.wk, head.hs);

    FeatureSums<D> sums;
    begin_segment(sums, room.t, args.starts, s, head);
    MapGradient<D> dwk;
    for (int c = from; c >= to; --c) {
        const bool far = c + 2 < s.blocks, grows = c > to && c + 1 < s.blocks;
        const SharedTile<D> q_own = nth_tile(room.q, c % 2), q_next = nth_tile(room.q, (c + 1) % 2);
        const SharedTile<D> dn_own = nth_tile(room.dn, c % 2), dn_next = nth_tile(room.dn, (c + 1) % 2);
        const SharedTile<D> k_own = nth_tile(room.k, c % 2);
        copy_async_wait<0>();
        __syncthreads();  // [1] k(c), v(c) are here; step c+1 is over
        copy_block(q_own, x.q, args.in.q.strides[2], c, s.length);
        copy_block(dn_own, dn, D, c, static_cast<int>(rows));
        copy_numbers(room, args.results, head.item * rows + c * kFusedRows, c, true);
        copy_async_commit();
        if (c > to) copy_block(nth_tile(room.k, (c + 1) % 2), x.k, args.in.k.strides[2], c - 1, s.length);
        copy_async_commit();
        const int map_row = warp_index() % 4 * 16;
        if (warp_index() < 4 && grows) map_rows(q_next, map_row, room.wq, room.phi_q, nullptr, nullptr);
        if (warp_index() >= 4 && far) map_rows(k_own, map_row, room.wk, room.phi_k, nullptr, nullptr);
        if (far) sums.publish(room.copy);
        __syncthreads();  // [2] features and T's copy are here

        OutputTile<D> dv;
        FeatureGradient dphi;
        if (far) {
            dphi.multiply_sums(room.v, sums);
            dphi.add_total(room.t, [](int) { return 1.0f; });
            dphi.put_dots(room.phi_k, room.dots);
            dv.template add<kFusedFeatures>([&](int m, int f) { return load_a(room.phi_k, m, f); }, room.copy);
        }
        copy_async_wait<1>();
        __syncthreads();  // [3] q(c), dN(c), numbers and shares are here; nobody reads T's copy any more
        if (far) dphi.put_du(room.phi_k, room.dots, room.du);
        make_window(room, k_own, c, s.scale, x.gamma);
        __syncthreads();  // [4] du, P, dS are here; nobody reads v(c) any more
        if (c > to) copy_block(room.v, x.v, args.in.v.strides[2], c - 1, s.length);
        copy_async_commit();

        dv.template add<kFusedRows>([&](int m, int i) { return load_a_transposed(room.p, m, i); }, dn_own);
        dv.template add<kFusedRows>([&](int m, int i) { return load_a_transposed(room.p, m, kFusedRows + i); },
                                    dn_next);
        store_keys(args, head, args.dv, c, dv);
        if (args.dk) {
            OutputTile<D> dk;
            dk.template add<kFusedRows>([&](int m, int i) { return load_a_transposed(room.ds, m, i); }, q_own);
            dk.template add<kFusedRows>([&](int m, int i) { return load_a_transposed(room.ds, m, kFusedRows + i); },
                                        q_next);
            if (far) dk.add_map(room.du, room.wk);
            store_keys(args, head, args.dk, c, dk);
        }
        if (kMap && far) dwk.add(k_own, room.du);
        if (grows) {
            sums.add(room.phi_q, dn_next, SplitWeights{room.numbers_of(c + 1)});
            sums.put_total(room.t);
        }
    }
    if (kMap) dwk.store(args.dwk_parts, head.part());
}

}  // namespace

void fused_backward_keys(const FusedKeysArgs& args, int64_t d, Stream stream) {
    dispatch_head_dim(static_cast<int>(d), [&](auto dim) {
        dispatch_bool(args.dwk_parts != nullptr, [&](auto map) {
            constexpr int kBytes = KeysRoom<dim()>::kBytes;
            const auto kernel = keys_kernel<dim(), map()>;
            allow_shared_memory(kernel, kBytes);
            kernel<<<grid_x(args.in.shape.parts()), kFusedThreads, kBytes, cuda::handle_of(stream)>>>(args);
            LC_LAUNCHED("hybrid_attention", cuda::handle_of(stream));
        });
    });
}

}  // namespace lc::kernels
