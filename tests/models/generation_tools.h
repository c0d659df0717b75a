// What tests of engine and conversation share: a tiny model with a tokenizer, and the full forward pass as the judge.
#pragma once
#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <vector>

#include "autograd/grad_mode.h"
#include "io/tokenizer/bpe_trainer.h"
#include "io/tokenizer/tokenizer.h"
#include "models/generation/conversation.h"
#include "tests/models/tiny.h"

namespace lc::test {

inline const io::Tokenizer& tiny_tokenizer() {
    static const io::Tokenizer tokenizer = io::Tokenizer::parse(
        io::train_byte_level_bpe("one two three four five six seven eight nine ten", {.vocab_size = 280}), "tiny");
    return tokenizer;
}

struct DecodeVariant {
    const char* name;
    models::DecodeMode mode;
    models::AttentionSpec spec;
};
inline std::ostream& operator<<(std::ostream& out, const DecodeVariant& variant) {
    return out << variant.name;
}

inline std::vector<DecodeVariant> decode_variants() {
    const models::DecodeMode softmax{models::AttentionMode::Softmax}, linearized{models::AttentionMode::Linearized};
    models::AttentionSpec sliding = tiny_spec(), kept = tiny_spec(), linear = tiny_spec(), shared = tiny_spec();
    sliding.window = kernels::WindowKind::sliding;
    kept.softmax_layers = {1};
    linear.kind = models::AttentionKind::linear;
    shared.heads = models::FeatureHeads::kv;
    return {{"softmax", softmax, tiny_spec()}, {"terraced", linearized, tiny_spec()},
            {"sliding", linearized, sliding},  {"kept_softmax_layer", linearized, kept},
            {"linear", linearized, linear},    {"terraced_kv_maps", linearized, shared}};
}

// Odd sizes on purpose: rows of products and of elementwise loops end in tails.
inline models::Decoder decoder_with_text(const models::AttentionSpec& spec, const models::Placement& placement = {}) {
    models::DecoderConfig config = tiny_config(true, 3);
    config.vocab_size = 283, config.intermediate_size = 37, config.max_positions = 512;
    models::Decoder decoder = tiny_decoder(config, placement);
    decoder.linearize(spec, 1);
    disturb(decoder.feature_map_parameters(), 0.3);
    return decoder;
}

inline std::vector<int32_t> prompt_of(int64_t length, uint64_t seed) {
    return tiny_ids(1, length, 280, seed).to_vector<int32_t>();
}

// Fails unless every id was the likeliest one by the full forward pass over all that came before it. Where two logits agree to
// `rounding` (relative), either is right.
inline void expect_greedy(const models::Decoder& decoder, models::DecodeMode mode, std::vector<int32_t> prompt,
                          const std::vector<int32_t>& ids, float rounding = 1e-5f) {
    const NoGrad no_grad;
    const int64_t start = std::ssize(prompt), length = start + std::ssize(ids) - 1;
    prompt.insert(prompt.end(), ids.begin(), ids.end() - 1);
    const Tensor logits = decoder.logits(Tensor::from(prompt, {1, length}), {.mode = mode.mode, .terms = mode.terms});
    for (size_t i = 0; i < ids.size(); ++i) {
        const auto row = logits.sliced(1, start - 1 + static_cast<int64_t>(i), 1).to_vector<float>();
        const float best = *std::max_element(row.begin(), row.end());
        ASSERT_GE(row[static_cast<size_t>(ids[i])], best - rounding * std::abs(best))
            << "token " << i << " after a prompt of " << start;
    }
}

}  // namespace lc::test
