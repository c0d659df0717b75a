// Few batch entries and heads on a large device: the walks of the fused kernels, cut into segments with a thread block each.
#pragma once
#include "kernels/hybrid_attention/hybrid_fused_steps.cuh"

namespace lc::kernels {

// hybrid_fused_segments (hybrid_fused.h) for the multiprocessors of `device`.
int segments_of(const FusedShape& shape, Device device);

// FeatureSums in memory: [F',D], then [F'].
template <int D>
inline constexpr int kSumsSize = (D + 1) * kFusedFeatures;

// One sum over the blocks that the segments of a walk add: where from.
struct SegmentSums {
    FusedShape shape;
    TensorView rows, values;  // k, v; or q, dN  [B,H,*,D]
    MapWeights map;
    const float* weights;  // dZ [items, blocks * 64]; for keys null
    int steps, lag;        // of the walk; step i has seen i - lag blocks
};
// Into starts [items, segments - 1, kSumsSize]; where hopper_applies to rows and values.
void segment_starts_sm90(const SegmentSums& sums, int64_t d, float* starts, Stream stream);

// What the segments of a walk begin with: [items, segments - 1, kSumsSize], for all but the first in the order of the walk.
// Holds the workspace of one walk at a time: what one call queued is overwritten by the next. Not cut: no workspace, no work, null.
class SegmentStarts {
  public:
    SegmentStarts(const FusedInputs& in, int64_t d, Stream stream);
    // S, z for a walk over the rows.
    const float* of_keys() const;
    // T, t for a walk over the keys, last block first, whose step i has seen the first i - lag blocks of rows.
    const float* of_queries(const FusedRowResults& results, int steps, int lag) const;

  private:
    const float* launch(const SegmentSums& sums) const;

    FusedInputs in_;
    int64_t d_;
    Stream stream_;
    DeviceScratch<float> sums_;
};

// A state in memory, S [F',D] and z [F'], or nothing.
struct StateRows {
    const float *s = nullptr, *z = nullptr;
};
// What this segment's walk has seen of the call's keys ...
template <int D>
__device__ __forceinline__ StateRows start_of(const float* starts, const FusedShape& s, const FusedHead& head) {
    if (head.segment == 0) return {};
    const float* from = starts + (head.item * (s.segments - 1) + head.segment - 1) * kSumsSize<D>;
    return {from, from + kFusedFeatures * D};
}
// ... and what was handed in, [B,Hs,F',D] and [B,Hs,F'] or null.
template <int D>
__device__ __forceinline__ StateRows past_of(const StateRows& in, const FusedShape& s, const FusedHead& head) {
    if (!in.s) return {};
    const int64_t first = (head.b * s.maps + head.hs) * kFusedFeatures;
    return {in.s + first * D, in.z + first};
}

// `total`: a copy of the sums' totals in shared memory; visible after the next barrier. `past`: what was handed in, of this head.
template <int D>
__device__ __forceinline__ void begin_segment(FeatureSums<D>& sums, float* total, const float* starts,
                                              const FusedShape& s, const FusedHead& head, const StateRows& past = {}) {
    const StateRows start = start_of<D>(starts, s, head);
    if (start.s) sums.add(start.s, start.z);
    if (past.s) sums.add(past.s, past.z);
    if (head.first > 0) sums.put_total(total);
}

}  // namespace lc::kernels
