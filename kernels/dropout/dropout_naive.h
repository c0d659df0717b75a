#pragma once
#include "core/rng.h"
#include "kernels/common/rows.h"
#include "kernels/dropout/dropout.h"

namespace lc::kernels {

// Forward and backward are the same product with the mask.
template <class T>
void dropout_naive(const TensorView& from, const DropoutMask& mask, const GradSlot& to) {
    if (!to) return;
    const InRows<T> x(from);
    const OutRows<T> y(to);
    const Random random(mask.seed, mask.stream);
    const double threshold = mask.p * 0x1p32;
    const T scale = static_cast<T>(1 / (1 - mask.p));
    parallel_for(x.rows, std::max<int64_t>(1, 1024 / std::max<int64_t>(x.columns, 1)), [&](int64_t begin, int64_t end) {
        for (int64_t r = begin; r < end; ++r)
            for (int64_t c = 0; c < x.columns; ++c) {
                const bool keep = random.bits(static_cast<uint64_t>(r * x.columns + c)) >= threshold;
                y.put(r, c, keep ? scale * x(r, c) : T{0});
            }
    });
    y.finish();
}

}  // namespace lc::kernels
