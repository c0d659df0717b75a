// The oracle: loops as the formulas of linear.h read.
#pragma once
#include <optional>

#include "kernels/common/rows.h"
#include "kernels/linear/linear.h"

namespace lc::kernels {

template <class T>
void linear_forward_naive(const LinearForward& args) {
    const InRows<T> x(args.x), w(args.w);
    const OutRows<T> y(args.y);
    const auto residual = args.residual ? std::make_optional<InRows<T>>(args.residual) : std::nullopt;
    for (int64_t r = 0; r < y.rows; ++r)
        for (int64_t o = 0; o < y.columns; ++o) {
            T sum = args.b ? args.b.as<const T, 1>()(o) : T{0};
            if (residual) sum += (*residual)(r, o);
            for (int64_t i = 0; i < x.columns; ++i) sum += x(r, i) * w(o, i);
            y(r, o) = sum;
        }
    y.finish();
}

template <class T>
void linear_backward_naive(const LinearBackward& args) {
    const InRows<T> w(args.w), dy(args.dy);
    const OutRows<T> dx(args.dx), dw(args.dw), db(args.db);
    for (int64_t r = 0; r < dy.rows && dx; ++r)
        for (int64_t i = 0; i < w.columns; ++i) {
            T sum = 0;
            for (int64_t o = 0; o < w.rows; ++o) sum += dy(r, o) * w(o, i);
            dx.put(r, i, sum);
        }
    if (dw) {
        const InRows<T> x(args.x);
        for (int64_t o = 0; o < w.rows; ++o)
            for (int64_t i = 0; i < w.columns; ++i) {
                T sum = 0;
                for (int64_t r = 0; r < dy.rows; ++r) sum += dy(r, o) * x(r, i);
                dw.put(o, i, sum);
            }
    }
    for (int64_t o = 0; o < w.rows && db; ++o) {
        T sum = 0;
        for (int64_t r = 0; r < dy.rows; ++r) sum += dy(r, o);
        db.put(0, o, sum);
    }
    dx.finish(), dw.finish(), db.finish();
}

}  // namespace lc::kernels
