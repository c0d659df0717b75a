// Integer inputs: token ids and labels.
#pragma once
#include <string_view>
#include <vector>

#include "core/tensor.h"

namespace lc::kernels {

inline constexpr int64_t kIgnoreLabel = -100;

// The ids (i32 or i64, any layout) in row-major order; each must lie in [0, bound), or be kIgnoreLabel where that is
// allowed. Throws naming op, position and value.
std::vector<int64_t> read_ids(std::string_view op, const TensorView& ids, int64_t bound, bool allow_ignore = false);

}  // namespace lc::kernels
