// The shape of a GGUF model of architecture `llama` (Llama, Mistral and their kin), as its config.json would say it.
#pragma once
#include "io/gguf.h"
#include "io/hf_config.h"

namespace lc::io {

// Throws BadInput naming the key: another architecture, mixtures of experts, rope scaling that is not computed, heads of
// another size than the rotary dimension, sizes out of range. Llama 3's rope scaling, which these files hold as a tensor
// `rope_freqs.weight` of divisors, is recognized by its values.
HfConfig hf_config_of(const GgufFile& file);

}  // namespace lc::io
