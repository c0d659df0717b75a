// Few batch entries and heads on a large device: the walks of the fused kernels, cut into segments with a thread block each.
#pragma once
#include "kernels/hybrid_attention/hybrid_fused_steps.cuh"

namespace lc::kernels {

// hybrid_fused_segments (hybrid_fused.h) for the multiprocessors of `device`.
int segments_of(const FusedShape& shape, Device device);

// FeatureSums in memory: [F',D], then [F'].
template <int D>
inline constexpr int kSumsSize = (D + 1) * kFusedFeatures;

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
    FusedInputs in_;
    int64_t d_;
    Stream stream_;
    DeviceScratch<float> sums_;
};

// `total`: a copy of the sums' totals in shared memory; visible after the next barrier.
template <int D>
__device__ __forceinline__ void begin_segment(FeatureSums<D>& sums, float* total, const float* starts,
                                              const FusedShape& s, const FusedHead& head) {
    if (head.segment == 0) return;
    const float* from = starts + (head.item * (s.segments - 1) + head.segment - 1) * kSumsSize<D>;
    sums.load(from, from + kFusedFeatures * D);
    sums.put_total(total);
}

}  // namespace lc::kernels
