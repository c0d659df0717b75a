// What every form of linearized attention reads from its arguments: the mixing weights of a head.
#pragma once
#include <cmath>

#include "kernels/common/attention_spec.h"

namespace lc::kernels {

template <class T>
struct HybridMix {
    T gamma = 0;   // weight of the window; 0 when there is none
    T lambda = 1;  // weight of the linear branch
    T dlogit = 0;  // d(mix_logit) = dlogit * sum_i D_i
};

template <class T>
HybridMix<T> hybrid_mix(const TensorView& mix_logit, const LinearizedSpec& spec, int64_t head) {
    if (spec.window == WindowKind::none) return {};
    const T logit = mix_logit.as<const T, 1>()(head);
    const T gamma = 1 / (1 + std::exp(-logit)),
            rest = 1 / (1 + std::exp(logit));  // rest = 1-gamma without cancellation
    return {gamma, spec.window_only ? T{0} : spec.affine ? rest : T{1}, spec.affine ? T{1} : rest};
}

}  // namespace lc::kernels
