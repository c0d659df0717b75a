// Stage 1 on tensor cores: loss of hybrid attention against the teacher, and the gradients of its maps, in two walks.
//
// MATHS    transfer_loss.h.
// TILING   thread block = (batch entry, query head, segment), 8 warps, blocks of 64 positions; one thread block an SM
//
//          rows, in order of the blocks: the forward (hybrid_fused_forward.cu), and behind its barrier [3]
//                   N as there, y = N / Z               loss, dy = c (y - target), dN = dy / Z, shares of dZ = -dN.y
//            [4]    dphi_q = dN S^T + dZ z              shares of phi_q.dphi_q
//            [5]    du_q, D
//            [6]    dWq += q^T du_q                     S += phi_k(b-1)^T v(b-1), z
//
//          keys, last block c first: T, t hold rows of blocks >= c+2
//            load   q(c+2), dN(c+2), dZ, k(c), v(c)     under step c+1
//            [1]    phi_q(c+2): warps 0-3               phi_k(c): warps 4-7
//            [2]    T += phi_q^T dN, t                  dphi_k = v T^T + t, shares of phi_k.dphi_k
//            [3]    du_k
//            [4]    dWk += k^T du_k
//
//          [n]: barriers. The first two blocks of rows see no far keys: only their loss is made. y is never stored.
// COST     a row and query head, D = 128: 20 D^2 FLOPs, 12 D bytes; in segments what hybrid_fused_segments.cu says on top, twice.
// NUMERICS as hybrid_fused_forward.cu; y is not rounded before the loss and dN. dN and du are rounded to bf16 as operands, dZ is
//          made from dN as rounded. Squares of a block's rows are f32 sums of 32 a thread, everything beyond is f64.
// LADDER   1 this.
//          2 on Hopper the walk over the keys in roles (transfer_loss_keys_sm90.cu).
//          3 that over the rows too (transfer_loss_rows_sm90.cu).
//          4 that by sign; sums of parts in one launch instead of four, behind both walks; kernels launched before their predecessor ends.
//            H100, us: 8x1024 325 to 280, of which sums and launches 32; 1x1024 133 to 98; 1x32768 1355 to 1328; D = 64 219 to 196.
// SOURCE   arXiv 2410.10254, section 3.1; the fusion is derived in transfer_loss.h.
#include "kernels/transfer_loss/transfer_loss_fused.h"
#include "kernels/transfer_loss/transfer_loss_rows_sm90.cuh"

#include <optional>

#include "kernels/common/cuda/hopper.h"
#include "kernels/common/dispatch.h"
#include "kernels/hybrid_attention/hybrid_fused.h"
#include "kernels/hybrid_attention/hybrid_fused_segments.cuh"
#include "kernels/hybrid_attention/hybrid_fused_sums.cuh"
#include "kernels/transfer_loss/transfer_loss_keys_sm90.cuh"
#include "kernels/transfer_loss/transfer_loss_totals.h"

namespace lc::kernels {
namespace {

struct TransferArgs {
    FusedInputs in;
    AlignedHeads target;
    float slope;  // dy = slope (y - target)
    FusedRowResults results;
    double *loss_parts, *da_parts;  // [items,segments]: sum of squares; sum of D
    float *dwq_parts, *dwk_parts;   // [items,segments,D,F]
    const float* starts;            // of the walk's segments: S, z or T, t
};

template <int D>
struct RowsRoom {
    static constexpr int kQueryTiles = 2, kKeyTiles = 2;
    SharedTile<D> q, k, v, dn, state;  // q, k, v: two each
    SharedTile<kFusedMap> wq, wk;
    SharedTile<kFusedFeatures> phi_q, phi_k, p;
    SharedTile<kFusedMap> du;  // with dots over p
    float* dots;
    float *z, *high, *sum, *far, *dz;  // dz: [4][64], by the warps' quarters of D
    static constexpr int kBytes =
        SharedTile<D>::bytes(7 * kFusedRows + kFusedFeatures) + SharedTile<kFusedMap>::bytes(2 * D) +
        SharedTile<kFusedFeatures>::bytes(3 * kFusedRows) + (kFusedFeatures + 9 * kFusedRows) * int{sizeof(float)};
    static_assert(kBytes <= kFusedSharedBytes);
    static_assert(SharedTile<kFusedMap>::bytes(kFusedRows) + FeatureGradient::kDots * kFusedRows * int{sizeof(float)} <=
                  SharedTile<kFusedFeatures>::bytes(kFusedRows));

    explicit __device__ RowsRoom(SharedRoom room)
        : q(room.tile<D>(2 * kFusedRows)),
          k(room.tile<D>(2 * kFusedRows)),
          v(room.tile<D>(2 * kFusedRows)),
          dn(room.tile<D>(kFusedRows)),
          state(room.tile<D>(kFusedFeatures)),
          wq(room.tile<kFusedMap>(D)),
          wk(room.tile<kFusedMap>(D)),
          phi_q(room.tile<kFusedFeatures>(kFusedRows)),
          phi_k(room.tile<kFusedFeatures>(kFusedRows)),
          p(room.tile<kFusedFeatures>(kFusedRows)),
          du{p.data},
          dots(reinterpret_cast<float*>(p.data + kFusedRows * kFusedMap)),
          z(room.floats(kFusedFeatures)),
          high(room.floats(2 * kFusedRows)),
          sum(room.floats(2 * kFusedRows)),
          far(room.floats(kFusedRows)),
          dz(room.floats(4 * kFusedRows)) {}
};

// dZ of a row from the shares of the four quarters of D.
__device__ __forceinline__ float row_dz(const float* dz, int row) {
    return (dz[row] + dz[kFusedRows + row]) + (dz[2 * kFusedRows + row] + dz[3 * kFusedRows + row]);
}

// The teacher's output at this thread's elements of an OutputTile, fetched ahead.
template <int D>
struct TargetTile {
    uint32_t pairs[2][2][D / 32];

    __device__ __forceinline__ void load(const TransferArgs& args, const FusedHead& head, int64_t first) {
        const OutputTile<D> place;
        const __nv_bfloat16* from = args.target.head(head.b, head.h) + place.column + 2 * quad_lane();
#pragma unroll
        for (int i = 0; i < 2; ++i)
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                const int64_t t = first + place.row + 16 * i + 8 * half + quad_row();
#pragma unroll
                for (int n = 0; n < D / 32; ++n)
                    pairs[i][half][n] =
                        t < args.in.shape.length
                            ? *reinterpret_cast<const uint32_t*>(from + t * args.target.strides[2] + 8 * n)
                            : 0u;
            }
    }
};

// From N: the squares of y - target and, for gradients, dN and shares of dZ. Returns this thread's sum of squares.
template <int D, bool kGradients>
__device__ __forceinline__ float make_upstream(const TransferArgs& args, const RowsRoom<D>& room, OutputTile<D>& y,
                                               const TargetTile<D>& target, int64_t first) {
    float squares = 0;
#pragma unroll
    for (int i = 0; i < 2; ++i)
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const int row = y.row + 16 * i + 8 * half + quad_row();
            const float inverse = 1 / (room.sum[row] + room.sum[kFusedRows + row] + room.far[row]);
            const float slope = first + row < args.in.shape.length ? args.slope : 0.0f;
            float dot = 0;
#pragma unroll
            for (int n = 0; n < D / 32; ++n) {
                const float* numerator = &y.c[i][n].c[2 * half];
                const float2 wanted = unpack_bf16(target.pairs[i][half][n]);
                const float2 out = make_float2(numerator[0] * inverse, numerator[1] * inverse);
                const float2 difference = make_float2(out.x - wanted.x, out.y - wanted.y);
                if (first + row < args.in.shape.length)
                    squares = fmaf(difference.x, difference.x, fmaf(difference.y, difference.y, squares));
                if (!kGradients) continue;
                const uint32_t pair = pack_bf16(slope * difference.x * inverse, slope * difference.y * inverse);
                const float2 rounded = unpack_bf16(pair);
                dot = fmaf(rounded.x, out.x, fmaf(rounded.y, out.y, dot));
                pair_at(room.dn, row, y.column + 8 * n + 2 * quad_lane()) = pair;
            }
            if (!kGradients) continue;
            dot = quad_sum(dot);
            if (quad_lane() == 0) room.dz[warp_index() % 4 * kFusedRows + row] = -dot;
        }
    return squares;
}

// dN and dZ of a block to workspace.
template <int D>
__device__ __forceinline__ void keep_upstream(const RowsRoom<D>& room, const FusedRowResults& to, int64_t first) {
    constexpr int kChunks = D / 8;
#pragma unroll
    for (int i = 0; i < kFusedRows * kChunks / kFusedThreads; ++i) {
        const int chunk = i * kFusedThreads + static_cast<int>(threadIdx.x), row = chunk / kChunks,
                  column = chunk % kChunks * 8;
        *reinterpret_cast<uint4*>(to.dn + (first + row) * D + column) =
            *reinterpret_cast<const uint4*>(room.dn.chunk(row, column));
    }
    if (threadIdx.x < kFusedRows) to.dz[first + threadIdx.x] = row_dz(room.dz, threadIdx.x);
}

template <int D, bool kGradients>
__global__ void __launch_bounds__(kFusedThreads, 1) rows_kernel(const __grid_constant__ TransferArgs args) {
    extern __shared__ __align__(128) unsigned char shared[];
    const RowsRoom<D> room(SharedRoom{shared});
    const FusedShape& s = args.in.shape;
    const FusedHead head(s);
    const HeadInputs x(args.in, head);
    const float factor = s.scale * kLog2E;

    begin_rows<D>(args.in, head, x, room);
    FeatureSums<D> state;
    begin_segment(state, room.z, args.starts, s, head);
    MapGradient<D> dwq;
    double squares = 0, da = 0;
    for (int b = head.first; b < head.last; ++b) {
        const bool far = b >= 2, grows = b >= 1 && b + 1 < head.last;
        const SharedTile<D> q_own = nth_tile(room.q, b % 2);
        const SharedTile<D> k_before = nth_tile(room.k, (b + 1) % 2), k_own = nth_tile(room.k, b % 2);
        const SharedTile<D> v_before = nth_tile(room.v, (b + 1) % 2), v_own = nth_tile(room.v, b % 2);
        copy_async_wait<0>();
        __syncthreads();  // [1] q(b), k(b) are here; step b-1 is over
        copy_block(v_own, x.v, args.in.v.strides[2], b, s.length);
        copy_async_commit();
        if (b + 1 < head.last) copy_block(nth_tile(room.q, (b + 1) % 2), x.q, args.in.q.strides[2], b + 1, s.length);
        if (far) state.publish(room.state);
        const int map_row = warp_index() % 4 * 16;
        if (warp_index() < 4 && far) map_rows(q_own, map_row, room.wq, room.phi_q, room.z, room.far);
        if (warp_index() >= 4 && grows) map_rows(k_before, map_row, room.wk, room.phi_k, nullptr, nullptr);
        WindowTile window;
        window.make_scores(q_own, window.side == 0 ? k_before : k_own, b == 0, room.high);
        __syncthreads();  // [2] row maxima are here; nobody reads k(b-1) any more
        if (b + 1 < head.last) copy_block(k_before, x.k, args.in.k.strides[2], b + 1, s.length);
        copy_async_commit();
        window.make_weights(room.high, factor, x.gamma, room.sum, [&](int half, int n, uint32_t pair) {
            pair_at(room.p, window.row + 8 * half + quad_row(), window.side * kFusedRows + 8 * n + 2 * quad_lane()) =
                pair;
        });
        TargetTile<D> target;
        target.load(args, head, int64_t{b} * kFusedRows);
        copy_async_wait<1>();
        __syncthreads();  // [3] v(b), weights, sums and features are here

        OutputTile<D> y;
        y.template add<kFusedRows>([&](int m, int c) { return load_a(room.p, m, c); }, v_before);
        y.template add<kFusedRows>([&](int m, int c) { return load_a(room.p, m, kFusedRows + c); }, v_own);
        if (far) y.template add<kFusedFeatures>([&](int m, int c) { return load_a(room.phi_q, m, c); }, room.state);
        squares += make_upstream<D, kGradients>(args, room, y, target, int64_t{b} * kFusedRows);
        if (kGradients && far) {
            __syncthreads();  // [4] dN and shares of dZ are here; nobody reads weights any more
            keep_upstream(room, args.results, (head.item * s.blocks + b) * kFusedRows);
            FeatureGradient dphi;
            dphi.multiply_sums(room.dn, state);
            dphi.add_total(room.z, [&](int r) { return row_dz(room.dz, r); });
            dphi.put_dots(room.phi_q, room.dots);
            __syncthreads();  // [5] shares of D are here
            dphi.put_du(room.phi_q, room.dots, room.du);
            if (threadIdx.x < kFusedRows)
                da -= FeatureGradient::total_dot(room.dots, threadIdx.x, 0) +
                      FeatureGradient::total_dot(room.dots, threadIdx.x, 1);
            __syncthreads();  // [6] du is here
            dwq.add(q_own, room.du);
        }
        if (grows) {
            state.add(room.phi_k, v_before, UnitWeights{});
            state.put_total(room.z);
        }
    }
    double* parts = reinterpret_cast<double*>(room.z);  // its last reader is a barrier behind
    __syncthreads();
    squares = fused_block_sum(squares, parts);
    if (threadIdx.x == 0) args.loss_parts[head.part()] = squares;
    if (!kGradients) return;
    dwq.store(args.dwq_parts, head.part());
    da = fused_block_sum(da, parts + kWarps);
    if (threadIdx.x == 0) args.da_parts[head.part()] = da;
}

template <int D>
struct KeysRoom {
    SharedTile<D> q, dn, k, v;  // two each
    SharedTile<kFusedMap> wq, wk, du;
    SharedTile<kFusedFeatures> phi_q, phi_k;
    float *dz, *t, *dots;  // dz: two
    static constexpr int kBytes = SharedTile<D>::bytes(8 * kFusedRows) +
                                  SharedTile<kFusedMap>::bytes(2 * D + kFusedRows) +
                                  SharedTile<kFusedFeatures>::bytes(2 * kFusedRows) +
                                  (kFusedFeatures + (2 + FeatureGradient::kDots) * kFusedRows) * int{sizeof(float)};
    static_assert(kBytes <= kFusedSharedBytes);

    explicit __device__ KeysRoom(SharedRoom room)
        : q(room.tile<D>(2 * kFusedRows)),
          dn(room.tile<D>(2 * kFusedRows)),
          k(room.tile<D>(2 * kFusedRows)),
          v(room.tile<D>(2 * kFusedRows)),
          wq(room.tile<kFusedMap>(D)),
          wk(room.tile<kFusedMap>(D)),
          du(room.tile<kFusedMap>(kFusedRows)),
          phi_q(room.tile<kFusedFeatures>(kFusedRows)),
          phi_k(room.tile<kFusedFeatures>(kFusedRows)),
          dz(room.floats(2 * kFusedRows)),
          t(room.floats(kFusedFeatures)),
          dots(room.floats(FeatureGradient::kDots * kFusedRows)) {}
};

// Only for sequences of three blocks or more.
template <int D>
__global__ void __launch_bounds__(kFusedThreads, 1) keys_kernel(const __grid_constant__ TransferArgs args) {
    extern __shared__ __align__(128) unsigned char shared[];
    const KeysRoom<D> room(SharedRoom{shared});
    const FusedShape& s = args.in.shape;
    const FusedHead head(s, s.blocks - 2);
    const HeadInputs x(args.in, head);
    const int rows = s.blocks * kFusedRows;
    const __nv_bfloat16* dn = args.results.dn + head.item * rows * D;
    const auto fetch = [&](int c) {
        copy_block(nth_tile(room.q, c % 2), x.q, args.in.q.strides[2], c + 2, s.length);
        copy_block(nth_tile(room.dn, c % 2), dn, D, c + 2, rows);
        copy_block(nth_tile(room.k, c % 2), x.k, args.in.k.strides[2], c, s.length);
        copy_block(nth_tile(room.v, c % 2), x.v, args.in.v.strides[2], c, s.length);
        if (threadIdx.x < kFusedRows / 4)
            copy_async(room.dz + c % 2 * kFusedRows + threadIdx.x * 4,
                       args.results.dz + head.item * rows + (c + 2) * kFusedRows + threadIdx.x * 4);
        copy_async_commit();
    };
    const int from = s.blocks - 3 - head.first, to = s.blocks - 2 - head.last;  // this segment's blocks
    fetch(from);
    load_map<D>(room.wq, args.in.wq, head.h);
    load_map<D>(room.wk, args.in.wk, head.hs);

    FeatureSums<D> sums;
    begin_segment(sums, room.t, args.starts, s, head);
    MapGradient<D> dwk;
    for (int c = from; c >= to; --c) {
        const SharedTile<D> k_own = nth_tile(room.k, c % 2);
        copy_async_wait<0>();
        __syncthreads();  // [1] this step's tiles are here; step c+1 is over
        if (c > to) fetch(c - 1);
        const int map_row = warp_index() % 4 * 16;
        if (warp_index() < 4)
            map_rows(nth_tile(room.q, c % 2), map_row, room.wq, room.phi_q, nullptr, nullptr);
        else
            map_rows(k_own, map_row, room.wk, room.phi_k, nullptr, nullptr);
        __syncthreads();  // [2] features are here
        sums.add(room.phi_q, nth_tile(room.dn, c % 2), SplitWeights{room.dz + c % 2 * kFusedRows});
        sums.put_total(room.t);
        __syncwarp();  // a warp reads its own features' t only
        FeatureGradient dphi;
        dphi.multiply_sums(nth_tile(room.v, c % 2), sums);
        dphi.add_total(room.t, [](int) { return 1.0f; });
        dphi.put_dots(room.phi_k, room.dots);
        __syncthreads();  // [3] shares are here
        dphi.put_du(room.phi_k, room.dots, room.du);
        __syncthreads();  // [4] du is here
        dwk.add(k_own, room.du);
    }
    dwk.store(args.dwk_parts, head.part());
}

void launch_rows(const TransferArgs& args, int64_t d, bool gradients, Stream stream) {
    dispatch_head_dim(static_cast<int>(d), [&](auto dim) {
        dispatch_bool(gradients, [&](auto wanted) {
            constexpr int kBytes = RowsRoom<dim()>::kBytes;
            const auto kernel = rows_kernel<dim(), wanted()>;
            allow_shared_memory(kernel, kBytes);
            kernel<<<grid_x(args.in.shape.parts()), kFusedThreads, kBytes, cuda::handle_of(stream)>>>(args);
            LC_LAUNCHED("transfer_loss", cuda::handle_of(stream));
        });
    });
}

void launch_keys(const TransferArgs& args, int64_t d, Stream stream) {
    dispatch_head_dim(static_cast<int>(d), [&](auto dim) {
        constexpr int kBytes = KeysRoom<dim()>::kBytes;
        allow_shared_memory(keys_kernel<dim()>, kBytes);
        keys_kernel<dim()><<<grid_x(args.in.shape.parts()), kFusedThreads, kBytes, cuda::handle_of(stream)>>>(args);
        LC_LAUNCHED("transfer_loss", cuda::handle_of(stream));
    });
}

}  // namespace

bool transfer_loss_fused_covers(const TransferLoss& args, const HybridAttentionForward& attention) {
    return has_dense_rows(args.target) && hybrid_fused_covers(attention);
}

void transfer_loss_fused(const TransferLoss& a, const HybridAttentionForward& attention, Stream stream) {
    FusedInputs in(attention);
    in.shape.segments = segments_of(in.shape, a.q.device);
    const FusedShape& s = in.shape;
    const int64_t d = a.q.size(3), map_size = d * kFusedMap;
    const double numel = static_cast<double>(a.q.numel());
    const HybridMapSlots& out = a.gradients;
    const bool gradients = out.any();
    const SegmentStarts starts(in, d, stream);
    const DeviceScratch<double> sums(2 * s.parts(), stream);
    std::optional<FusedRowScratch> rows;
    DeviceScratch<float> dwq, dwk;
    if (gradients) rows.emplace(s, d, stream), dwq = {s.parts() * map_size, stream};
    if (out.dwk) dwk = {s.parts() * map_size, stream};
    TransferArgs args{in,
                      AlignedHeads(a.target),
                      static_cast<float>(2 * a.factor / numel),
                      rows ? rows->results() : FusedRowResults{},
                      sums.data(),
                      sums.data() + s.parts(),
                      dwq.data(),
                      dwk.data(),
                      starts.of_keys()};
    if (hopper_applies({a.q, a.k, a.v, a.target}))
        transfer_loss_rows_sm90({{.in = in,
                                  .y = args.target,
                                  .dy = args.target,
                                  .results = args.results,
                                  .dq = {},
                                  .dwq_parts = args.dwq_parts,
                                  .da_parts = args.da_parts,
                                  .starts = args.starts},
                                 args.slope,
                                 args.loss_parts},
                                a, gradients, stream);
    else
        launch_rows(args, d, gradients, stream);
    if (out.dwk && s.blocks > 2) {
        args.starts = starts.of_queries(args.results, s.blocks - 2, 0);
        if (hopper_applies({a.q, a.k, a.v}))
            transfer_loss_keys_sm90(in, attention, args.results, dwk.data(), args.starts, stream);
        else
            launch_keys(args, d, stream);
    } else if (out.dwk) {
        LC_CUDA(cudaMemsetAsync(dwk.data(), 0, s.parts() * map_size * sizeof(float), cuda::handle_of(stream)));
    }
    store_transfer_totals({args.loss_parts, args.da_parts, dwq.data(), dwk.data()}, in, d, a.factor / numel, a.loss,
                          out, stream);
}

}  // namespace lc::kernels
