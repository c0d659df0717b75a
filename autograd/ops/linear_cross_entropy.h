// Next-token loss straight from hidden states: logits = hidden W^T + b are made a block of rows at a time, turned into loss
// and gradient on the spot, and never stored whole.
//
//   loss = -1/n sum over rows with label >= 0 of log softmax(hidden_i W^T + b)[label_i]      n = number of such rows
//
// Label -100 is ignored. No valid row: loss 0 and gradients 0, not NaN.
#pragma once
#include "core/tensor.h"

namespace lc {

// hidden [N,D], weight [V,D], labels [N] i32 or i64 (-100 or in [0,V), checked), bias [V] or undefined -> scalar [].
Tensor linear_cross_entropy(const Tensor& hidden, const Tensor& weight, const Tensor& labels, const Tensor& bias = {});

// -log p(label) of each row, 0 where ignored; f32 (f64 for f64). For evaluation: never recorded.
Tensor token_nll(const Tensor& hidden, const Tensor& weight, const Tensor& labels, const Tensor& bias = {});

}  // namespace lc
