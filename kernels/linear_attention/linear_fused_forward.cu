// Fused linear attention on tensor cores: forward. When it applies: linear_fused.h; steps: linear_fused_steps.cuh.
//
// MATHS    linear_attention.h. For the rows of block b: S and z hold the blocks before; inside the block A = phi_q phi_k^T,
//          causal.
// TILING   thread block = (batch entry, query head), 8 warps, blocks of 64 positions in order; one thread block an SM
//
//            load   q(b) k(b)                           under steps b-2, b-1
//                   S's copy                            phi_q: warps 0-3   phi_k: warps 4-7: under [2] of b-1
//            [1]    q(b+2), k(b+2), v(b+1) on their     A and the sums of its rows   phi_q.z     N = phi_q S
//                   way
//            [2]    N += A v                            y = N / Z      S += phi_k^T v, z += sum of phi_k
//
//          [n]: barriers. Shared memory: 2 q, 2 k, 2 v [64,D], S's copy [128,D], maps [D,F], phi_q, 2 phi_k [64,128],
//          A [64,64].
//          Registers of a warp: 16 features of S in f32; 32 rows x D/4 columns of N.
// COST     a row and query head, D = 128: 8 D^2 FLOPs, 5 D bytes (K and V shared by four heads in L2): 205 FLOP a byte.
// NUMERICS products of bf16 with f32 sums; maps are rounded to bf16; S and z are f32, S enters products as bf16. Z adds up
//          A and features as they are rounded for the products, so that a row with one key gives its value. Features are
//          at least 1e-12, and of every row one is 1/64 or more: A is above 1e-14 and Z above 1e-12, nothing divides by 0.
// LADDER   1 the chunked form (hybrid_chunked.cuh): 3,302 us at 8 x 1024 x 32 heads, D = 128, on an H100.
//          2 this, meant for 160 to 190 us: 200.
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
    SharedTile<D> q, k, v, state;  // q, k, v: two each
    SharedTile<kFusedMap> wq, wk;
    SharedTile<kFusedFeatures> phi_q, phi_k;  // phi_k: two
    SharedTile<kFusedRows> a;
    float *z, *sum, *far;  // [F'], [2][64], [64]
    static constexpr int kBytes =
        SharedTile<D>::bytes(6 * kFusedRows + kFusedFeatures) + SharedTile<kFusedMap>::bytes(2 * D) +
        SharedTile<kFusedFeatures>::bytes(3 * kFusedRows) + SharedTile<kFusedRows>::bytes(kFusedRows) +
        (kFusedFeatures + 3 * kFusedRows) * int{sizeof(float)};
    static_assert(kBytes <= kFusedSharedBytes);

    explicit __device__ ForwardRoom(SharedRoom room)
        : q(room.tile<D>(2 * kFusedRows)),
          k(room.tile<D>(2 * kFusedRows)),
          v(room.tile<D>(2 * kFusedRows)),
          state(room.tile<D>(kFusedFeatures)),
          wq(room.tile<kFusedMap>(D)),
          wk(room.tile<kFusedMap>(D)),
          phi_q(room.tile<kFusedFeatures>(kFusedRows)),
          phi_k(room.tile<kFusedFeatures>(2 * kFusedRows)),
          a(room.tile<kFusedRows>(kFusedRows)),
          z(room.floats(kFusedFeatures)),
          sum(room.floats(2 * kFusedRows)),
          far(room.floats(kFusedRows)) {}
};

// phi_q.z of every row: a quarter of a row a thread.
template <int D>
__device__ __forceinline__ void sum_far(const ForwardRoom<D>& room) {
    const int row = threadIdx.x / 4;
    float dot = 0;
#pragma unroll
    for (int i = 0; i < kFusedFeatures / 32; ++i) {
        const int column = (i * 4 + threadIdx.x % 4) * 8;
        const auto phi = load_pack(room.phi_q.chunk(row, column));
        const float4 *z = reinterpret_cast<const float4*>(room.z + column), left = z[0], right = z[1];
        dot += phi.get(0) * left.x + phi.get(1) * left.y + phi.get(2) * left.z + phi.get(3) * left.w +
               phi.get(4) * right.x + phi.get(5) * right.y + phi.get(6) * right.z + phi.get(7) * right.w;
    }
    dot = quad_sum(dot);
    if (threadIdx.x % 4 == 0) room.far[row] = dot;
}

// A of a block, rounded, and the sums of its rows over either side's keys.
template <int D>
__device__ __forceinline__ void make_weights(const ForwardRoom<D>& room, const SharedTile<kFusedFeatures>& phi_k) {
    CausalTile a;
    multiply_features(a, room.phi_q, phi_k);
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

    const auto copy_rows = [&](int b) {  // q(b), k(b)
        if (b >= s.blocks) return;
        copy_block(nth_tile(room.q, b % 2), q, args.in.q.strides[2], b, s.length);
        copy_block(nth_tile(room.k, b % 2), k, args.in.k.strides[2], b, s.length);
    };

    copy_rows(0);
    copy_block(room.v, v, args.in.v.strides[2], 0, s.length);
    copy_async_commit();
    copy_rows(1);
    copy_async_commit();
    load_map<D>(room.wq, args.in.wq, head.h);
    load_map<D>(room.wk, args.in.wk, head.hs);
    if (threadIdx.x < kFusedRows) room.far[threadIdx.x] = 0;
    copy_async_wait<1>();
    __syncthreads();

    FeatureSums<D> state;
    for (int b = 0; b < s.blocks; ++b) {                   // q(b), k(b) are here; step b-1 is in [2]
        const bool past = b > 0, next = b + 1 < s.blocks;  // is there a state to read; does a block follow
        const SharedTile<D> v_own = nth_tile(room.v, b % 2);
        const SharedTile<kFusedFeatures> phi_k = nth_tile(room.phi_k, b % 2);
        if (past) state.publish(room.state);
        const int map_row = warp_index() % 4 * 16;
        if (warp_index() < 4) map_rows(nth_tile(room.q, b % 2), map_row, room.wq, room.phi_q, nullptr, nullptr);
        if (warp_index() >= 4) map_rows(nth_tile(room.k, b % 2), map_row, room.wk, phi_k, nullptr, nullptr);
        __syncthreads();  // [1] features and S's copy are here; step b-1 is over; nobody reads q(b), k(b) any more
        copy_rows(b + 2);
        if (next) copy_block(nth_tile(room.v, (b + 1) % 2), v, args.in.v.strides[2], b + 1, s.length);
        copy_async_commit();
        make_weights(room, phi_k);
        OutputTile<D> y;
        if (past) {
            sum_far(room);
            y.template add<kFusedFeatures>([&](int m, int c) { return load_a(room.phi_q, m, c); }, room.state);
        }
        copy_async_wait<1>();
        __syncthreads();  // [2] v(b), A, its sums, q(b+1), k(b+1) are here; nobody reads phi_q, S's copy any more

        y.template add<kFusedRows>([&](int m, int c) { return load_a(room.a, m, c); }, v_own);
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
            state.add(phi_k, v_own, LeadingWeights{s.length - b * kFusedRows});
            state.put_total(room.z);
        }
    }
    if (!args.s_out || head.h % (s.heads / s.maps) != 0) return;
    const int64_t first = (head.b * s.maps + head.hs) * kFusedFeatures;
    state.store(args.s_out + first * D, args.z_out + first);
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
