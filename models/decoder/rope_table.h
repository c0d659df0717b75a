// Angles of rotary position embedding, default and Llama 3's scaling for long contexts.
#pragma once
#include <vector>

#include "core/tensor.h"
#include "io/hf_config.h"

namespace lc::models {

// f_i, i = 0..head_dim/2-1, in radians a position:
//   default  f_i = theta^(-2i/head_dim)
//   llama3   wavelength 2 pi / f_i: shorter than original/high_freq_factor keeps f, longer than
//   original/low_freq_factor
//            gets f/factor, between them the two are blended
std::vector<double> rope_frequencies(const io::RopeConfig& rope, int64_t head_dim);

struct RopeTable {
    Tensor cos, sin;  // [positions, head_dim/2]
};
// Computed in f64, then rounded to dtype.
RopeTable rope_table(const io::RopeConfig& rope, int64_t head_dim, int64_t positions, DType dtype);

}  // namespace lc::models
