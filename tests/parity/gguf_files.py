"""GGUF files of a tiny Llama, written and dequantized by the package gguf."""

import json

import gguf
import numpy
import torch
import transformers

import families

READ = ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1")
REFUSED = ("Q5_0", "Q5_1")

NAMES = {
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}  # fmt: skip
OUTSIDE = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


def config():
    scaling = families.rope(
        "llama3", 500000.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=8192
    )  # fmt: skip
    return families.llama(head_dim=16, rope_parameters=scaling)


def name_of(name):
    module = name.removesuffix(".weight")
    if module in OUTSIDE:
        return OUTSIDE[module] + ".weight"
    layer, rest = module.removeprefix("model.layers.").split(".", 1)
    return f"blk.{layer}.{NAMES[rest]}.weight"


def interleave(rows, heads):
    """Files pair rotated rows (2i, 2i + 1) where transformers pairs (i, i + half)."""
    return rows.reshape(heads, 2, -1, rows.shape[1]).swapaxes(1, 2).reshape(rows.shape)


def separate(rows, heads):
    return rows.reshape(heads, -1, 2, rows.shape[1]).swapaxes(1, 2).reshape(rows.shape)


def write(path, tokenizer, type_name):
    """Returns the model in transformers with the weights that the file holds."""
    own = config()
    own._attn_implementation = "eager"
    model = families.fill(transformers.AutoModelForCausalLM.from_config(own))
    file = gguf.GGUFWriter(str(path), "llama")
    file.add_context_length(own.max_position_embeddings)
    file.add_embedding_length(own.hidden_size)
    file.add_block_count(own.num_hidden_layers)
    file.add_feed_forward_length(own.intermediate_size)
    file.add_head_count(own.num_attention_heads)
    file.add_head_count_kv(own.num_key_value_heads)
    file.add_layer_norm_rms_eps(own.rms_norm_eps)
    file.add_rope_freq_base(own.rope_parameters["rope_theta"])
    file.add_rope_dimension_count(own.head_dim)
    file.add_vocab_size(own.vocab_size)
    tokens = json.loads(tokenizer.read_text())
    special = {token["content"]: token["id"] for token in tokens["added_tokens"]}
    ids = tokens["model"]["vocab"] | special
    ordered = sorted(ids, key=ids.get)
    file.add_tokenizer_model("gpt2")
    file.add_tokenizer_pre("llama-bpe")
    file.add_token_list(ordered)
    file.add_token_types([int(gguf.TokenType.CONTROL if text in special else gguf.TokenType.NORMAL) for text in ordered])
    merges = tokens["model"]["merges"]
    file.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in merges])
    file.add_bos_token_id(0)
    kind = gguf.GGMLQuantizationType[type_name]
    plain = torch.arange(0, own.head_dim, 2) / own.head_dim
    divisors = own.rope_parameters["rope_theta"] ** -plain / model.model.rotary_emb.inv_freq
    file.add_tensor("rope_freqs.weight", divisors.numpy().astype(numpy.float32))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            values = parameter.numpy()
            heads = {"q_proj": own.num_attention_heads, "k_proj": own.num_key_value_heads}.get(name.split(".")[-2])
            if values.ndim == 1:
                file.add_tensor(name_of(name), values)
                continue
            blocks = gguf.quants.quantize(interleave(values, heads) if heads else values, kind)
            file.add_tensor(name_of(name), blocks, raw_dtype=kind)
            back = gguf.quants.dequantize(blocks, kind).reshape(values.shape)
            parameter.copy_(torch.from_numpy(numpy.ascontiguousarray(separate(back, heads) if heads else back)))
    file.write_header_to_file()
    file.write_kv_data_to_file()
    file.write_tensors_to_file()
    file.close()
    return model
