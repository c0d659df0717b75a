// Useful FLOPs of a token, from a model's shape: what has to be computed, each product once, nothing recomputed.
//
// Per query head of size D, with F' features from maps of D x F and n keys in the window's tile:
//   fm = 2 D F (a map)    mm = 2 D F' (a product with the state)    wm = 2 D n (a product with the window)
//   forward       2 fm + 2 mm + 2 wm      phi_q, phi_k; state read and update; scores and values
//   transfer      6 fm + 5 mm + 2 wm      forward; dW_q and dW_k with their maps again; S dN, the sum of phi_q dN, its use
//   backward      6 fm + 5 mm + 5 wm      q, k, v want gradients, the maps do not
//   softmax       2 D T forward, 5 D T backward: half of the T x T square
#pragma once
#include "models/attention/attention_spec.h"
#include "models/decoder/config.h"
#include "models/decoder/decoder.h"

namespace lc::bench {

struct ModelWork {
    models::DecoderConfig config;
    models::AttentionSpec attention;                            // kind softmax: not converted
    int64_t lora_rank = 0;                                      // on q, k, v, o
    bool narrow_state = false;                                  // S and z in bf16
    models::WeightCode weight_code = models::WeightCode::none;  // of the layers' matrices

    double layer_weights() const;
    // One token of a sequence of `length`.
    double transfer_flops(int64_t length) const;  // the last layer ends at its attention
    double finetune_flops(int64_t length) const;  // base weights frozen
    // One new token after `context` others: FLOPs, and the bytes a step reads once for all sequences and once for each.
    double decode_flops(int64_t context) const;
    double decode_weight_bytes(DType dtype) const;
    double decode_state_bytes(int64_t context, DType dtype) const;

  private:
    struct PerHead {
        double fm = 0, mm = 0, wm = 0;
    };
    PerHead per_head() const;
    double heads() const { return static_cast<double>(config.num_layers * config.num_heads); }
    double attention_forward(int64_t length) const;
    double attention_backward(int64_t length) const;
    double window_keys(int64_t context) const;  // the mean number that a decoded token sees
};

}  // namespace lc::bench
