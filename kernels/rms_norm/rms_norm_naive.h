// The oracle: loops as the formulas of rms_norm.h read.
#pragma once
#include <cmath>

#include "kernels/common/rows.h"
#include "kernels/rms_norm/rms_norm.h"

namespace lc::kernels {

template <class T>
void rms_norm_forward_naive(const RmsNormForward& args) {
    const InRows<T> x(args.x);
    const InRows<T> residual(args.residual ? args.residual : args.x);
    const auto weight = args.weight.as<const T, 1>();
    const T offset = static_cast<T>(args.offset);
    const OutRows<T> y(args.y), sum(args.sum);
    const auto rstd = args.rstd.as<T, 1>();
    std::vector<T> s(static_cast<size_t>(x.columns));
    for (int64_t r = 0; r < x.rows; ++r) {
        T squares = 0;
        for (int64_t c = 0; c < x.columns; ++c) {
            s[c] = args.residual ? x(r, c) + residual(r, c) : x(r, c);
            squares += s[c] * s[c];
            if (sum) sum(r, c) = s[c];
        }
        rstd(r) = 1 / std::sqrt(squares / static_cast<T>(x.columns) + static_cast<T>(args.eps));
        for (int64_t c = 0; c < x.columns; ++c) y(r, c) = s[c] * rstd(r) * (offset + weight(c));
    }
    y.finish(), sum.finish();
}

template <class T>
void rms_norm_backward_naive(const RmsNormBackward& args) {
    const InRows<T> s(args.s), dy(args.dy ? args.dy : args.s), dsum(args.dsum ? args.dsum : args.s);
    const auto weight = args.weight.as<const T, 1>();
    const auto rstd = args.rstd.as<const T, 1>();
    const T offset = static_cast<T>(args.offset);
    const OutRows<T> dx(args.dx), dresidual(args.dresidual), dweight(args.dweight);
    std::vector<T> dw(static_cast<size_t>(s.columns));
    for (int64_t r = 0; r < s.rows; ++r) {
        const auto h = [&](int64_t c) { return s(r, c) * rstd(r); };
        const auto g = [&](int64_t c) { return args.dy ? dy(r, c) * (offset + weight(c)) : T{0}; };
        T mean = 0;
        for (int64_t c = 0; c < s.columns; ++c) mean += g(c) * h(c) / static_cast<T>(s.columns);
        for (int64_t c = 0; c < s.columns; ++c) {
            const T ds = rstd(r) * (g(c) - h(c) * mean) + (args.dsum ? dsum(r, c) : T{0});
            if (dx) dx.put(r, c, ds);
            if (dresidual) dresidual.put(r, c, ds);
            if (args.dy) dw[c] += dy(r, c) * h(c);
        }
    }
    for (int64_t c = 0; c < s.columns && dweight; ++c) dweight.put(0, c, dw[c]);
    dx.finish(), dresidual.finish(), dweight.finish();
}

}  // namespace lc::kernels
