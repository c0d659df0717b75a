// The only CPU form: each tensor is read once, by all threads.
#pragma once
#include <cmath>

#include "kernels/common/block_sum.h"
#include "kernels/common/rows.h"
#include "kernels/grad_norm/grad_norm.h"

namespace lc::kernels {

template <class T>
double sum_of_squares_naive(const TensorView& view) {
    const FlatInput<T> x(view);
    return block_sum(view.numel(), [p = x.data()](int64_t i) {
        const double value = static_cast<double>(p[i]);
        return value * value;
    });
}

inline std::vector<double> grad_norms_naive(const GradNorms& args) {
    std::vector<double> norms(static_cast<size_t>(args.count));
    for (size_t i = 0; i < args.tensors.size(); ++i)
        dispatch_compute(args.tensors[i].dtype, "grad_norm", [&](auto type) {
            norms[args.groups[i]] += sum_of_squares_naive<typename decltype(type)::type>(args.tensors[i]);
        });
    for (double& norm : norms) norm = std::sqrt(norm);
    return norms;
}

}  // namespace lc::kernels
