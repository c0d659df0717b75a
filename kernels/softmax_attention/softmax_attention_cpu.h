// The fast CPU forms (f32), called by the front door only. k and v must be matrices (see is_matrix); the rest may lie
// in any way.
#pragma once
#include "kernels/softmax_attention/softmax_attention.h"

namespace lc::kernels {

void softmax_attention_forward_cpu(const SoftmaxAttentionForward& args);
void softmax_attention_backward_cpu(const SoftmaxAttentionBackward& args);

}  // namespace lc::kernels
