#pragma once
#include "kernels/common/rows.h"
#include "kernels/dropout/dropout.h"

namespace lc::kernels {

// Forward and backward are the same product with the mask.
template <class T>
void dropout_naive(const TensorView& from, const DropoutMask& mask, const GradSlot& to) {
    if (!to) return;
    const InRows<T> x(from);
    const OutRows<T> y(to);
    const uint32_t threshold = dropout_threshold(mask.p);
    const T scale = static_cast<T>(1 / (1 - mask.p));
    parallel_for(x.rows, std::max<int64_t>(1, 1024 / std::max<int64_t>(x.columns, 1)), [&](int64_t begin, int64_t end) {
        std::array<uint32_t, 4> words{};
        for (int64_t r = begin; r < end; ++r)
            for (int64_t c = 0; c < x.columns; ++c) {
                const auto i = static_cast<uint64_t>(r * x.columns + c);
                if (i % 8 == 0 || (r == begin && c == 0)) words = dropout_words(mask, i / 8);
                y.put(r, c, dropout_bits(words, i) >= threshold ? scale * x(r, c) : T{0});
            }
    });
    y.finish();
}

}  // namespace lc::kernels
