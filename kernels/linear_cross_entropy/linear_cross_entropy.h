// Next-token loss from hidden states, without ever storing all logits.
//
//   l_i = hidden_i W^T + b   nll_i = log sum_v exp(l_iv) - l_i[label_i]      loss = sum of nll_i over valid rows / n
//   dl_i = (softmax(l_i) - onehot(label_i)) / n      dhidden_i = dl_i W      dW = sum_i dl_i^T hidden_i   db = sum_i dl_i
//
// A row is valid when its label is not -100; n is the number of valid rows. Without one, loss and gradients are 0.
//
// NUMERICS: logits and softmax in f32 (f64 for f64) with the row maximum taken out; nll in f64 from there on.
// On the GPU hidden and dhidden may be bf16; then loss, nll and dloss are f32, and weight, bias and
// their gradients may be. A label out of
// range makes the loss NaN there (see NUMERICS in the .cu); elsewhere it is refused.
// COST: 2 N D V FLOPs forward, the same again for each gradient; one block of rows of logits is alive at a time.
#pragma once
#include "core/device.h"
#include "core/tensor.h"
#include "kernels/common/grad_write.h"

namespace lc::kernels {

struct LinearCrossEntropyForward {
    TensorView hidden;                   // [N,D]  in
    TensorView weight;                   // [V,D]  in
    TensorView bias;                     // [V]    in, or empty
    TensorView labels;                   // [N]    in, i32 or i64: -100 or in [0,V), checked
    TensorView loss;                     // []     out, or empty
    TensorView nll;                      // [N]    out, 0 where ignored; or empty
    TensorView dhidden, dweight, dbias;  // [N,D], [V,D], [V]  out: gradients of the loss; or empty
};
void linear_cross_entropy_forward(const LinearCrossEntropyForward& args, Stream stream);
void linear_cross_entropy_forward_cuda(const LinearCrossEntropyForward& args, Stream stream);

struct LinearCrossEntropyBackward {
    TensorView unit_dhidden, unit_dweight, unit_dbias;  // what the forward left; empty where nobody wanted it
    TensorView dloss;                                   // []  in: scales them
    GradSlot dhidden, dweight, dbias;                   // out
};
void linear_cross_entropy_backward(const LinearCrossEntropyBackward& args, Stream stream);
void linear_cross_entropy_backward_cuda(const LinearCrossEntropyBackward& args, Stream stream);

}  // namespace lc::kernels
