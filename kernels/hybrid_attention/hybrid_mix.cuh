// hybrid_mix.h on the device.
#pragma once
#include "kernels/common/attention_spec.h"
#include "kernels/common/cuda/operand.cuh"

namespace lc::kernels {

struct DeviceMix {
    float gamma = 0, lambda = 1, dlogit = 0;

    __device__ DeviceMix(const Operand& logit, const LinearizedSpec& spec, int64_t head) {
        if (spec.window == WindowKind::none) return;
        const float a = logit.load(head), rest = 1 / (1 + expf(a));
        gamma = 1 / (1 + expf(-a));
        lambda = spec.window_only ? 0.0f : spec.affine ? rest : 1.0f;
        dlogit = spec.affine ? 1.0f : rest;
    }
};

}  // namespace lc::kernels
