#include "bench/model_flops.h"

namespace lc::bench {

using kernels::WindowKind;
using models::AttentionKind;

namespace {
// Pure linear attention works in chunks of this many keys; within one, products are quadratic.
constexpr double kChunk = 64;

double as_double(int64_t value) {
    return static_cast<double>(value);
}
}  // namespace

double ModelWork::layer_weights() const {
    const double d = as_double(config.hidden_size), q = as_double(config.num_heads * config.head_dim);
    const double kv = as_double(config.num_kv_heads * config.head_dim);
    return d * (2 * q + 2 * kv) + 3 * d * as_double(config.intermediate_size);
}

ModelWork::PerHead ModelWork::per_head() const {
    const double d = as_double(config.head_dim), w = as_double(attention.window_size);
    const int64_t f = attention.feature_dim_for(config.head_dim);
    const WindowKind window = attention.kernel_spec().window;
    const double keys = window == WindowKind::terraced ? 2 * w : window == WindowKind::sliding ? w : kChunk;
    return {2 * d * as_double(f), 2 * d * as_double(kernels::feature_size(attention.activation, f)), 2 * d * keys};
}

double ModelWork::attention_forward(int64_t length) const {
    if (attention.kind == AttentionKind::softmax) return heads() * 2 * as_double(config.head_dim * length);
    const auto [fm, mm, wm] = per_head();
    return heads() * (2 * fm + 2 * mm + 2 * wm);
}

double ModelWork::attention_backward(int64_t length) const {
    if (attention.kind == AttentionKind::softmax) return heads() * 5 * as_double(config.head_dim * length);
    const auto [fm, mm, wm] = per_head();
    return heads() * (6 * fm + 5 * mm + 5 * wm);
}

double ModelWork::transfer_flops(int64_t length) const {
    const auto [fm, mm, wm] = per_head();
    const double d = as_double(config.hidden_size), q = as_double(config.num_heads * config.head_dim);
    const double unused = d * q + 3 * d * as_double(config.intermediate_size);  // o and MLP of the last layer
    const double teacher = 2 * (as_double(config.num_layers) * layer_weights() - unused);
    return teacher + heads() * (2 * as_double(config.head_dim * length) + 6 * fm + 5 * mm + 2 * wm);
}

double ModelWork::finetune_flops(int64_t length) const {
    const double d = as_double(config.hidden_size), q = as_double(config.num_heads * config.head_dim);
    const double kv = as_double(config.num_kv_heads * config.head_dim), layers = as_double(config.num_layers);
    const double products = 2 * (layers * layer_weights() + d * as_double(config.vocab_size));
    const double lora = 2 * layers * as_double(lora_rank) * (4 * d + 2 * q + 2 * kv);
    return 2 * products + 3 * lora + attention_forward(length) + attention_backward(length);
}

double ModelWork::window_keys(int64_t context) const {
    const double w = as_double(attention.window_size), seen = as_double(context);
    switch (attention.kernel_spec().window) {
        case WindowKind::terraced:
            return std::min(seen + 1, 1.5 * w + 0.5);
        case WindowKind::sliding:
            return std::min(seen + 1, w);
        case WindowKind::none:
            return 0;
    }
    return 0;
}

double ModelWork::decode_flops(int64_t context) const {
    const double products = 2 * (as_double(config.num_layers) * layer_weights() +
                                 as_double(config.hidden_size) * as_double(config.vocab_size));
    const double d = as_double(config.head_dim);
    if (attention.kind == AttentionKind::softmax) return products + heads() * 4 * d * as_double(context + 1);
    const auto [fm, mm, wm] = per_head();
    return products +
           heads() * (2 * fm + 2 * mm + 4 * d * window_keys(context));  // the key that leaves joins the state
}

double ModelWork::decode_weight_bytes(DType dtype) const {
    const double layers = as_double(config.num_layers) * layer_weights();
    const double head = as_double(config.hidden_size) * as_double(config.vocab_size), width = as_double(size_of(dtype));
    return layers * (weight_code == models::WeightCode::none ? width : 1) + head * width;
}

double ModelWork::decode_state_bytes(int64_t context, DType dtype) const {
    const double layers = as_double(config.num_layers), d = as_double(config.head_dim);
    const double key_bytes = layers * 2 * as_double(config.num_kv_heads) * d * as_double(size_of(dtype));
    if (attention.kind == AttentionKind::softmax) return key_bytes * as_double(context + 1);
    const int64_t f = attention.feature_dim_for(config.head_dim);
    const double states =
        as_double(attention.heads == models::FeatureHeads::query ? config.num_heads : config.num_kv_heads);
    const double features = as_double(kernels::feature_size(attention.activation, f));
    const DType state_dtype = narrow_state ? DType::bf16 : statistics_dtype(dtype);
    const double state = layers * states * features * (d + 1) * as_double(size_of(state_dtype));
    return state + key_bytes * window_keys(context);
}

}  // namespace lc::bench
