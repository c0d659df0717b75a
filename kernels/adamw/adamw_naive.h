// The only CPU form: the loop vectorizes as the formula reads.
#pragma once
#include <cmath>

#include "core/parallel.h"
#include "kernels/adamw/adamw.h"

namespace lc::kernels {

template <class T>
void adamw_step_naive(const AdamwStep& args) {
    const double t = static_cast<double>(args.step);
    const T eps = static_cast<T>(args.eps);
    const T b1 = static_cast<T>(args.beta1), rest1 = static_cast<T>(1 - args.beta1);
    const T b2 = static_cast<T>(args.beta2), rest2 = static_cast<T>(1 - args.beta2);
    const T correct1 = static_cast<T>(1 / (1 - std::pow(args.beta1, t)));
    const T correct2 = static_cast<T>(1 / (1 - std::pow(args.beta2, t)));
    for (const AdamwTensor& tensor : args.tensors) {
        const T lr = static_cast<T>(tensor.lr), decay = static_cast<T>(tensor.weight_decay);
        const T grad_scale = static_cast<T>(tensor.grad_scale);
        T *p = tensor.parameter.data<T>(), *m = tensor.m.data<T>(), *v = tensor.v.data<T>();
        const T* grad = tensor.grad.data<T>();
        parallel_for(tensor.parameter.numel(), 16384, [=](int64_t begin, int64_t end) {
            for (int64_t i = begin; i < end; ++i) {
                const T g = grad_scale * grad[i];
                const T mean = b1 * m[i] + rest1 * g;
                const T square = b2 * v[i] + rest2 * g * g;
                p[i] -= lr * (mean * correct1 / (std::sqrt(square * correct2) + eps) + decay * p[i]);
                m[i] = mean;
                v[i] = square;
            }
        });
    }
}

}  // namespace lc::kernels
