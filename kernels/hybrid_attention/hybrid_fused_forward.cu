// Fused hybrid attention on tensor cores: forward. When it applies: hybrid_fused.h; steps: hybrid_fused_steps.cuh.
//
// MATHS    hybrid_attention.h. For the rows of block b: the window is blocks b-1 and b, S and z hold blocks <= b-2.
// TILING   thread block = (batch entry, query head, segment), 8 warps, blocks of 64 positions in order; one thread block an SM
//
//            load   q(b) k(b)                           under the end of step b-1
//            [1]    v(b) on its way; S's copy           phi_q(b), phi_q.z: warps 0-3   phi_k(b-1): warps 4-7
//                   scores, row maxima of either side
//            [2]    q(b+1), k(b+1) on their way         weights P of either side, their sums
//            [3]    N = P [v(b-1), v(b)] + phi_q S      y = N / Z     S += phi_k(b-1)^T v(b-1), z += sum of phi_k(b-1)
//
//          [n]: barriers. Shared memory: q, 2 k, 2 v, S's copy [64 or 128,D], maps [D,F], phi_q, phi_k, P [64,128].
//          Registers of a warp: 16 features of S in f32; 32 rows x D/4 columns of N.
// COST     a row and query head, D = 128: 10 D^2 FLOPs, 5 D bytes (K and V shared by four heads in L2): 256 FLOP a byte.
//          In segments 3 D^2 FLOPs and 4 D bytes on top (hybrid_fused_segments.cu).
// NUMERICS products of bf16 with f32 sums; maps are rounded to bf16; S and z are f32, S enters products as bf16. Z adds up the
//          weights and features as they are rounded for the products, so that a row with one key gives exactly its value.
//          The row maximum is exact: taken over the whole window before any exponential; exp2 (ex2.approx) of (s - m) scale
//          log2 e, at most 1. A gamma below 1e-30 counts as 1e-30: Z never becomes 0, and rows without far keys do not see it.
// LADDER   1 this.
// SOURCE   arXiv 2410.10254; the order of a step is derived here.
#include "kernels/hybrid_attention/hybrid_fused.h"
#include "kernels/hybrid_attention/hybrid_fused_segments.cuh"

namespace lc::kernels {
namespace {

struct ForwardArgs {
    FusedInputs in;
    AlignedHeads y;
    StateRows past;
    float *s_out, *z_out;  // [B,Hs,F',D], [B,Hs,F'], or null
    const float* starts;   // S, z of the segments
};

template <int D>
struct ForwardRoom {
    static constexpr int kQueryTiles = 1, kKeyTiles = 2;
    SharedTile<D> q, k, v, state;  // k, v: two each
    SharedTile<kFusedMap> wq, wk;
    SharedTile<kFusedFeatures> phi_q, phi_k, p;
    float *z, *high, *sum, *far;  // [F'], [2][64], [2][64], [64]
    static constexpr int kBytes = SharedTile<D>::bytes(5 * kFusedRows + kFusedFeatures) +
                                  SharedTile<kFusedMap>::bytes(2 * D) +
                                  SharedTile<kFusedFeatures>::bytes(3 * kFusedRows) +
                                  (kFusedFeatures + 5 * kFusedRows) * static_cast<int>(sizeof(float));
    static_assert(kBytes <= kFusedSharedBytes);

    explicit __device__ ForwardRoom(SharedRoom room)
        : q(room.tile<D>(kFusedRows)),
          k(room.tile<D>(2 * kFusedRows)),
          v(room.tile<D>(2 * kFusedRows)),
          state(room.tile<D>(kFusedFeatures)),
          wq(room.tile<kFusedMap>(D)),
          wk(room.tile<kFusedMap>(D)),
          phi_q(room.tile<kFusedFeatures>(kFusedRows)),
          phi_k(room.tile<kFusedFeatures>(kFusedRows)),
          p(room.tile<kFusedFeatures>(kFusedRows)),
          z(room.floats(kFusedFeatures)),
          high(room.floats(2 * kFusedRows)),
          sum(room.floats(2 * kFusedRows)),
          far(room.floats(kFusedRows)) {}
};

template <int D>
__device__ __forceinline__ void store_state(const ForwardArgs& args, const FusedHead& head,
                                            const FeatureSums<D>& state) {
    const FusedShape& s = args.in.shape;
    if (!args.s_out || head.h % (s.heads / s.maps) != 0 || head.last != s.blocks) return;
    const int64_t first = (head.b * s.maps + head.hs) * kFusedFeatures;
    state.store(args.s_out + first * D, args.z_out + first);
}

template <int D>
__global__ void __launch_bounds__(kFusedThreads, 1) forward_kernel(const __grid_constant__ ForwardArgs args) {
    extern __shared__ __align__(128) unsigned char shared[];
    const ForwardRoom<D> room(SharedRoom{shared});
    const FusedShape& s = args.in.shape;
    const FusedHead head(s);
    const HeadInputs x(args.in, head);
    const float factor = s.scale * kLog2E;

    begin_rows<D>(args.in, head, x, room);
    FeatureSums<D> state;
    begin_segment(state, room.z, args.starts, s, head, past_of<D>(args.past, s, head));
    for (int b = head.first; b < head.last; ++b) {
        const bool far = b >= 2, grows = b >= 1 && b + 1 < head.last;  // is there a state to read; will one be
        const SharedTile<D> k_before = nth_tile(room.k, (b + 1) % 2), k_own = nth_tile(room.k, b % 2);
        const SharedTile<D> v_before = nth_tile(room.v, (b + 1) % 2), v_own = nth_tile(room.v, b % 2);
        copy_async_wait<0>();
        __syncthreads();  // [1] q(b), k(b) are here; step b-1 is over
        copy_block(v_own, x.v, args.in.v.strides[2], b, s.keys, s.key_row);
        copy_async_commit();
        if (far) state.publish(room.state);
        const int map_row = warp_index() % 4 * 16;
        if (warp_index() < 4 && far) map_rows(room.q, map_row, room.wq, room.phi_q, room.z, room.far);
        if (warp_index() >= 4 && grows) map_rows(k_before, map_row, room.wk, room.phi_k, nullptr, nullptr);
        WindowTile window;
        window.make_scores(room.q, window.side == 0 ? k_before : k_own, b == 0, room.high);
        __syncthreads();  // [2] row maxima are here; nobody reads q(b), k(b-1) any more
        if (b + 1 < head.last) {
            copy_block(room.q, x.q, args.in.q.strides[2], b + 1, s.length, s.query_row);
            copy_block(k_before, x.k, args.in.k.strides[2], b + 1, s.keys, s.key_row);
        }
        copy_async_commit();
        window.make_weights(room.high, factor, x.gamma, room.sum, [&](int half, int n, uint32_t pair) {
            pair_at(room.p, window.row + 8 * half + quad_row(), window.side * kFusedRows + 8 * n + 2 * quad_lane()) =
                pair;
        });
        copy_async_wait<1>();
        __syncthreads();  // [3] v(b), weights, sums and features are here

        OutputTile<D> y;
        y.template add<kFusedRows>([&](int m, int c) { return load_a(room.p, m, c); }, v_before);
        y.template add<kFusedRows>([&](int m, int c) { return load_a(room.p, m, kFusedRows + c); }, v_own);
        if (far) y.template add<kFusedFeatures>([&](int m, int c) { return load_a(room.phi_q, m, c); }, room.state);
        __nv_bfloat16* out = args.y.head(head.b, head.h);
        y.each_row([&](int row, auto&& elements) {
            const int64_t i = int64_t{b} * kFusedRows + s.query_row + row;
            if (i < 0 || i >= s.length) return;
            const float inverse = 1 / (room.sum[row] + room.sum[kFusedRows + row] + room.far[row]);
            elements([&](int, int column, const float* n) {
                *reinterpret_cast<uint32_t*>(out + i * args.y.strides[2] + column) =
                    pack_bf16(n[0] * inverse, n[1] * inverse);
            });
        });
        if (grows) {
            state.add(room.phi_k, v_before, UnitWeights{});
            state.put_total(room.z);
        }
    }
    store_state(args, head, state);
}

}  // namespace

void hybrid_fused_forward(const HybridAttentionForward& a, Stream stream) {
    FusedInputs in(a);
    in.shape.segments = segments_of(in.shape, a.q.device);
    const int64_t head_dim = a.q.size(3);
    const SegmentStarts starts(in, head_dim, stream);
    const ForwardArgs args{in,
                           AlignedHeads(a.y),
                           {device_data<float>(a.s_in), device_data<float>(a.z_in)},
                           device_data<float>(a.s_out),
                           device_data<float>(a.z_out),
                           starts.of_keys()};
    dispatch_head_dim(static_cast<int>(head_dim), [&](auto d) {
        constexpr int kBytes = ForwardRoom<d()>::kBytes;
        allow_shared_memory(forward_kernel<d()>, kBytes);
        forward_kernel<d()><<<grid_x(in.shape.parts()), kFusedThreads, kBytes, cuda::handle_of(stream)>>>(args);
        LC_LAUNCHED("hybrid_attention", cuda::handle_of(stream));
    });
}

}  // namespace lc::kernels
