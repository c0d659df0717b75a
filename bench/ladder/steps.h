// From the formula to the library's own kernels: attention forward, one idea a step. Read the files in the order of their numbers.
#pragma once
#include <functional>
#include <string>
#include <vector>

#include "kernels/hybrid_attention/hybrid_attention.h"
#include "kernels/softmax_attention/softmax_attention.h"

namespace lc::bench {

// Softmax attention, bf16, D = 64 or 128; no lse.
void softmax_naive(const kernels::SoftmaxAttentionForward& args, Stream stream);   // softmax_1_naive.cu
void softmax_shared(const kernels::SoftmaxAttentionForward& args, Stream stream);  // softmax_2_shared.cu
void softmax_mma(const kernels::SoftmaxAttentionForward& args, Stream stream);     // softmax_3_mma.cu

// Hybrid attention, bf16, D = 64 or 128, terraced windows, softmax_dim maps; no state before or after, no biases.
void hybrid_naive(const kernels::HybridAttentionForward& args, Stream stream);  // hybrid_1_naive.cu
void hybrid_state(const kernels::HybridAttentionForward& args, Stream stream);  // hybrid_2_state.cu

struct Step {
    std::string op, idea;
    // y [B,H,T,D] from a case's inputs, q, k, v as [B,H,T,D].
    std::function<Tensor(const std::vector<Tensor>&)> run;
};
// In order; on a device that lacks what the last ones need, without these. Empty in a build without CUDA.
std::vector<Step> ladder_steps();

}  // namespace lc::bench
