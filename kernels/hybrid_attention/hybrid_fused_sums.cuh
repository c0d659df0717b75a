// Workspace of the fused gradients, and the sums that end them: over the batch, and over the heads of a group.
#pragma once
#include "kernels/hybrid_attention/hybrid_fused.cuh"

namespace lc::kernels {

// FusedRowResults in workspace.
class FusedRowScratch {
  public:
    FusedRowScratch(const FusedShape& shape, int64_t d, Stream stream, bool has_dn = true);
    FusedRowResults results() const {
        float* numbers = numbers_.data();
        return {dn_.data(), numbers, numbers + rows_, numbers + 2 * rows_, numbers + 3 * rows_};
    }

  private:
    int64_t rows_;
    DeviceScratch<__nv_bfloat16> dn_;
    DeviceScratch<float> numbers_;
};

// Workspace [B,heads,blocks * 64,D].
inline TensorView padded_heads(__nv_bfloat16* data, const FusedShape& s, int64_t heads, int64_t d, Device device) {
    return {reinterpret_cast<std::byte*>(data),
            Layout::contiguous({s.items / s.heads, heads, int64_t{s.blocks} * kFusedRows, d}), DType::bf16, device};
}
inline TensorView padded_heads(__nv_bfloat16* data, const FusedShape& s, int64_t d, Device device) {
    return padded_heads(data, s, s.heads, d, device);
}

// slot [maps,D,F] (+)= sum of parts [B,H,segments,D,F] over the batch, the query heads that share a map, and segments.
void store_map_gradient(const float* parts, const FusedShape& shape, int64_t maps, int64_t d, const GradSlot& slot,
                        Stream stream);
// slot [H] (+)= (1-gamma) sum of parts [B,H,segments] over batch and segments.
void store_mix_gradient(const double* parts, const FusedInputs& in, const GradSlot& slot, Stream stream);
// slot [B,H_kv,T,D] (+)= sum of parts [B,heads,blocks * 64,D] over the heads of a group. Parts null: that slot is left alone.
struct GroupParts {
    const __nv_bfloat16* parts;
    const GradSlot& slot;
};
void store_group_sums(const GroupParts& dk, const GroupParts& dv, const FusedShape& shape, int64_t heads, int64_t d,
                      Stream stream);

// Sum over the thread block in a fixed order, for thread 0; `room` holds kWarps doubles that nobody else uses meanwhile.
__device__ __forceinline__ double fused_block_sum(double value, double* room) {
    value = warp_sum(value);
    if (threadIdx.x % kWarp == 0) room[warp_index()] = value;
    __syncthreads();
    double sum = 0;
    for (int i = 0; i < kWarps && threadIdx.x == 0; ++i) sum += room[i];
    return sum;
}

}  // namespace lc::kernels
