// The forms of feature_map_forward and feature_map_backward on tensor cores.
#pragma once
#include "kernels/feature_map/feature_map.h"

namespace lc::kernels {

// Queues the work and returns true where it covers the case: x and phi bf16 with dense rows on 16 bytes, D 64 or 128, F = 64, neither
// bias nor skip. Else it does nothing.
bool feature_map_forward_tiled(const FeatureMapForward& args, Stream stream);
// The same, with dphi in place of phi; dx, where wanted, of either dtype, dense and on 16 bytes, and of at most four heads that read one
// head of x. Takes at least one gradient.
bool feature_map_backward_tiled(const FeatureMapBackward& args, Stream stream);

}  // namespace lc::kernels
