#pragma once
#include "kernels/add/add.h"

namespace lc::kernels {

template <class T>
void add_forward_naive(const AddForward& args) {
    for_each_element<const T, const T, T>({args.a, args.b, args.c}, [](const T& a, const T& b, T& c) { c = a + b; });
}

template <class T>
void add_backward_naive(const AddBackward& args) {
    store_gradient<T>(args.dc, args.da);
    store_gradient<T>(args.dc, args.db);
}

}  // namespace lc::kernels
