#pragma once
#include "kernels/common/block_sum.h"
#include "kernels/common/rows.h"
#include "kernels/mse/mse.h"

namespace lc::kernels {

template <class T>
void mse_forward_naive(const MseForward& args) {
    const int64_t n = args.y.numel();
    const auto mean = [n](const T* y, const T* target) {
        return block_sum(n,
                         [=](int64_t i) {
                             const double difference = static_cast<double>(y[i]) - static_cast<double>(target[i]);
                             return difference * difference;
                         }) /
               static_cast<double>(n);
    };
    T& loss = *args.loss.data<T>();
    if (args.y.layout.strides == args.target.layout.strides && args.y.layout.is_dense()) {  // one order in memory
        loss = static_cast<T>(mean(args.y.data<T>(), args.target.data<T>()));
    } else {
        const FlatInput<T> y(args.y), target(args.target);
        loss = static_cast<T>(mean(y.data(), target.data()));
    }
}

template <class T>
void mse_backward_naive(const MseBackward& args) {
    const T factor = static_cast<T>(2.0 / static_cast<double>(args.y.numel())) * *args.dloss.data<T>();
    const auto gradient = [](T scale) { return [scale](const T& y, const T& target) { return scale * (y - target); }; };
    write_gradient<T, 2>(args.dy, {args.y, args.target}, gradient(factor));
    write_gradient<T, 2>(args.dtarget, {args.y, args.target}, gradient(-factor));
}

}  // namespace lc::kernels
