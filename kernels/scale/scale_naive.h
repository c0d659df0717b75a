#pragma once
#include "kernels/scale/scale.h"

namespace lc::kernels {

template <class T>
void scale_forward_naive(const ScaleForward& args) {
    const T factor = static_cast<T>(args.factor);
    for_each_element<const T, T>({args.x, args.y}, [factor](const T& x, T& y) { y = factor * x; });
}

template <class T>
void scale_backward_naive(const ScaleBackward& args) {
    const T factor = static_cast<T>(args.factor);
    write_gradient<T, 1>(args.dx, {args.dy}, [factor](const T& dy) { return factor * dy; });
}

}  // namespace lc::kernels
