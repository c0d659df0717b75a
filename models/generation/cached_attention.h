// Attention of one token over what is kept of the past.
#pragma once
#include "models/generation/generator.h"

namespace lc::models {

// Room for attention outputs [B,H,T,D], stored as [B,T,H,D].
Tensor attention_output(const Tensor& q);

// One token of every row of q [B,H,1,D] into y of the same shape; row b is at positions[b], i64 [B] on q's device, idle below 0.
void decode_linearized(const DecoderLayer& layer, const Qkv& qkv, const kernels::LinearizedSpec& spec,
                       const Tensor& positions, const LayerCache& cache, const Tensor& y);

// The same over keys and values [B,H_kv,capacity,D], which the token's join.
void decode_softmax(const Qkv& qkv, const Tensor& positions, const Tensor& keys, const Tensor& values, int64_t window,
                    const Tensor& y);

}  // namespace lc::models
