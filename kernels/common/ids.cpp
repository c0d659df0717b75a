#include "kernels/common/ids.h"

namespace lc::kernels {

std::vector<int64_t> read_ids(std::string_view op, const TensorView& ids, int64_t bound, bool allow_ignore) {
    LC_CHECK(ids.dtype == DType::i32 || ids.dtype == DType::i64, "{}: ids must be i32 or i64, got {}", op,
             name_of(ids.dtype));
    std::vector<int64_t> values(static_cast<size_t>(ids.numel()));
    if (values.empty()) return values;
    copy_strided(ids, {reinterpret_cast<std::byte*>(values.data()), Layout::contiguous(ids.shape()), DType::i64, {}});
    for (size_t i = 0; i < values.size(); ++i)
        LC_CHECK((values[i] >= 0 && values[i] < bound) || (allow_ignore && values[i] == kIgnoreLabel),
                 "{}: id {} at position {} is outside [0,{}){}", op, values[i], i, bound,
                 allow_ignore ? " and not -100 (ignored)" : "");
    return values;
}

}  // namespace lc::kernels
