// The oracle: loops as the formulas of rope.h read.
#pragma once
#include <algorithm>

#include "kernels/rope/rope.h"

namespace lc::kernels {

// Row of the tables for the first row of sequence b.
inline int64_t first_row(const TensorView& positions, int64_t first, int64_t b) {
    return positions ? std::max<int64_t>(0, positions.as<const int64_t, 1>()(b)) : first;
}

// out = the first columns of x rotated by direction * a and the others as they are, over it or on top of it.
template <class T>
void rope_rotate_naive(const TensorView& x_view, const TensorView& cos_view, const TensorView& sin_view, int64_t first,
                       const TensorView& positions, T direction, const GradSlot& slot) {
    const auto x = x_view.as<const T, 4>();
    const auto cos = cos_view.as<const T, 2>(), sin = sin_view.as<const T, 2>();
    const auto out = slot.view.as<T, 4>();
    const int64_t half = cos.size(1);
    const auto put = [&](T& target, T value) { target = slot.accumulate() ? target + value : value; };
    for (int64_t b = 0; b < x.size(0); ++b)
        for (int64_t h = 0; h < x.size(1); ++h)
            for (int64_t t = 0; t < x.size(2); ++t)
                for (int64_t i = 0; i < half; ++i) {
                    const int64_t row = first_row(positions, first, b) + t;
                    const T c = cos(row, i), s = direction * sin(row, i);
                    const T low = x(b, h, t, i), high = x(b, h, t, i + half);
                    put(out(b, h, t, i), low * c - high * s);
                    put(out(b, h, t, i + half), high * c + low * s);
                }
    for (int64_t b = 0; b < x.size(0); ++b)
        for (int64_t h = 0; h < x.size(1); ++h)
            for (int64_t t = 0; t < x.size(2); ++t)
                for (int64_t i = 2 * half; i < x.size(3); ++i) put(out(b, h, t, i), x(b, h, t, i));
}

template <class T>
void rope_forward_naive(const RopeForward& args) {
    rope_rotate_naive<T>(args.x, args.cos, args.sin, args.first, args.positions, T{1}, {args.y});
}

template <class T>
void rope_backward_naive(const RopeBackward& args) {
    if (args.dx) rope_rotate_naive<T>(args.dy, args.cos, args.sin, args.first, args.positions, T{-1}, args.dx);
}

}  // namespace lc::kernels
