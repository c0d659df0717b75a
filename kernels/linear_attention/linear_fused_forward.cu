// Fused linear attention on tensor cores: forward. When it applies: linear_fused.h; steps: linear_fused_steps.cuh.
//
// MATHS    linear_attention.h. For the rows of block b: S and z hold the blocks before; inside the block A = phi_q phi_k^T,
//          causal.
// TILING   thread block = (batch entry, query head), 8 warps, blocks of 64 positions in order; one thread block an SM
//
//            load   q(b) k(b)                           under the end of step b-1
//            [1]    v(b) on its way; S's copy           phi_q, phi_q.z: warps 0-3   phi_k: warps 4-7
//            [2]    q(b+1), k(b+1) on their way         A and the sums of its rows   N = phi_q S
//            [3]    N += A v                            y = N / Z      S += phi_k^T v, z += sum of phi_k
//
//          [n]: barriers. Shared memory: q, k, v [64,D], S's copy [128,D], maps [D,F], phi_q, phi_k [64,128], A [64,64].
//          Registers of a warp: 16 features of S in f32; 32 rows x D/4 columns of N.
// COST     a row and query head, D = 128: 8 D^2 FLOPs, 5 D bytes (K and V shared by four heads in L2): 205 FLOP a byte.
// NUMERICS products of bf16 with f32 sums; maps are rounded to bf16; S and z are f32, S enters products as bf16. Z adds up
//          A and features as they are rounded for the products, so that a row with one key gives its value. Features are
//          at least 1e-12, and of every row one is 1/64 or more: A is above 1e-14 and Z above 1e-12, nothing divides by 0.
// LADDER   1 this.
// SOURCE   arXiv 2312.06635 (chunked form with a running state); the order of a step is derived here.
#include "kernels/linear_attention/linear_as_hybrid.h"
#include "kernels/linear_attention/linear_fused.h"
#include "kernels/linear_attention/linear_fused_steps.cuh"

namespace lc::kernels {
namespace {

struct ForwardArgs {
    FusedInputs in;
    AlignedHeads y;
    float *s_out, *z_out;  // [B,Hs,F',D], [B,Hs,F'], or null
};

template <int D>
struct ForwardRoom {
    SharedTile<D> q, k, v, state;
    SharedTile<kFusedMap> wq, wk;
    SharedTile<kFusedFeatures> phi_q, phi_k;
    SharedTile<kFusedRows> a;
    float *z, *sum, *far;  // [F'], [2][64], [64]
    static constexpr int kBytes =
        SharedTile<D>::bytes(3 * kFusedRows + kFusedFeatures) + SharedTile<kFusedMap>::bytes(2 * D) +
        SharedTile<kFusedFeatures>::bytes(2 * kFusedRows) + SharedTile<kFusedRows>::bytes(kFusedRows) +
        (kFusedFeatures + 3 * kFusedRows) * int{sizeof(float)};
    static_assert(kBytes <= kFusedSharedBytes);

    explicit __device__ ForwardRoom(SharedRoom room)
        : q(room.tile<D>(kFusedRows)),
          k(room.tile<D>(kFusedRows)),
          v(room.tile<D>(kFusedRows)),
          state(room.tile<D>(kFusedFeatures)),
          wq(room.tile<kFusedMap>(D)),
          wk(room.tile<kFusedMap>(D)),
          phi_q(room.tile<kFusedFeatures>(kFusedRows)),
          phi_k(room.tile<kFusedFeatures>(kFusedRows)),
          a(room.tile<kFusedRows>(kFusedRows)),
          z(room.floats(kFusedFeatures)),
          sum(room.floats(2 * kFusedRows)),
          far(room.floats(kFusedRows)) {}
};

// A of a block, rounded, and the sums of its rows over either side's keys.
template <int D>
__device__ __forceinline__ void make_weights(const ForwardRoom<D>& room) {
    CausalTile a;
    multiply_features(a, room.phi_q, room.phi_k);
    float sum[2] = {};
    a.each_pair([&](int half, int query, int n, int key) {
        const uint32_t pair = pack_bf16(a.c[n].c[2 * half], a.c[n].c[2 * half + 1]);
        const float2 rounded = unpack_bf16(pair);
        sum[half] += rounded.x + rounded.y;
        pair_at(room.a, query, key) = pair;
    });
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const float total = quad_sum(sum[half]);
        if (quad_lane() == 0) room.sum[a.side * kFusedRows + a.row + 8 * half + quad_row()] = total;
    }
}

template <int D>
__global__ void __launch_bounds__(kFusedThreads, 1) forward_kernel(const __grid_constant__ ForwardArgs args) {
    extern __shared__ __align__(128) unsigned char shared[];
    const ForwardRoom<D> room(SharedRoom{shared});
    const FusedShape& s = args.in.shape;
    const FusedHead head(s);
    const __nv_bfloat16 *q = args.in.q.head(head.b, head.h), *k = args.in.k.head(head.b, head.hk),
                        *v = args.in.v.head(head.b, head.hk);

    copy_block(room.q, q, args.in.q.strides[2], 0, s.length);
    copy_block(room.k, k, args.in.k.strides[2], 0, s.length);
    copy_async_commit();
    load_map<D>(room.wq, args.in.wq, head.h);
    load_map<D>(room.wk, args.in.wk, head.hs);
    if (threadIdx.x < kFusedRows) room.far[threadIdx.x] = 0;

    FeatureSums<D> state;
    for (int b = 0; b < s.blocks; ++b) {
        const bool past = b > 0, next = b + 1 < s.blocks;  // is there a state to read; does a block follow
        copy_async_wait<0>();
        __syncthreads();  // [1] q(b), k(b) are here; step b-1 is over
        copy_block(room.v, v, args.in.v.strides[2], b, s.length);
        copy_async_commit();
        if (past) state.publish(room.state);
        const int map_row = warp_index() % 4 * 16;
        if (warp_index() < 4) map_rows(room.q, map_row, room.wq, room.phi_q, past ? room.z : nullptr, room.far);
        if (warp_index() >= 4) map_rows(room.k, map_row, room.wk, room.phi_k, nullptr, nullptr);
        __syncthreads();  // [2] features and S's copy are here; nobody reads q(b), k(b) any more
        if (next) {
            copy_block(room.q, q, args.in.q.strides[2], b + 1, s.length);
            copy_block(room.k, k, args.in.k.strides[2], b + 1, s.length);
        }
        copy_async_commit();
        make_weights(room);
        OutputTile<D> y;
        if (past) y.template add<kFusedFeatures>([&](int m, int c) { return load_a(room.phi_q, m, c); }, room.state);
        copy_async_wait<1>();
        __syncthreads();  // [3] v(b), A and its sums are here

        y.template add<kFusedRows>([&](int m, int c) { return load_a(room.a, m, c); }, room.v);
        __nv_bfloat16* out = args.y.head(head.b, head.h);
        y.each_row([&](int row, auto&& elements) {
            const int64_t i = int64_t{b} * kFusedRows + row;
            if (i >= s.length) return;
            const float near = room.sum[row] + room.sum[kFusedRows + row];
            const float inverse = 1 / (near + room.far[row] + static_cast<float>(kLinearEpsilon));
            elements([&](int, int column, const float* n) {
                *reinterpret_cast<uint32_t*>(out + i * args.y.strides[2] + column) =
                    pack_bf16(n[0] * inverse, n[1] * inverse);
            });
        });
        if (next || args.s_out) {
            state.add(room.phi_k, room.v, LeadingWeights{s.length - b * kFusedRows});
            state.put_total(room.z);
        }
    }
    if (!args.s_out || head.h % (s.heads / s.maps) != 0) return;
    const int64_t first = (head.b * s.maps + head.hs) * kFusedFeatures;
    store_sums(state, args.s_out + first * D, args.z_out + first);
}

}  // namespace

void linear_fused_forward(const LinearAttentionForward& a, Stream stream) {
    const auto dense = [](const TensorView& view) { return view ? device_data<float>(view) : nullptr; };
    const ForwardArgs args{FusedInputs(as_hybrid(a)), AlignedHeads(a.y), dense(a.s_out), dense(a.z_out)};
    dispatch_head_dim(static_cast<int>(a.q.size(3)), [&](auto d) {
        constexpr int kBytes = ForwardRoom<d()>::kBytes;
        allow_shared_memory(forward_kernel<d()>, kBytes);
        forward_kernel<d()><<<grid_x(args.in.shape.items), kFusedThreads, kBytes, cuda::handle_of(stream)>>>(args);
        LC_LAUNCHED("linear_attention", cuda::handle_of(stream));
    });
}

}  // namespace lc::kernels
