#pragma once
#include "kernels/concat/concat.h"

namespace lc::kernels {

// The part [start, start + length) of a view along an axis.
inline TensorView part_of(TensorView view, int axis, int64_t start, int64_t length) {
    view.layout = view.layout.slice(axis, start, length);
    return view;
}

inline void concat_forward_naive(const ConcatForward& args) {
    const int64_t a_size = args.a.size(args.axis), b_size = args.b.size(args.axis);
    copy_strided(args.a, part_of(args.out, args.axis, 0, a_size));
    copy_strided(args.b, part_of(args.out, args.axis, a_size, b_size));
}

template <class T>
void concat_backward_naive(const ConcatBackward& args) {
    const int64_t b_size = args.dout.size(args.axis) - args.a_size;
    store_gradient<T>(part_of(args.dout, args.axis, 0, args.a_size), args.da);
    store_gradient<T>(part_of(args.dout, args.axis, args.a_size, b_size), args.db);
}

}  // namespace lc::kernels
