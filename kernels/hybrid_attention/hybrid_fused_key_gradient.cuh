// Workspace of a gradient of the keys, for fused kernels whose thread blocks own a query head, or a few of a group.
#pragma once
#include "kernels/hybrid_attention/hybrid_fused_sums.cuh"

namespace lc::kernels {

// Where the walk over the keys writes dk or dv: the slot itself, or parts [B,heads,blocks * 64,D] that are summed afterwards.
struct KeyGradient {
    const GradSlot& slot;
    const int64_t heads;
    DeviceScratch<__nv_bfloat16> parts;

    KeyGradient(const GradSlot& to, const FusedShape& s, int64_t d, int64_t heads, Stream stream)
        : slot(to), heads(heads) {
        if (slot && heads != s.kv_heads) parts = {s.items / s.heads * heads * s.blocks * kFusedRows * d, stream};
    }
    GradSlot rows(const FusedShape& s, int64_t d) const {
        if (!parts.data()) return slot;
        return {padded_heads(parts.data(), s, heads, d, slot.view.device), GradWrite::Overwrite};
    }
};
// Sums of both gradients' parts, of equally many heads, where there are parts.
inline void finish(const KeyGradient& dk, const KeyGradient& dv, const FusedShape& s, int64_t d, Stream stream) {
    store_group_sums({dk.parts.data(), dk.slot}, {dv.parts.data(), dv.slot}, s, dk.heads, d, stream);
}

}  // namespace lc::kernels
