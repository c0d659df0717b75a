// The oracle: loops as the formulas of linear_cross_entropy.h read, one row at a time.
#pragma once
#include <algorithm>
#include <cmath>

#include "kernels/common/ids.h"
#include "kernels/common/rows.h"
#include "kernels/linear_cross_entropy/linear_cross_entropy.h"

namespace lc::kernels {

template <class T>
void linear_cross_entropy_forward_naive(const LinearCrossEntropyForward& args) {
    const InRows<T> hidden(args.hidden), weight(args.weight);
    const std::vector<int64_t> labels = read_ids("linear_cross_entropy", args.labels, weight.rows, true);
    const auto ignored = std::count(labels.begin(), labels.end(), kIgnoreLabel);
    const T n = static_cast<T>(hidden.rows - ignored);
    const int64_t d = hidden.columns, vocabulary = weight.rows;
    std::vector<T> logits(static_cast<size_t>(vocabulary)), dh(static_cast<size_t>(hidden.rows * d));
    std::vector<T> dw(static_cast<size_t>(args.dweight ? vocabulary * d : 0)), nll(labels.size());
    std::vector<T> db(static_cast<size_t>(vocabulary));
    double total = 0;
    for (int64_t i = 0; i < hidden.rows; ++i) {
        if (labels[i] == kIgnoreLabel) continue;
        for (int64_t v = 0; v < vocabulary; ++v) {
            logits[v] = args.bias ? args.bias.as<const T, 1>()(v) : T{0};
            for (int64_t c = 0; c < d; ++c) logits[v] += hidden(i, c) * weight(v, c);
        }
        const T high = *std::max_element(logits.begin(), logits.end());
        T sum = 0;
        for (const T logit : logits) sum += std::exp(logit - high);
        nll[i] = std::log(sum) + high - logits[labels[i]];
        total += static_cast<double>(nll[i]);
        for (int64_t v = 0; v < vocabulary && (args.dhidden || args.dweight || args.dbias); ++v) {
            const T dlogit = (std::exp(logits[v] - high) / sum - (v == labels[i] ? T{1} : T{0})) / n;
            for (int64_t c = 0; c < d; ++c) dh[i * d + c] += dlogit * weight(v, c);
            for (int64_t c = 0; c < d && args.dweight; ++c) dw[v * d + c] += dlogit * hidden(i, c);
            db[v] += dlogit;
        }
    }
    if (args.loss) *args.loss.data<T>() = n > 0 ? static_cast<T>(total / static_cast<double>(n)) : T{0};
    if (args.nll) store_gradient(nll, {args.nll});
    if (args.dhidden) store_gradient(dh, {args.dhidden});
    if (args.dweight) store_gradient(dw, {args.dweight});
    if (args.dbias) store_gradient(db, {args.dbias});
}

template <class T>
void linear_cross_entropy_backward_naive(const LinearCrossEntropyBackward& args) {
    const T dloss = *args.dloss.data<T>();
    const auto scale = [dloss](const T& unit) { return dloss * unit; };
    write_gradient<T, 1>(args.dhidden, {args.unit_dhidden}, scale);
    write_gradient<T, 1>(args.dweight, {args.unit_dweight}, scale);
    write_gradient<T, 1>(args.dbias, {args.unit_dbias}, scale);
}

}  // namespace lc::kernels
