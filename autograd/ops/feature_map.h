// Feature map on the tape. See kernels/feature_map/feature_map.h for the formulas.
#pragma once
#include "core/tensor.h"
#include "kernels/feature_map/feature_map.h"

namespace lc {

// x [B,Hx,T,D], w [H,D,F], b [H,1] | [H,F] | undefined -> phi [B,H,T,F'].
Tensor feature_map(const Tensor& x, const Tensor& w, const Tensor& b, kernels::FeatureActivation activation,
                   bool skip = false);

}  // namespace lc
