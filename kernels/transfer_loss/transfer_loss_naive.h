// The oracle: attention, mean squared error and the backward of both, one after the other.
#pragma once
#include "kernels/common/elementwise.h"
#include "kernels/hybrid_attention/hybrid_attention_naive.h"
#include "kernels/transfer_loss/transfer_loss.h"

namespace lc::kernels {

template <class T>
void transfer_loss_naive(const TransferLoss& a) {
    std::vector<T> y(a.q.numel()), dy(a.q.numel());
    const auto view_of = [&a](std::vector<T>& values) {
        return TensorView{reinterpret_cast<std::byte*>(values.data()), Layout::contiguous(a.q.shape()), kDType<T>, {}};
    };
    const HybridAttentionForward forward{.q = a.q,
                                         .k = a.k,
                                         .v = a.v,
                                         .wq = a.wq,
                                         .bq = a.bq,
                                         .wk = a.wk,
                                         .bk = a.bk,
                                         .mix_logit = a.mix_logit,
                                         .s_in = {},
                                         .z_in = {},
                                         .y = view_of(y),
                                         .s_out = {},
                                         .z_out = {},
                                         .spec = a.spec};
    hybrid_attention_forward_naive<T>(forward);

    const auto target = a.target.as<const T, 4>();
    const double n = static_cast<double>(y.size());
    double sum = 0;
    size_t i = 0;
    for (int64_t b = 0; b < target.size(0); ++b)
        for (int64_t h = 0; h < target.size(1); ++h)
            for (int64_t t = 0; t < target.size(2); ++t)
                for (int64_t x = 0; x < target.size(3); ++x, ++i) {
                    const T difference = y[i] - target(b, h, t, x);
                    sum += static_cast<double>(difference) * static_cast<double>(difference);
                    dy[i] = static_cast<T>(2 * a.factor / n) * difference;
                }
    *a.loss.data<T>() = static_cast<T>(a.factor * sum / n);
    if (!a.gradients.any()) return;
    hybrid_attention_backward_naive<T>({.forward = forward,
                                        .dy = view_of(dy),
                                        .ds_out = {},
                                        .dz_out = {},
                                        .dwq = a.gradients.dwq,
                                        .dbq = a.gradients.dbq,
                                        .dwk = a.gradients.dwk,
                                        .dbk = a.gradients.dbk,
                                        .dmix_logit = a.gradients.dmix_logit});
}

template <class T>
void transfer_loss_backward_naive(const TransferLossBackward& a) {
    const T dloss = *a.dloss.data<const T>();
    if (a.out.accumulate())
        for_each_element<const T, T>({a.gradient, a.out.view}, [dloss](const T& g, T& out) { out += dloss * g; });
    else
        for_each_element<const T, T>({a.gradient, a.out.view}, [dloss](const T& g, T& out) { out = dloss * g; });
}

}  // namespace lc::kernels
