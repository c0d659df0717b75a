// The oracle: loops as the formulas of layer_norm.h read.
#pragma once
#include <cmath>

#include "kernels/common/rows.h"
#include "kernels/layer_norm/layer_norm.h"

namespace lc::kernels {

template <class T>
void layer_norm_forward_naive(const LayerNormForward& args) {
    const InRows<T> x(args.x);
    const auto weight = args.weight.as<const T, 1>(), bias = args.bias.as<const T, 1>();
    const auto mean = args.mean.as<T, 1>(), rstd = args.rstd.as<T, 1>();
    const OutRows<T> y(args.y);
    const T columns = static_cast<T>(x.columns);
    for (int64_t r = 0; r < x.rows; ++r) {
        T sum = 0, squares = 0;
        for (int64_t c = 0; c < x.columns; ++c) sum += x(r, c);
        mean(r) = sum / columns;
        for (int64_t c = 0; c < x.columns; ++c) squares += (x(r, c) - mean(r)) * (x(r, c) - mean(r));
        rstd(r) = 1 / std::sqrt(squares / columns + static_cast<T>(args.eps));
        for (int64_t c = 0; c < x.columns; ++c) y(r, c) = (x(r, c) - mean(r)) * rstd(r) * weight(c) + bias(c);
    }
    y.finish();
}

template <class T>
void layer_norm_backward_naive(const LayerNormBackward& args) {
    const InRows<T> x(args.x), dy(args.dy);
    const auto weight = args.weight.as<const T, 1>(), mean = args.mean.as<const T, 1>(),
               rstd = args.rstd.as<const T, 1>();
    const OutRows<T> dx(args.dx), dweight(args.dweight), dbias(args.dbias);
    std::vector<T> dw(static_cast<size_t>(x.columns)), db(dw);
    for (int64_t r = 0; r < x.rows; ++r) {
        const auto h = [&](int64_t c) { return (x(r, c) - mean(r)) * rstd(r); };
        const auto g = [&](int64_t c) { return dy(r, c) * weight(c); };
        T mean_g = 0, mean_gh = 0;
        for (int64_t c = 0; c < x.columns; ++c) {
            mean_g += g(c) / static_cast<T>(x.columns);
            mean_gh += g(c) * h(c) / static_cast<T>(x.columns);
        }
        for (int64_t c = 0; c < x.columns; ++c) {
            if (dx) dx.put(r, c, rstd(r) * (g(c) - mean_g - h(c) * mean_gh));
            dw[c] += dy(r, c) * h(c), db[c] += dy(r, c);
        }
    }
    for (int64_t c = 0; c < x.columns && dweight; ++c) dweight.put(0, c, dw[c]);
    for (int64_t c = 0; c < x.columns && dbias; ++c) dbias.put(0, c, db[c]);
    dx.finish(), dweight.finish(), dbias.finish();
}

}  // namespace lc::kernels
