#!/usr/bin/env python3
"""Runs a model written by `train_lolcats export --merged` in Hugging Face transformers. An example for readers.

    train_lolcats export --model teacher/ --run run/ --out linearized/ --merged
    python3 docs/load_in_transformers.py linearized/ --prompt "Once upon a time"
    python3 docs/load_in_transformers.py linearized/ --perplexity text.txt --seq-len 512

The directory is an ordinary Llama, Mistral, Qwen, Phi or Gemma whose LoRA is merged. What transformers does not know is
the attention it was trained for: `config.json` describes it under "lolcats", and `feature_maps.safetensors` holds its parameters. This
file adds it as an attention function, written as the formulas read: quadratic in the sequence, whereas `gen_lolcats`
needs a constant state per token. Needs torch, transformers (4.56 or newer; checked with 5.24) and safetensors.
"""
import argparse
import json
import math
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from transformers import AttentionInterface, AutoModelForCausalLM, AutoTokenizer

EPSILON = 1e-12  # of features, and of the denominator where there is no window


def feature_map(x, weight, bias, kind, skip):
    """x [B,H,T,D] -> phi [B,H,T,F'], positive.  weight [H,D,F], bias [1,H,1,1 or F] or None."""
    u = torch.einsum("bhtd,hdf->bhtf", x, weight)
    if bias is not None:
        u = u + bias
    if skip:
        u = u + x
    highest, lowest = u.amax(-1, keepdim=True), u.amin(-1, keepdim=True)
    phi = {
        "softmax_dim": lambda: torch.cat([u.softmax(-1), (-u).softmax(-1)], -1),
        "softmax_half": lambda: u.softmax(-1),
        "exp_dim": lambda: torch.cat([(u - highest).exp(), (lowest - u).exp()], -1),
        "exp_half": lambda: (u - highest).exp(),
        "relu": lambda: u.relu(),
        "pos_elu": lambda: F.elu(u) + 1,
    }[kind]()
    return phi.clamp_min(EPSILON)


def window_and_far(spec, queries, keys, device):
    """Two masks [queries, keys]: keys seen by softmax, and keys seen by the linear branch. The queries are the last."""
    i = torch.arange(keys - queries, keys, device=device)[:, None]
    j = torch.arange(keys, device=device)[None, :]
    w = spec["window_size"]
    causal = j <= i
    if spec["attention"] == "linear":
        return torch.zeros_like(causal), causal
    if spec["window"] == "terraced":  # the query's block of w keys and the one before it
        window = causal & (j // w >= i // w - 1)
    elif spec["window"] == "sliding":
        window = causal & (j > i - w)
    else:
        raise ValueError(f"the window {spec['window']!r} is not part of this example")
    return window, causal & ~window


def linearized_attention(q, k, v, maps, spec):
    """q [B,H,T,D], k and v [B,H_kv,Tk,D], all after RoPE -> y [B,T,H,D].  In f32, as the parameters are.

    y_i = (sum_W gamma exp(s_ij - max s_i) v_j + sum_R lambda phi_q(q_i).phi_k(k_j) v_j) / (the same without v)
    """
    dtype = q.dtype
    q, k, v = q.float(), k.float(), v.float()
    heads, kv_heads = q.size(1), k.size(1)
    k_all, v = (x.repeat_interleave(heads // kv_heads, 1) for x in (k, v))  # query head h reads KV head h / (H / H_kv)
    kind, skip = spec["feature_map"], spec["skip"]
    phi_q = feature_map(q, maps["feature_map_q.mlp.layer"], maps.get("feature_map_q.mlp.bias"), kind, skip)
    w_k = maps["feature_map_k.mlp.layer"]
    phi_k = feature_map(k_all if w_k.size(0) == heads else k, w_k, maps.get("feature_map_k.mlp.bias"), kind, skip)
    phi_k = phi_k.repeat_interleave(heads // phi_k.size(1), 1)

    window, far = window_and_far(spec, q.size(2), k.size(2), q.device)
    linear = torch.einsum("bhif,bhjf->bhij", phi_q, phi_k) * far
    if spec["attention"] == "linear":
        weights, guard = linear, EPSILON
    else:
        gamma = maps["window_factors"].sigmoid()  # [1,H,1,1]
        scores = torch.einsum("bhid,bhjd->bhij", q, k_all) / math.sqrt(q.size(-1))
        scores = scores.masked_fill(~window, -math.inf)
        softmax = gamma * (scores - scores.amax(-1, keepdim=True)).exp()
        weights, guard = softmax + linear * (1 - gamma if spec["affine"] else 1), 0
    y = torch.einsum("bhij,bhjd->bhid", weights, v) / (weights.sum(-1, keepdim=True) + guard)
    return y.transpose(1, 2).to(dtype)


def load(directory, dtype=torch.float32, **kwargs):
    """The model with the attention that its config.json describes. No padding: one sequence length a batch."""
    directory = Path(directory)
    config = json.loads((directory / "config.json").read_text())
    if "lolcats" not in config:
        raise SystemExit(f"{directory}: config.json has no 'lolcats': load it as any other model")
    section = config["lolcats"]
    if section["version"] != 1:
        raise SystemExit(f"{directory}: version {section['version']} of 'lolcats' is not known here")
    spec, layers = section["attention"], {}
    for name, tensor in load_file(directory / section["feature_maps"]).items():
        _, _, layer, _, parameter = name.split(".", 4)  # model.layers.N.self_attn.PARAMETER
        layers.setdefault(int(layer), {})[parameter] = tensor

    def attention(module, query, key, value, attention_mask, sliding_window=None, **unused):
        maps = layers.get(module.layer_idx)
        if maps is None:  # a layer that was left softmax
            groups = query.size(1) // key.size(1)
            key, value = (x.repeat_interleave(groups, 1) for x in (key, value))
            causal = torch.ones(query.size(2), key.size(2), dtype=torch.bool, device=query.device)
            causal = causal.tril(key.size(2) - query.size(2))
            if sliding_window is not None:
                causal = causal.triu(key.size(2) - query.size(2) - sliding_window + 1)
            return F.scaled_dot_product_attention(query, key, value, attn_mask=causal).transpose(1, 2), None
        maps = {name: tensor.to(query.device) for name, tensor in maps.items()}
        return linearized_attention(query, key, value, maps, spec), None

    AttentionInterface.register("lolcats", attention)
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=dtype, attn_implementation="lolcats", **kwargs)
    return model.eval()


@torch.no_grad()
def perplexity(model, ids, seq_len):
    """As `train_lolcats perplexity`: whole sequences, no BOS, the first token of each not predicted."""
    total, count = 0.0, 0
    for start in range(0, len(ids) - seq_len + 1, seq_len):
        chunk = torch.tensor([ids[start : start + seq_len]], device=model.device)
        logits = model(chunk, use_cache=False).logits[0, :-1].double()
        total += F.cross_entropy(logits, chunk[0, 1:], reduction="sum").item()
        count += seq_len - 1
    return {"mean_nll": total / count, "perplexity": math.exp(total / count), "tokens": count}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--prompt")
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument("--perplexity", metavar="FILE")
    parser.add_argument("--seq-len", type=int, default=1024)
    parser.add_argument("--limit-chars", type=int)
    options = parser.parse_args()
    model, tokenizer = load(options.model), AutoTokenizer.from_pretrained(options.model)
    if options.perplexity:
        text = Path(options.perplexity).read_text(encoding="utf-8")[: options.limit_chars]
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        print(json.dumps(perplexity(model, ids, options.seq_len)))
    if options.prompt:
        inputs = tokenizer(options.prompt, return_tensors="pt")
        out = model.generate(inputs["input_ids"], max_new_tokens=options.max_new_tokens, do_sample=False)
        print(tokenizer.decode(out[0], skip_special_tokens=True))


if __name__ == "__main__":
    main()
