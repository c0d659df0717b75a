// Which calls the fused form takes, and how it sees their arguments.
//
// MATHS    hybrid_attention.h.
// TILING   hybrid_fused_steps.cuh.
// COST     a few host instructions a call.
// NUMERICS hybrid_fused_forward.cu.
// LADDER   1 this.
// SOURCE   derived here.
#include "kernels/hybrid_attention/hybrid_fused.cuh"

#include <array>
#include <atomic>
#include <limits>

#include "kernels/common/dispatch.h"
#include "kernels/hybrid_attention/hybrid_fused.h"

namespace lc::kernels {
namespace {

bool is_dense(const TensorView& x) {
    return x.layout.is_contiguous() && is_aligned(x);
}
bool is_narrow_or_float(DType dtype) {
    return dtype == DType::bf16 || dtype == DType::f32;
}

bool device_fits(Device device) {
    static std::array<std::atomic<int>, 64> most{};  // bytes a block may ask for, by device
    if (device.index < 0 || device.index >= static_cast<int>(most.size())) return false;
    std::atomic<int>& bytes = most[device.index];
    if (bytes == 0) {
        int value = 0;
        LC_CUDA(cudaDeviceGetAttribute(&value, cudaDevAttrMaxSharedMemoryPerBlockOptin, device.index));
        bytes = value;
    }
    return bytes >= kFusedSharedBytes;
}

// All but which positions there are.
bool suits(const HybridAttentionForward& a) {
    const LinearizedSpec& spec = a.spec;
    const int64_t d = a.q.size(3);
    if (a.q.dtype != DType::bf16 || a.q.numel() == 0 || (d != 64 && d != 128) || a.wq.size(2) != kFusedMap)
        return false;
    if (spec.window != WindowKind::terraced || spec.window_size != kFusedRows || spec.skip || spec.affine ||
        spec.window_only || spec.activation != FeatureActivation::softmax_dim)
        return false;
    if (a.bq || a.bk || a.k.size(2) > std::numeric_limits<int>::max() - 2 * kFusedRows) return false;
    for (const TensorView& rows : {a.q, a.k, a.v, a.y})
        if (rows && !has_dense_rows(rows)) return false;
    for (const TensorView& w : {a.wq, a.wk})
        if (!is_dense(w) || !is_narrow_or_float(w.dtype)) return false;
    for (const TensorView& state : {a.s_in, a.z_in, a.s_out, a.z_out})
        if (state && (!is_dense(state) || state.dtype != DType::f32)) return false;
    return device_fits(a.q.device);
}

}  // namespace

FusedInputs::FusedInputs(const HybridAttentionForward& a)
    : shape{.items = a.q.size(0) * a.q.size(1),
            .heads = static_cast<int>(a.q.size(1)),
            .kv_heads = static_cast<int>(a.k.size(1)),
            .maps = static_cast<int>(a.wk.size(0)),
            .length = static_cast<int>(a.q.size(2)),
            .keys = static_cast<int>(a.k.size(2)),
            .blocks = static_cast<int>(ceil_div(a.k.size(2), kFusedRows)),
            .scale = 1 / std::sqrt(static_cast<float>(a.q.size(3)))},
      q(a.q),
      k(a.k),
      v(a.v),
      wq(a.wq),
      wk(a.wk),
      mix_logit(a.mix_logit),
      spec(a.spec) {
    const int kept = shape.keys - shape.length;
    if (kept >= kFusedRows) shape.first = 2, shape.key_row = -kFusedRows, ++shape.blocks;
    shape.query_row = shape.key_row - kept;
}

PairRows::PairRows(const GradSlot& slot) {
    if (!slot) return;
    base = slot.view.base + slot.view.layout.offset * size_of(slot.view.dtype);
    for (int axis = 0; axis < 3; ++axis) strides[axis] = slot.view.stride(axis);
    narrow = slot.view.dtype == DType::bf16, accumulate = slot.accumulate();
}

bool PairRows::covers(const GradSlot& slot) {
    const TensorView& x = slot.view;
    if (!slot) return true;
    return is_narrow_or_float(x.dtype) && x.stride(3) == 1 && is_aligned(x) && x.stride(0) % 2 == 0 &&
           x.stride(1) % 2 == 0 && x.stride(2) % 2 == 0;
}

bool hybrid_fused_covers(const HybridAttentionForward& a) {
    return !a.s_in && a.first_key == 0 && a.k.size(2) == a.q.size(2) && suits(a);
}

bool hybrid_fused_forward_covers(const HybridAttentionForward& a) {
    // Nothing may be far of rows that share a block with the first key.
    const bool goes_on = a.k.size(2) - a.q.size(2) >= kFusedRows;
    return (goes_on || (!a.s_in && a.first_key == 0)) && suits(a);
}

bool hybrid_fused_covers(const HybridAttentionBackward& a) {
    if (a.ds_out || a.dz_out || !has_dense_rows(a.dy)) return false;
    for (const GradSlot& slot : {a.dq, a.dk, a.dv})
        if (!PairRows::covers(slot)) return false;
    return hybrid_fused_covers(a.forward);
}

}  // namespace lc::kernels
