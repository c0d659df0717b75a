// The oracle: loops as the formulas of lora_linear.h read.
#pragma once
#include "kernels/common/rows.h"
#include "kernels/lora_linear/lora_linear.h"

namespace lc::kernels {

template <class T>
void lora_linear_forward_naive(const LoraLinearForward& args) {
    const InRows<T> x(args.x);
    const OutRows<T> p(args.p);
    int64_t first = 0;  // column of p
    for (const LoraLinearForward::Projection& projection : args.projections) {
        const InRows<T> w(projection.w), a(projection.a), b(projection.b);
        const OutRows<T> y(projection.y);
        for (int64_t r = 0; r < x.rows; ++r) {
            for (int64_t j = 0; j < lora_columns(a.rows); ++j) {
                T sum = 0;
                for (int64_t i = 0; i < x.columns && j < a.rows; ++i) sum += x(r, i) * a(j, i);
                p(r, first + j) = sum;
            }
            for (int64_t o = 0; o < w.rows; ++o) {
                T base = 0, update = 0;
                for (int64_t i = 0; i < x.columns; ++i) base += x(r, i) * w(o, i);
                for (int64_t j = 0; j < a.rows; ++j) update += p(r, first + j) * b(o, j);
                y(r, o) = base + static_cast<T>(projection.s) * update +
                          (projection.bias ? projection.bias.as<const T, 1>()(o) : T{0});
            }
        }
        y.finish();
        first += lora_columns(a.rows);
    }
    p.finish();
}

namespace detail {

// Everything but dx, to which this projection's share is added: sum [rows,In].
template <class T>
void lora_projection_backward_naive(const LoraLinearBackward::Projection& projection, const Rows<const T>& x,
                                    const Rows<const T>& p, std::vector<T>& sum) {
    const InRows<T> w(projection.w), a(projection.a), b(projection.b), dy(projection.dy);
    const OutRows<T> dw(projection.dw), da(projection.da), db(projection.db), dbias(projection.dbias);
    const T s = static_cast<T>(projection.s);
    const int64_t rank = a.rows;
    std::vector<T> q(static_cast<size_t>(x.rows * rank));
    for (int64_t r = 0; r < x.rows; ++r)
        for (int64_t j = 0; j < rank; ++j)
            for (int64_t o = 0; o < w.rows; ++o) q[r * rank + j] += s * dy(r, o) * b(o, j);

    for (int64_t r = 0; r < x.rows && !sum.empty(); ++r)
        for (int64_t i = 0; i < x.columns; ++i) {
            for (int64_t o = 0; o < w.rows; ++o) sum[r * x.columns + i] += dy(r, o) * w(o, i);
            for (int64_t j = 0; j < rank; ++j) sum[r * x.columns + i] += q[r * rank + j] * a(j, i);
        }
    for (int64_t o = 0; o < w.rows && dw; ++o)
        for (int64_t i = 0; i < w.columns; ++i) {
            T total = 0;
            for (int64_t r = 0; r < x.rows; ++r) total += dy(r, o) * x(r, i);
            dw.put(o, i, total);
        }
    for (int64_t j = 0; j < rank && da; ++j)
        for (int64_t i = 0; i < a.columns; ++i) {
            T total = 0;
            for (int64_t r = 0; r < x.rows; ++r) total += q[r * rank + j] * x(r, i);
            da.put(j, i, total);
        }
    for (int64_t o = 0; o < w.rows && db; ++o)
        for (int64_t j = 0; j < rank; ++j) {
            T total = 0;
            for (int64_t r = 0; r < x.rows; ++r) total += dy(r, o) * p(r, j);
            db.put(o, j, s * total);
        }
    for (int64_t o = 0; o < w.rows && dbias; ++o) {
        T total = 0;
        for (int64_t r = 0; r < x.rows; ++r) total += dy(r, o);
        dbias.put(0, o, total);
    }
    dw.finish(), da.finish(), db.finish(), dbias.finish();
}

}  // namespace detail

template <class T>
void lora_linear_backward_naive(const LoraLinearBackward& args) {
    const InRows<T> x(args.x), p(args.p);
    std::vector<T> sum(args.dx ? static_cast<size_t>(x.rows * x.columns) : 0);
    Rows<const T> low = p;
    for (const LoraLinearBackward::Projection& projection : args.projections) {
        detail::lora_projection_backward_naive<T>(projection, x, low, sum);
        low.data += lora_columns(projection.a.size(0));
    }
    store_gradient(sum, args.dx);
}

}  // namespace lc::kernels
