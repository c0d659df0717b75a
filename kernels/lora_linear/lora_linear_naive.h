// The oracle: loops as the formulas of lora_linear.h read.
#pragma once
#include "kernels/common/rows.h"
#include "kernels/lora_linear/lora_linear.h"

namespace lc::kernels {

template <class T>
void lora_linear_forward_naive(const LoraLinearForward& args) {
    const InRows<T> x(args.x), w(args.w), a(args.a), b(args.b);
    const OutRows<T> y(args.y), p(args.p);
    for (int64_t r = 0; r < x.rows; ++r) {
        for (int64_t j = 0; j < a.rows; ++j) {
            T sum = 0;
            for (int64_t i = 0; i < x.columns; ++i) sum += x(r, i) * a(j, i);
            p(r, j) = sum;
        }
        for (int64_t o = 0; o < w.rows; ++o) {
            T base = 0, update = 0;
            for (int64_t i = 0; i < x.columns; ++i) base += x(r, i) * w(o, i);
            for (int64_t j = 0; j < a.rows; ++j) update += p(r, j) * b(o, j);
            y(r, o) = base + static_cast<T>(args.s) * update + (args.bias ? args.bias.as<const T, 1>()(o) : T{0});
        }
    }
    y.finish(), p.finish();
}

template <class T>
void lora_linear_backward_naive(const LoraLinearBackward& args) {
    const InRows<T> x(args.x), w(args.w), a(args.a), b(args.b), p(args.p), dy(args.dy);
    const OutRows<T> dx(args.dx), dw(args.dw), da(args.da), db(args.db), dbias(args.dbias);
    const T s = static_cast<T>(args.s);
    const int64_t rank = a.rows;
    std::vector<T> q(static_cast<size_t>(x.rows * rank));
    for (int64_t r = 0; r < x.rows; ++r)
        for (int64_t j = 0; j < rank; ++j)
            for (int64_t o = 0; o < w.rows; ++o) q[r * rank + j] += s * dy(r, o) * b(o, j);

    for (int64_t r = 0; r < x.rows && dx; ++r)
        for (int64_t i = 0; i < x.columns; ++i) {
            T sum = 0;
            for (int64_t o = 0; o < w.rows; ++o) sum += dy(r, o) * w(o, i);
            for (int64_t j = 0; j < rank; ++j) sum += q[r * rank + j] * a(j, i);
            dx.put(r, i, sum);
        }
    for (int64_t o = 0; o < w.rows && dw; ++o)
        for (int64_t i = 0; i < w.columns; ++i) {
            T sum = 0;
            for (int64_t r = 0; r < x.rows; ++r) sum += dy(r, o) * x(r, i);
            dw.put(o, i, sum);
        }
    for (int64_t j = 0; j < rank && da; ++j)
        for (int64_t i = 0; i < a.columns; ++i) {
            T sum = 0;
            for (int64_t r = 0; r < x.rows; ++r) sum += q[r * rank + j] * x(r, i);
            da.put(j, i, sum);
        }
    for (int64_t o = 0; o < w.rows && db; ++o)
        for (int64_t j = 0; j < rank; ++j) {
            T sum = 0;
            for (int64_t r = 0; r < x.rows; ++r) sum += dy(r, o) * p(r, j);
            db.put(o, j, s * sum);
        }
    for (int64_t o = 0; o < w.rows && dbias; ++o) {
        T sum = 0;
        for (int64_t r = 0; r < dy.rows; ++r) sum += dy(r, o);
        dbias.put(0, o, sum);
    }
    dx.finish(), dw.finish(), da.finish(), db.finish(), dbias.finish();
}

}  // namespace lc::kernels
