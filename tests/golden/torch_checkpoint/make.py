#!/usr/bin/env python3
"""Writes checkpoints of the layouts that the LoLCATs authors published, with torch.save, and their values as JSON.

    python3 make.py        (torch 2.15.0; the values are a formula, not random: any version gives the same)

The shapes are those of tests/models/tiny.h: 4 query heads, 2 KV heads, head_dim 6, hidden size 24, 2 layers.
"""
import json
from collections import OrderedDict
from pathlib import Path

import torch

HERE = Path(__file__).parent
LAYERS, HEADS, KV_HEADS, DIM, HIDDEN, RANK = 2, 4, 2, 6, 24, 2
count = 0


def values(*shape, dtype=torch.bfloat16):
    """Sixteenths between -1 and 1, exact in every dtype."""
    global count
    count += 1
    n = torch.Size(shape).numel()
    return (((torch.arange(n) * 7 + count * 5) % 33 - 16) / 16).reshape(shape).to(dtype)


def transfer(prefix, features=3, bias=False, window=True, dtype=torch.bfloat16):
    state = OrderedDict()
    for layer in range(LAYERS):
        name = f"{prefix}layers.{layer}.self_attn."
        if window:
            state[name + "window_factors"] = values(1, HEADS, 1, 1, dtype=dtype)
        for which in "qk":
            state[f"{name}feature_map_{which}.mlp.layer"] = values(HEADS, DIM, features, dtype=dtype)
            if bias:
                state[f"{name}feature_map_{which}.mlp.bias"] = values(1, HEADS, 1, 1, dtype=dtype)
    return state


def finetune(prefix):
    state = OrderedDict()
    for layer in range(LAYERS):
        for p, out in (("q", HEADS * DIM), ("k", KV_HEADS * DIM), ("v", KV_HEADS * DIM), ("o", HIDDEN)):
            name = f"{prefix}layers.{layer}.self_attn.{p}_proj."
            state[name + "lora_A.default.weight"] = values(RANK, HEADS * DIM if p == "o" else HIDDEN)
            state[name + "lora_B.default.weight"] = values(out, RANK)
    return state


def save(name, checkpoint):
    torch.save(checkpoint, HERE / f"{name}.pt")
    state = checkpoint.get("model_state_dict", checkpoint)
    return {key: [str(t.dtype)[6:], list(t.shape), t.detach().float().flatten().tolist()] for key, t in state.items()}


everything = {}
# -8b-distill: the stage's trainer, tensors from a GPU
everything["transfer"] = save(
    "transfer", {"model_state_dict": transfer("model."), "step": 900, "distill/eval/loss": 0.125}
)
# -8b-ft-lora: the same trainer around a PEFT model; frozen weights that someone kept
lora = finetune("base_model.model.model.")
lora["base_model.model.model.layers.0.self_attn.q_proj.base_layer.weight"] = values(HEADS * DIM, HIDDEN)
everything["finetune"] = save("finetune", {"model_state_dict": lora, "step": 1600, "eval/loss": torch.tensor(1.5)})
# -405b: shards combined into a bare dict of both
everything["both"] = save(
    "both", {**transfer("base_model.model.model."), **finetune("base_model.model.model.")}
)
# T2R from a CPU: parameters, not tensors; a transposed one and one that is a part of a larger storage
t2r = {k: torch.nn.Parameter(v) for k, v in transfer("model.", DIM, True, False, torch.float32).items()}
odd = "model.layers.1.self_attn.feature_map_k.mlp.layer"
t2r[odd] = values(HEADS, DIM, DIM, dtype=torch.float32).transpose(1, 2)
odd = "model.layers.1.self_attn.feature_map_q.mlp.layer"
t2r[odd] = values(HEADS + 2, DIM, DIM, dtype=torch.float16)[1 : 1 + HEADS]
everything["t2r"] = save("t2r", t2r)
# what Module.state_dict() returns: an OrderedDict with _metadata
module = torch.nn.Linear(3, 2, bias=False)
module.weight.data = values(2, 3, dtype=torch.float64)
everything["module"] = save("module", module.state_dict())

lines = [f'"{name}": {{\n' + ",\n".join(f"  {json.dumps(k)}: {json.dumps(v)}" for k, v in state.items()) + "}"
         for name, state in everything.items()]
(HERE / "values.json").write_text("{" + ",\n".join(lines) + "}\n")
