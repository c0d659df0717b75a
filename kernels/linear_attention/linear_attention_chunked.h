// The fast CPU forms: chunks of kLinearChunk positions on gemm. The front door calls them in f32; the f64 instances exist
// for tests, where chunked and recurrent forms must agree to rounding. q, k, v, wq and wk must be matrices (is_matrix).
#pragma once
#include "kernels/linear_attention/linear_attention.h"

namespace lc::kernels {

inline constexpr int64_t kLinearChunk = 64;

template <class T>
void linear_attention_forward_chunked(const LinearAttentionForward& args);
template <class T>
void linear_attention_backward_chunked(const LinearAttentionBackward& args);

}  // namespace lc::kernels
