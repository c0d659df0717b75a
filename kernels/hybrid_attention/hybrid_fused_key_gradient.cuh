// Workspace of a gradient of the keys, for fused kernels whose thread blocks own a query head.
#pragma once
#include "kernels/hybrid_attention/hybrid_fused_sums.cuh"

namespace lc::kernels {

// Where the walk over the keys writes dk or dv: the slot itself, or a part for each query head that is summed afterwards.
struct KeyGradient {
    const GradSlot& slot;
    DeviceScratch<__nv_bfloat16> parts;

    KeyGradient(const GradSlot& to, const FusedShape& s, int64_t d, Stream stream) : slot(to) {
        if (slot && s.heads != s.kv_heads) parts = {s.items * s.blocks * kFusedRows * d, stream};
    }
    GradSlot rows(const FusedShape& s, int64_t d) const {
        if (!parts.data()) return slot;
        return {padded_heads(parts.data(), s, d, slot.view.device), GradWrite::Overwrite};
    }
    void finish(const FusedShape& s, int64_t d, Stream stream) const {
        if (parts.data()) store_group_sum(parts.data(), s, d, slot, stream);
    }
};

}  // namespace lc::kernels
