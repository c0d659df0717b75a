// Fused hybrid attention: what the segments of a walk begin with.
//
// MATHS    hybrid_attention.h. S, z at a segment's first block: sums of phi_k^T v, phi_k over the blocks that the segments before
//          it add, and to that what was handed in; T, t likewise, last block first, from phi_q, dN, dZ.
// TILING   [1] sums    thread block = (batch entry, query head, segment but the last), 8 warps, two blocks of 64 positions a step
//                 load   rows and values of a pair of blocks    under the step before
//                 [1]    phi: 16 rows a warp
//                 [2]    S += phi^T values, z += phi^T weights
//          [2] prefix  one thread four elements of a state, over the segments in order; in place
//
//          [n] in a step: barriers. Shared memory: 4 rows, 4 values [64,D], map [D,F], 2 phi [64,128].
// COST     a position of a sum, D = 128: 3 D^2 FLOPs, 4 D bytes; a walk in G segments takes 1 / G of its time, and these sums
//          1 / G of theirs before it. States: 4 F' (D+1) bytes an item and segment but the last (66 KB at D = 128; 6.3 MB for
//          32 heads in four segments): written by the sums, read and written by the prefix, read by the walk.
// NUMERICS f32 sums as in the walks, added up by segment: another order of the same sum, so a cut walk has other bits than a whole
//          one. How a walk is cut is a function of shape and device (hybrid_fused_segments): two runs agree bitwise.
// LADDER   1 no segments: 32 heads leave 100 of an H100's 132 SMs idle; forward 1,873 us, backward 6,444 us at 1 x 16384, D = 128.
//          2 this, meant for 1.4 and 1.1 times the time a token takes at 8 x 1024: 593 us (1.31) and 1,998 us (1.14); at 1 x 1024, where
//            a segment has four blocks, 59 us (2.1) and 182 us (1.7).
//          Beside the walks for Hopper these sums were nearly half of the forward's time, 70 of 175 us at 2 x 4096 on an H100; there they are
//          made in roles now (hybrid_fused_segments_sm90.cu). Tried before that: two thread blocks an SM, each tile once, and segments in
//          pieces that fill the SMs (meant for 120, 270 and 530 us at 2 x 4096, 1 x 16384 and 1 x 32768): 161, 354, 673, where this
//          takes 175, 340, 655. With 128 registers a thread spills a third of S in every step.
// SOURCE   the chunked scan of linear attention (arXiv 2312.06635, section 3); the cut is derived here.
#include "kernels/hybrid_attention/hybrid_fused_segments.cuh"

#include "kernels/common/cuda/hopper.h"
#include "kernels/hybrid_attention/hybrid_fused.h"
#include "kernels/hybrid_attention/hybrid_fused_sums.cuh"

namespace lc::kernels {
namespace {

struct SumsArgs {
    FusedShape shape;
    AlignedHeads rows, values;
    MapWeights map;
    const float* weights;
    int steps, lag;  // these as in SegmentSums
    float* sums;     // [items, segments - 1, kSumsSize]
};

template <int D>
struct SumsRoom {
    SharedTile<D> rows, values;  // four each: two pairs
    SharedTile<kFusedMap> map;
    SharedTile<kFusedFeatures> phi;  // two
    float* weights;                  // four
    static constexpr int kBytes = SharedTile<D>::bytes(8 * kFusedRows) + SharedTile<kFusedMap>::bytes(D) +
                                  SharedTile<kFusedFeatures>::bytes(2 * kFusedRows) +
                                  4 * kFusedRows * int{sizeof(float)};
    static_assert(kBytes <= kFusedSharedBytes);

    explicit __device__ SumsRoom(SharedRoom room)
        : rows(room.tile<D>(4 * kFusedRows)),
          values(room.tile<D>(4 * kFusedRows)),
          map(room.tile<kFusedMap>(D)),
          phi(room.tile<kFusedFeatures>(2 * kFusedRows)),
          weights(room.floats(4 * kFusedRows)) {}
};

template <int D, bool kQueries>
__global__ void __launch_bounds__(kFusedThreads, 1) sums_kernel(const __grid_constant__ SumsArgs args) {
    extern __shared__ __align__(128) unsigned char shared[];
    const SumsRoom<D> room(SharedRoom{shared});
    const FusedShape& s = args.shape;
    const FusedHead head(s, args.steps);
    if (head.segment + 1 == s.segments) return;  // nothing begins behind it
    const __nv_bfloat16 *rows = args.rows.head(head.b, kQueries ? head.h : head.hk),
                        *values = args.values.head(head.b, kQueries ? head.h : head.hk);
    const int padded = s.blocks * kFusedRows;
    const int first = max(head.first - args.lag, 0), count = head.last - args.lag - first;
    const auto fetch = [&](int i) {  // blocks i, i + 1 of this segment
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const int place = i % 4 + half, along = first + i + half;
            const int b = i + half >= count ? -1 : kQueries ? s.blocks - 1 - along : along;
            copy_block(nth_tile(room.rows, place), rows, args.rows.strides[2], b, s.keys, s.key_row);
            copy_block(nth_tile(room.values, place), values, args.values.strides[2], b, kQueries ? padded : s.keys,
                       s.key_row);
            if (kQueries && b >= 0 && threadIdx.x < kFusedRows / 4)
                copy_async(room.weights + place * kFusedRows + threadIdx.x * 4,
                           args.weights + head.item * padded + b * kFusedRows + threadIdx.x * 4);
        }
        copy_async_commit();
    };
    fetch(0);
    load_map<D>(room.map, args.map, kQueries ? head.h : head.hs);

    FeatureSums<D> sums;
    for (int i = 0; i < count; i += 2) {
        copy_async_wait<0>();
        __syncthreads();  // [1] this pair is here; the step before is over
        if (i + 2 < count) fetch(i + 2);
        map_rows(nth_tile(room.rows, i % 4), warp_index() * 16, room.map, room.phi, nullptr, nullptr);
        __syncthreads();  // [2] features are here
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            if (i + half >= count) break;
            const SharedTile<kFusedFeatures> phi = nth_tile(room.phi, half);
            const SharedTile<D> x = nth_tile(room.values, i % 4 + half);
            if constexpr (kQueries)
                sums.add(phi, x, SplitWeights{room.weights + (i % 4 + half) * kFusedRows});
            else
                sums.add(phi, x, UnitWeights{});
        }
    }
    float* to = args.sums + (head.item * (s.segments - 1) + head.segment) * kSumsSize<D>;
    sums.store(to, to + kFusedFeatures * D);
}

// x [items, count, size] becomes its running sums over the second axis.
__global__ void prefix_kernel(float4* x, int64_t items, int count, int size) {
    constexpr int kAhead = 8;  // loads under way at a time
    const int64_t i = static_cast<int64_t>(blockIdx.x) * kFusedThreads + threadIdx.x;
    if (i >= items * size) return;
    float4* at = x + i / size * count * size + i % size;
    float4 sum = make_float4(0, 0, 0, 0);
    for (int first = 0; first < count; first += kAhead) {
        float4 next[kAhead];
#pragma unroll
        for (int j = 0; j < kAhead; ++j)
            if (first + j < count) next[j] = at[int64_t{first + j} * size];
#pragma unroll
        for (int j = 0; j < kAhead; ++j) {
            if (first + j >= count) break;
            sum.x += next[j].x, sum.y += next[j].y, sum.z += next[j].z, sum.w += next[j].w;
            at[int64_t{first + j} * size] = sum;
        }
    }
}

void launch_sums(const SumsArgs& args, int64_t d, Stream stream) {
    const FusedShape& s = args.shape;
    const cudaStream_t queue = cuda::handle_of(stream);
    dispatch_head_dim(static_cast<int>(d), [&](auto dim) {
        dispatch_bool(args.weights != nullptr, [&](auto queries) {
            constexpr int kBytes = SumsRoom<dim()>::kBytes;
            const auto kernel = sums_kernel<dim(), queries()>;
            allow_shared_memory(kernel, kBytes);
            kernel<<<grid_x(s.parts()), kFusedThreads, kBytes, queue>>>(args);
            LC_LAUNCHED("hybrid_attention", queue);
        });
        if (s.segments == 2) return;  // one sum is its own prefix
        constexpr int kSize = kSumsSize<dim()> / 4;
        prefix_kernel<<<grid_x(ceil_div(s.items * kSize, kFusedThreads)), kFusedThreads, 0, queue>>>(
            reinterpret_cast<float4*>(args.sums), s.items, s.segments - 1, kSize);
        LC_LAUNCHED("hybrid_attention", queue);
    });
}

// [B,heads,length,D]
TensorView head_view(const AlignedHeads& x, const FusedShape& s, int heads, int length, int64_t d, Device device) {
    return {reinterpret_cast<std::byte*>(x.data),
            Layout{.shape = {s.items / s.heads, heads, length, d},
                   .strides = {x.strides[0], x.strides[1], x.strides[2], 1}},
            DType::bf16, device};
}

}  // namespace

int segments_of(const FusedShape& shape, Device device) {
    int multiprocessors = 0;
    LC_CUDA(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device.index));
    return static_cast<int>(hybrid_fused_segments(shape.items, shape.blocks - shape.first, multiprocessors));
}

SegmentStarts::SegmentStarts(const FusedInputs& in, int64_t d, Stream stream) : in_(in), d_(d), stream_(stream) {
    const FusedShape& s = in.shape;
    if (s.segments > 1) sums_ = {s.items * (s.segments - 1) * kFusedFeatures * (d + 1), stream};
}

const float* SegmentStarts::of_keys() const {
    if (!sums_.data()) return nullptr;
    const FusedShape& s = in_.shape;
    const auto view = [&](const AlignedHeads& x) { return head_view(x, s, s.kv_heads, s.keys, d_, stream_.device); };
    return launch({s, view(in_.k), view(in_.v), in_.wk, nullptr, s.blocks, 1});
}

const float* SegmentStarts::of_queries(const FusedRowResults& results, int steps, int lag) const {
    if (!sums_.data()) return nullptr;
    const FusedShape& s = in_.shape;
    return launch({s, head_view(in_.q, s, s.heads, s.length, d_, stream_.device),
                   padded_heads(results.dn, s, d_, stream_.device), in_.wq, results.dz, steps, lag});
}

const float* SegmentStarts::launch(const SegmentSums& sums) const {
    if (hopper_applies({sums.rows, sums.values}))
        segment_starts_sm90(sums, d_, sums_.data(), stream_);
    else
        launch_sums({sums.shape, AlignedHeads(sums.rows), AlignedHeads(sums.values), sums.map, sums.weights, sums.steps,
                     sums.lag, sums_.data()},
                    d_, stream_);
    return sums_.data();
}

}  // namespace lc::kernels
