// Loss and dhidden of a frozen head on Hopper. Private to linear_cross_entropy.
#pragma once
#include "kernels/common/cuda/rows.h"

namespace lc::kernels {

// True where the build has code for sm_90a and the current device runs it.
bool frozen_head_has_sm90();

// What FrozenHead takes: bf16 that TMA copies, and rows that are worth a pair of tiles. dhidden may be bf16 or f32, or not wanted.
inline bool frozen_head_takes(const DeviceRows& hidden, const DeviceRows& weight, const DeviceOutRows& dhidden) {
    const auto is_aligned = [](const void* data, int64_t stride) {
        return reinterpret_cast<uintptr_t>(data) % 16 == 0 && stride % 8 == 0;
    };
    constexpr int64_t kFewestRows = 256;
    return hidden.dtype == DType::bf16 && hidden.rows >= kFewestRows && hidden.columns > 0 && hidden.columns % 8 == 0 &&
           weight.rows > 0 && is_aligned(hidden.data, hidden.stride) && is_aligned(weight.data, weight.stride) &&
           is_aligned(dhidden.data, dhidden.stride);
}

// Loss and dhidden of a call, chunk by chunk of rows.
class FrozenHead {
  public:
    // hidden [N,D], weight [V,D]: see above; labels [N] as in LinearCrossEntropyForward; scale: of the gradient; nll [N]; dhidden [N,D].
    // scale and nll lie on the device. All of them outlive this.
    FrozenHead(const DeviceRows& hidden, const DeviceRows& weight, const TensorView& labels, const float* scale,
               float* nll, const DeviceOutRows& dhidden, Stream stream);

    // nll, and dhidden if it is wanted, of rows [first, first + rows), rows <= step.
    void chunk(int64_t first, int64_t rows) const;

    int64_t step;  // rows of a chunk

  private:
    void make_shares(int64_t first, int64_t rows, bool again) const;

    const DeviceRows &hidden_, &weight_;
    const DeviceOutRows& dhidden_;
    const float* scale_;
    float* nll_;
    Stream stream_;
    int64_t stride_, column_tiles_;
    DeviceScratch<int> labels_, redo_;           // [N]; [1]
    DeviceScratch<float> reference_, at_label_;  // [N]; [step]
    DeviceScratch<float2> partial_, factors_;    // [step,column tiles]; [step]
    DeviceScratch<__nv_bfloat16> shares_;        // [step,stride]
    DeviceScratch<float> weighted_;              // [step,D]
};

}  // namespace lc::kernels
