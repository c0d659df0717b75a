// Angles of rotary position embedding, and their scalings for long contexts (io/hf_rope.h).
#pragma once
#include <vector>

#include "core/tensor.h"
#include "io/hf_config.h"

namespace lc::models {

// f_i, i = 0..R/2-1, in radians a position; R numbers of each head are rotated, all of them in most models:
//   default  f_i = theta^(-2i/R)
//   linear   f_i / factor
//   dynamic  the default: up to max_position_embeddings, beyond which no sequence gets here, they are the same
//   llama3   wavelength 2 pi / f_i: shorter than original/high_freq_factor keeps f, longer than
//   original/low_freq_factor
//            gets f/factor, between them the two are blended
//   yarn     (arXiv 2309.00071) a frequency that turns n times within the original length has dimension
//            i(n) = R log(original / (2 pi n)) / (2 log theta); up to i(beta_fast), rounded down, f stays, from i(beta_slow),
//            rounded up, on it is f/factor, between them the two are blended linearly in i
std::vector<double> rope_frequencies(const io::RopeConfig& rope, int64_t rotary_dim);

struct RopeTable {
    Tensor cos, sin;  // [positions, R/2], times yarn's attention_factor
};
// Computed in f64, then rounded to dtype.
RopeTable rope_table(const io::RopeConfig& rope, int64_t rotary_dim, int64_t positions, DType dtype);

}  // namespace lc::models
