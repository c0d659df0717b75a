// Fused hybrid attention: what the segments of a walk begin with.
//
// MATHS    hybrid_attention.h. S, z at a segment's first block: sums of phi_k^T v, phi_k over the blocks that the segments before
//          it add; T, t likewise, last block first, from phi_q, dN, dZ.
// TILING   [1] sums    thread block = (batch entry, query head, segment but the last, piece of it), 8 warps, two thread blocks an SM,
//                     two blocks of 64 positions a step
//                 [1]    phi: 16 rows a warp                        values on their way
//                 [2]    S += phi^T values, z += phi^T weights      the next rows on their way
//                 [3]    the next values on their way
//          [2] prefix  one thread four elements of a state, over the pieces and segments in order
//
//          [n] in a step: barriers. Shared memory: 2 rows, 2 values [64,D], map [D,F], 2 phi [64,128].
// COST     a position of a sum, D = 128: 3 D^2 FLOPs, 4 D bytes; a walk in G segments takes 1 / G of its time, and these sums
//          1 / G of theirs before it. States: 4 F' (D+1) bytes an item and segment but the last (66 KB at D = 128; 6.3 MB for
//          32 heads in four segments), and as much again for each piece: written by the sums, read and written by the prefix, read
//          by the walk.
// NUMERICS f32 sums as in the walks, added up by piece: another order of the same sum, so a cut walk has other bits than a whole
//          one. How a walk is cut is a function of shape and device (hybrid_fused_segments): two runs agree bitwise.
// LADDER   1 no segments: 32 heads leave 100 of an H100's 132 SMs idle; forward 1,873 us, backward 6,444 us at 1 x 16384, D = 128.
//          2 segments, one thread block of these sums an SM, both tiles twice: 593 us and 1,998 us; at 1 x 1024, where a segment
//            has four blocks, 59 us and 182 us. Beside the walks for Hopper the sums are nearly half of the time: 70 of 175 us at
//            2 x 4096 (64 thread blocks of 16 steps, 4.4 us each).
//          3 this: two thread blocks an SM hide each other's barriers, pieces fill the SMs. Predicted: 120 us at 2 x 4096, 270 (340) at
//            1 x 16384, 530 (654) at 1 x 32768.
// SOURCE   the chunked scan of linear attention (arXiv 2312.06635, section 3); the cut is derived here.
#include "kernels/hybrid_attention/hybrid_fused_segments.cuh"

#include "kernels/hybrid_attention/hybrid_fused.h"
#include "kernels/hybrid_attention/hybrid_fused_sums.cuh"

namespace lc::kernels {
namespace {

struct SumsArgs {
    FusedShape shape;
    AlignedHeads rows, values;  // k, v; or q, dN
    MapWeights map;
    const float* weights;  // dZ [items, blocks * 64]; for keys null
    int steps, lag;        // of the walk; step i has seen i - lag blocks
    int pieces;            // of a segment, a thread block each
    float* parts;          // [items, segments - 1, pieces, kSumsSize]
};

template <int D>
struct SumsRoom {
    SharedTile<D> rows, values;  // two each
    SharedTile<kFusedMap> map;
    SharedTile<kFusedFeatures> phi;  // two
    float* weights;                  // two
    static constexpr int kBytes = SharedTile<D>::bytes(4 * kFusedRows) + SharedTile<kFusedMap>::bytes(D) +
                                  SharedTile<kFusedFeatures>::bytes(2 * kFusedRows) +
                                  2 * kFusedRows * int{sizeof(float)};
    static_assert(2 * (kBytes + 1024) <= 227 * 1024);  // two thread blocks an SM, where SMs are Hopper's

    explicit __device__ SumsRoom(SharedRoom room)
        : rows(room.tile<D>(2 * kFusedRows)),
          values(room.tile<D>(2 * kFusedRows)),
          map(room.tile<kFusedMap>(D)),
          phi(room.tile<kFusedFeatures>(2 * kFusedRows)),
          weights(room.floats(2 * kFusedRows)) {}
};

template <int D, bool kQueries>
__global__ void __launch_bounds__(kFusedThreads, 2) sums_kernel(const __grid_constant__ SumsArgs args) {
    extern __shared__ __align__(128) unsigned char shared[];
    const SumsRoom<D> room(SharedRoom{shared});
    const FusedShape& s = args.shape;
    const FusedHead head(s, args.steps, blockIdx.x / args.pieces);
    if (head.segment + 1 == s.segments) return;  // nothing begins behind it
    const __nv_bfloat16 *rows = args.rows.head(head.b, kQueries ? head.h : head.hk),
                        *values = args.values.head(head.b, kQueries ? head.h : head.hk);
    const int padded = s.blocks * kFusedRows, piece = static_cast<int>(blockIdx.x % args.pieces);
    const int start = max(head.first - args.lag, 0), blocks = head.last - args.lag - start;
    const int first = start + blocks * piece / args.pieces, last = start + blocks * (piece + 1) / args.pieces;
    const auto block_at = [&](int along) { return along >= last ? -1 : kQueries ? s.blocks - 1 - along : along; };
    const auto fetch_rows = [&](int along) {  // of blocks along, along + 1
#pragma unroll
        for (int half = 0; half < 2; ++half)
            copy_block(nth_tile(room.rows, half), rows, args.rows.strides[2], block_at(along + half), s.length);
        copy_async_commit();
    };
    const auto fetch_values = [&](int along) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const int b = block_at(along + half);
            copy_block(nth_tile(room.values, half), values, args.values.strides[2], b, kQueries ? padded : s.length);
            if (kQueries && b >= 0 && threadIdx.x < kFusedRows / 4)
                copy_async(room.weights + half * kFusedRows + threadIdx.x * 4,
                           args.weights + head.item * padded + b * kFusedRows + threadIdx.x * 4);
        }
        copy_async_commit();
    };
    fetch_rows(first), fetch_values(first);
    load_map<D>(room.map, args.map, kQueries ? head.h : head.hs);

    FeatureSums<D> sums;
    for (int along = first; along < last; along += 2) {
        copy_async_wait<1>();
        __syncthreads();  // [1] the rows of this pair are here
        map_rows(room.rows, warp_index() * 16, room.map, room.phi, nullptr, nullptr);
        copy_async_wait<0>();
        __syncthreads();  // [2] features and values are here
        fetch_rows(along + 2);
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            if (along + half >= last) break;
            const SharedTile<kFusedFeatures> phi = nth_tile(room.phi, half);
            const SharedTile<D> x = nth_tile(room.values, half);
            if constexpr (kQueries)
                sums.add(phi, x, SplitWeights{room.weights + half * kFusedRows});
            else
                sums.add(phi, x, UnitWeights{});
        }
        __syncthreads();  // [3] the values are used
        fetch_values(along + 2);
    }
    float* to = args.parts + ((head.item * (s.segments - 1) + head.segment) * args.pieces + piece) * kSumsSize<D>;
    sums.store(to, to + kFusedFeatures * D);
}

// starts [items, count, size]: running sums of parts [items, count, pieces, size] over segments.
__global__ void prefix_kernel(const float4* parts, int64_t items, int count, int pieces, int size, float4* starts) {
    constexpr int kAhead = 8;  // loads under way at a time
    const int64_t i = static_cast<int64_t>(blockIdx.x) * kFusedThreads + threadIdx.x;
    if (i >= items * size) return;
    const int64_t item = i / size, element = i % size;
    const float4* from = parts + item * count * pieces * size + element;
    float4* to = starts + item * count * size + element;
    float4 sum = make_float4(0, 0, 0, 0);
    for (int first = 0; first < count * pieces; first += kAhead) {
        float4 next[kAhead];
#pragma unroll
        for (int j = 0; j < kAhead; ++j)
            if (first + j < count * pieces) next[j] = from[int64_t{first + j} * size];
#pragma unroll
        for (int j = 0; j < kAhead; ++j) {
            const int part = first + j;
            if (part >= count * pieces) break;
            sum.x += next[j].x, sum.y += next[j].y, sum.z += next[j].z, sum.w += next[j].w;
            if ((part + 1) % pieces == 0) to[int64_t{part / pieces} * size] = sum;
        }
    }
}

void launch_sums(const SumsArgs& args, float* starts, int64_t d, Stream stream) {
    const FusedShape& s = args.shape;
    const cudaStream_t queue = cuda::handle_of(stream);
    dispatch_head_dim(static_cast<int>(d), [&](auto dim) {
        dispatch_bool(args.weights != nullptr, [&](auto queries) {
            constexpr int kBytes = SumsRoom<dim()>::kBytes;
            const auto kernel = sums_kernel<dim(), queries()>;
            allow_shared_memory(kernel, kBytes);
            kernel<<<grid_x(s.parts() * args.pieces), kFusedThreads, kBytes, queue>>>(args);
            LC_LAUNCHED("hybrid_attention", queue);
        });
        constexpr int kSize = kSumsSize<dim()> / 4;
        prefix_kernel<<<grid_x(ceil_div(s.items * kSize, kFusedThreads)), kFusedThreads, 0, queue>>>(
            reinterpret_cast<const float4*>(args.parts), s.items, s.segments - 1, args.pieces, kSize,
            reinterpret_cast<float4*>(starts));
        LC_LAUNCHED("hybrid_attention", queue);
    });
}

int multiprocessors_of(Device device) {
    int count = 0;
    LC_CUDA(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device.index));
    return count;
}

}  // namespace

int segments_of(const FusedShape& shape, Device device) {
    return static_cast<int>(hybrid_fused_segments(shape.items, shape.blocks, multiprocessors_of(device)));
}

SegmentStarts::SegmentStarts(const FusedInputs& in, int64_t d, Stream stream) : in_(in), d_(d), stream_(stream) {
    const FusedShape& s = in.shape;
    if (s.segments == 1) return;
    pieces_ = static_cast<int>(hybrid_fused_pieces(s.items, s.blocks, s.segments, multiprocessors_of(stream.device)));
    const int64_t size = s.items * (s.segments - 1) * kFusedFeatures * (d + 1);
    starts_ = {size, stream};
    parts_ = {size * pieces_, stream};
}

const float* SegmentStarts::of_keys() const {
    if (!starts_.data()) return nullptr;
    launch_sums({in_.shape, in_.k, in_.v, in_.wk, nullptr, in_.shape.blocks, 1, pieces_, parts_.data()}, starts_.data(),
                d_, stream_);
    return starts_.data();
}

const float* SegmentStarts::of_queries(const FusedRowResults& results, int steps, int lag) const {
    if (!starts_.data()) return nullptr;
    const FusedShape& s = in_.shape;
    const TensorView dn = padded_heads(results.dn, s, d_, stream_.device);
    launch_sums({s, in_.q, AlignedHeads(dn), in_.wq, results.dz, steps, lag, pieces_, parts_.data()}, starts_.data(),
                d_, stream_);
    return starts_.data();
}

}  // namespace lc::kernels
