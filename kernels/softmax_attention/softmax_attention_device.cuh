// What the CUDA forms of softmax attention share: the shape.
#pragma once
#include <cmath>

#include "kernels/common/cuda/head_tensor.cuh"
#include "kernels/common/cuda/launch.h"
#include "kernels/softmax_attention/softmax_attention.h"

namespace lc::kernels {

struct AttentionShape {
    int64_t batch, heads, kv_heads, group, t, keys, cached,
        window;  // group query heads read one KV head; cached = keys - t
    int d;
    float scale;
    explicit AttentionShape(const SoftmaxAttentionForward& a)
        : batch(a.q.size(0)),
          heads(a.q.size(1)),
          kv_heads(a.k.size(1)),
          group(a.q.size(1) / a.k.size(1)),
          t(a.q.size(2)),
          keys(a.k.size(2)),
          cached(a.k.size(2) - a.q.size(2)),
          window(a.window > 0 ? a.window : a.k.size(2)),
          d(static_cast<int>(a.q.size(3))),
          scale(1 / std::sqrt(static_cast<float>(a.q.size(3)))) {}

    // Position i sees the keys [first_visible(i), visible(i)).
    __device__ int64_t visible(int64_t i) const { return min(i + cached + 1, keys); }
    __device__ int64_t first_visible(int64_t i) const { return max(i + cached + 1 - window, int64_t{0}); }
    // The first position that sees key j.
    __device__ int64_t first_seeing(int64_t j) const { return max(j - cached, int64_t{0}); }
    // Positions from here on no longer see key j.
    __device__ int64_t end_of_view(int64_t j) const { return min(t, j + window - cached); }
};

}  // namespace lc::kernels
