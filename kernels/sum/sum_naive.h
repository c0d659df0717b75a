#pragma once
#include "kernels/common/block_sum.h"
#include "kernels/common/rows.h"
#include "kernels/sum/sum.h"

namespace lc::kernels {

template <class T>
void sum_forward_naive(const SumForward& args) {
    const FlatInput<T> x(args.x);
    *args.y.data<T>() = static_cast<T>(block_sum(args.x.numel(), [&](int64_t i) { return x[i]; }));
}

template <class T>
void sum_backward_naive(const SumBackward& args) {
    const T dy = *args.dy.data<T>();
    write_gradient<T, 0>(args.dx, {}, [dy] { return dy; });
}

}  // namespace lc::kernels
