"""Tiny models of every family, made by transformers: shapes that are awkward on purpose, weights by a formula that C++ knows too.

The formula (tests/models/families_test.cpp has the same): element i of the parameter called `name`, in row-major order, is

    scale * u + shift,   u = (hash(fnv1a(name) + i) >> 9) / 2^22 - 1 in [-1, 1)

with u exact in f32. Scales are powers of two, so that both sides hold the same bits in every dtype wide enough.
"""

import numpy
import torch
import transformers

VOCABULARY = 640  # that of tests/golden/tokenizer/byte_level.json


def fnv1a(name):
    h = 2166136261
    for byte in name.encode():
        h = (h ^ byte) * 16777619 % 2**32
    return h


def uniform(name, count):
    x = numpy.arange(count, dtype=numpy.uint32) + numpy.uint32(fnv1a(name))
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        x ^= x >> numpy.uint32(shift)
        x *= numpy.uint32(factor)
    x ^= x >> numpy.uint32(16)
    return (x >> numpy.uint32(9)).astype(numpy.float64) / 2**22 - 1


def tensor(name, shape):
    return torch.from_numpy(uniform(name, int(numpy.prod(shape)))).reshape(shape)


def scale_and_shift(name, shape, tied, gemma):
    if len(shape) == 2:
        if name == "model.embed_tokens.weight":  # small where it is the head too: else every token predicts itself
            return 2**-3 if tied else 1.0, 0.0
        # Near 2 / sqrt(fan-in): logits of size one, attention that has preferences.
        return 2.0 ** round(numpy.log2(2 / shape[1] ** 0.5)), 0.0
    if name.endswith("bias"):
        return 0.25, 0.0
    return 0.25, 0.0 if gemma else 1.0  # norms; Gemma's files hold w - 1


def fill(model):
    gemma, tied = isinstance(model, transformers.GemmaForCausalLM), model.config.tie_word_embeddings
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            scale, shift = scale_and_shift(name, tuple(parameter.shape), tied, gemma)
            parameter.copy_(tensor(name, parameter.shape) * scale + shift)
    return model.eval()


def sizes(**more):
    common = dict(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
        tie_word_embeddings=False,
    )
    return common | more


def rope(kind="default", theta=10000.0, **more):
    return dict(rope_type=kind, rope_theta=theta, **more)


def llama(**more):
    return transformers.LlamaConfig(**sizes(**more))


def phi(**more):
    return transformers.PhiConfig(hidden_act="gelu_new", **sizes(**more))


def qwen2(**more):
    return transformers.Qwen2Config(**sizes(**more))


# name -> config. Windows are shorter than the sequences that are compared.
CONFIGS = {
    "llama2": lambda: llama(num_key_value_heads=4),
    "llama3": lambda: llama(
        rope_parameters=rope(
            "llama3",
            500000.0,
            factor=8.0,
            low_freq_factor=1.0,
            high_freq_factor=4.0,
            original_max_position_embeddings=64,
        )
    ),
    "llama32": lambda: llama(
        head_dim=32,
        tie_word_embeddings=True,
        rope_parameters=rope(
            "llama3",
            500000.0,
            factor=32.0,
            low_freq_factor=1.0,
            high_freq_factor=4.0,
            original_max_position_embeddings=32,
        ),
    ),
    "llama_biases": lambda: llama(attention_bias=True, mlp_bias=True),
    "llama_linear": lambda: llama(rope_parameters=rope("linear", factor=4.0)),
    "llama_dynamic": lambda: llama(rope_parameters=rope("dynamic", factor=4.0)),
    "llama_yarn": lambda: llama(
        rope_parameters=rope("yarn", factor=8.0, original_max_position_embeddings=32, beta_fast=8.0)
    ),
    "tinyllama": lambda: llama(num_attention_heads=8, num_key_value_heads=1),
    "smollm2": lambda: llama(
        hidden_size=72, num_attention_heads=9, num_key_value_heads=3, tie_word_embeddings=True,
        rope_parameters=rope(theta=100000.0),
    ),
    "mistral_v01": lambda: transformers.MistralConfig(**sizes(sliding_window=20)),
    "mistral_v03": lambda: transformers.MistralConfig(
        **sizes(sliding_window=None, head_dim=24, rope_parameters=rope(theta=1e6))
    ),
    "qwen2": lambda: qwen2(tie_word_embeddings=True, rope_parameters=rope(theta=1e6)),
    "qwen2_window": lambda: qwen2(use_sliding_window=True, sliding_window=12, max_window_layers=1),
    "qwen2_yarn": lambda: qwen2(rope_parameters=rope("yarn", 1e6, factor=4.0, original_max_position_embeddings=64)),
    "qwen3": lambda: transformers.Qwen3Config(
        **sizes(head_dim=40, tie_word_embeddings=True, rope_parameters=rope(theta=1e6))
    ),
    "phi15": lambda: phi(num_key_value_heads=4, rope_parameters=rope(partial_rotary_factor=0.5)),
    "phi2": lambda: phi(
        hidden_size=160, num_attention_heads=2, num_key_value_heads=2, rope_parameters=rope(partial_rotary_factor=0.4)
    ),
    "gemma": lambda: transformers.GemmaConfig(
        **sizes(num_attention_heads=2, num_key_value_heads=1, head_dim=256, tie_word_embeddings=True)
    ),
    "gemma_7b": lambda: transformers.GemmaConfig(
        **sizes(num_attention_heads=3, num_key_value_heads=3, head_dim=16, tie_word_embeddings=True)
    ),
}


def config_of(family):
    config = CONFIGS[family]()
    config._attn_implementation = "eager"
    return config


def build(family, dtype=torch.float32):
    config = config_of(family)
    return fill(transformers.AutoModelForCausalLM.from_config(config).to(dtype))


def text_of(words):
    vocabulary = "once upon a time there was a fox . it ran away , over the hill and into the old wood , where nobody".split()
    picks = (uniform("text", words) + 1) / 2 * len(vocabulary)
    return " ".join(vocabulary[int(pick)] for pick in picks)
