// The oracle: loops as the formulas of frozen_linear.h read.
#pragma once
#include <cmath>
#include <optional>
#include <vector>

#include "kernels/common/rows.h"
#include "kernels/frozen_linear/frozen_linear.h"
#include "kernels/weight_code/weight_code_naive.h"

namespace lc::kernels {

// What the codes of a row stand for, where rows are coded.
template <class T>
std::vector<T> coded_row_naive(const FrozenLinear& args, std::vector<T> n) {
    if (!args.code_rows) return n;
    float most = 0;
    for (const T value : n) most = larger_magnitude(most, static_cast<float>(value));
    const float scale = most / most_of(args.code);
    for (T& value : n)
        value = static_cast<T>(scale) *
                static_cast<T>(code_value(encode_weight(static_cast<float>(value), scale, args.code), args.code));
    return n;
}

template <class T>
std::vector<T> frozen_input_naive(const FrozenLinear& args, const InRows<T>& x, int64_t r) {
    std::vector<T> n(x.row(r), x.row(r) + x.columns);
    if (!args.norm_weight) return coded_row_naive(args, std::move(n));
    T squares = 0;
    for (const T value : n) squares += value * value;
    const T factor = 1 / std::sqrt(squares / static_cast<T>(x.columns) + static_cast<T>(args.norm_eps));
    const auto weight = args.norm_weight.as<const T, 1>();
    for (int64_t i = 0; i < x.columns; ++i)
        n[static_cast<size_t>(i)] *= factor * (static_cast<T>(args.norm_offset) + weight(i));
    return coded_row_naive(args, std::move(n));
}

template <class T>
T frozen_row_naive(const FrozenMatrix& m, WeightCode code, const std::vector<T>& n, int64_t o) {
    T sum = 0;
    const auto add = [&](const auto& weight) {
        for (int64_t i = 0; i < std::ssize(n); ++i) sum += n[static_cast<size_t>(i)] * weight(i);
    };
    if (code == WeightCode::none) {
        const auto w = m.w.as<const T, 2>();
        add([&](int64_t i) { return w(o, i); });
    } else {
        const auto codes = m.w.as<const uint8_t, 2>();
        const T scale = static_cast<T>(m.scale.as<const float, 1>()(o));
        add([&](int64_t i) { return scale * static_cast<T>(code_value(codes(o, i), code)); });
    }
    return m.b ? sum + m.b.as<const T, 1>()(o) : sum;
}

template <class T>
void frozen_linear_naive(const FrozenLinear& args) {
    const InRows<T> x(args.x);
    const auto residual = args.residual ? std::make_optional<InRows<T>>(args.residual) : std::nullopt;
    for (size_t j = 0; j < args.y.size(); ++j) {
        const OutRows<T> y(args.y[j]);
        for (int64_t r = 0; r < y.rows; ++r) {
            const std::vector<T> n = frozen_input_naive(args, x, r);
            for (int64_t o = 0; o < y.columns; ++o) {
                T u = frozen_row_naive(args.matrices[j], args.code, n, o);
                if (args.gated) u *= frozen_row_naive(args.matrices[1], args.code, n, o) / (1 + std::exp(-u));
                y(r, o) = residual ? u + (*residual)(r, o) : u;
            }
        }
        y.finish();
    }
}

}  // namespace lc::kernels
