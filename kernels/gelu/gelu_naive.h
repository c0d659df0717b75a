// The formulas of gelu.h, with the exponential as a parameter: std::exp for the oracle, the vectorizing one for speed.
#pragma once
#include <cmath>
#include <numbers>

#include "kernels/gelu/gelu.h"

namespace lc::kernels {

template <class T>
struct GeluCurve {
    static constexpr T kSlope = std::numbers::sqrt2_v<T> * std::numbers::inv_sqrtpi_v<T>;  // sqrt(2/pi)
    static constexpr T kCubic = T{0.044715};

    template <class Exp>
    static T gate(T x, Exp exp) {
        return 1 / (1 + exp(-2 * kSlope * x * (1 + kCubic * x * x)));
    }
    // gelu'(x), given s = gate(x).
    static T derivative(T x, T s) { return s + 2 * x * s * (1 - s) * kSlope * (1 + 3 * kCubic * x * x); }
};

template <class T, class Exp>
void gelu_forward_with(const GeluForward& args, Exp exp) {
    using Curve = GeluCurve<T>;
    if (args.up)
        for_each_element<const T, const T, T>(
            {args.x, args.up, args.y}, [exp](const T& x, const T& up, T& y) { y = x * Curve::gate(x, exp) * up; });
    else
        for_each_element<const T, T>({args.x, args.y}, [exp](const T& x, T& y) { y = x * Curve::gate(x, exp); });
}

template <class T, class Exp>
void gelu_backward_with(const GeluBackward& args, Exp exp) {
    using Curve = GeluCurve<T>;
    const auto slope = [exp](T x) { return Curve::derivative(x, Curve::gate(x, exp)); };
    if (args.up)
        write_gradient<T, 3>(args.dx, {args.x, args.up, args.dy},
                             [slope](const T& x, const T& up, const T& dy) { return dy * up * slope(x); });
    else
        write_gradient<T, 2>(args.dx, {args.x, args.dy}, [slope](const T& x, const T& dy) { return dy * slope(x); });
    write_gradient<T, 2>(args.dup, {args.x, args.dy},
                         [exp](const T& x, const T& dy) { return dy * x * Curve::gate(x, exp); });
}

template <class T>
void gelu_forward_naive(const GeluForward& args) {
    gelu_forward_with<T>(args, [](T x) { return std::exp(x); });
}
template <class T>
void gelu_backward_naive(const GeluBackward& args) {
    gelu_backward_with<T>(args, [](T x) { return std::exp(x); });
}

}  // namespace lc::kernels
