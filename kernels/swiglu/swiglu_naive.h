// The formulas of swiglu.h, with the exponential as a parameter: std::exp for the oracle, the vectorizing one for
// speed.
#pragma once
#include <cmath>

#include "kernels/swiglu/swiglu.h"

namespace lc::kernels {

template <class T, class Exp>
void swiglu_forward_with(const SwigluForward& args, Exp exp) {
    for_each_element<const T, const T, T>(
        {args.gate, args.up, args.y}, [exp](const T& gate, const T& up, T& y) { y = gate / (1 + exp(-gate)) * up; });
}

template <class T, class Exp>
void swiglu_backward_with(const SwigluBackward& args, Exp exp) {
    write_gradient<T, 3>(args.dgate, {args.gate, args.up, args.dy}, [exp](const T& gate, const T& up, const T& dy) {
        const T s = 1 / (1 + exp(-gate));
        return dy * up * s * (1 + gate * (1 - s));
    });
    write_gradient<T, 2>(args.dup, {args.gate, args.dy},
                         [exp](const T& gate, const T& dy) { return dy * gate / (1 + exp(-gate)); });
}

template <class T>
void swiglu_forward_naive(const SwigluForward& args) {
    swiglu_forward_with<T>(args, [](T x) { return std::exp(x); });
}
template <class T>
void swiglu_backward_naive(const SwigluBackward& args) {
    swiglu_backward_with<T>(args, [](T x) { return std::exp(x); });
}

}  // namespace lc::kernels
