#pragma once
#include "kernels/mul/mul.h"

namespace lc::kernels {

template <class T>
void mul_forward_naive(const MulForward& args) {
    for_each_element<const T, const T, T>({args.a, args.b, args.c}, [](const T& a, const T& b, T& c) { c = a * b; });
}

template <class T>
void mul_backward_naive(const MulBackward& args) {
    write_gradient<T, 2>(args.da, {args.dc, args.b}, [](const T& dc, const T& b) { return dc * b; });
    write_gradient<T, 2>(args.db, {args.dc, args.a}, [](const T& dc, const T& a) { return dc * a; });
}

}  // namespace lc::kernels
