#pragma once
#include <cmath>

#include "kernels/common/block_sum.h"
#include "kernels/common/rows.h"
#include "kernels/grad_norm/grad_norm.h"

namespace lc::kernels {

template <class T>
double sum_of_squares_naive(const TensorView& view) {
    const FlatInput<T> x(view);
    return block_sum(view.numel(), [p = x.data()](int64_t i) {
        const double value = static_cast<double>(p[i]);
        return value * value;
    });
}

}  // namespace lc::kernels
