"""Writes tests/golden/families/*.json: what transformers computes in f64 for the models of families.py."""

import argparse
import json
import pathlib

import torch
import transformers

import families

PROMPT, NEW, SHOWN = 40, 16, 48


def config_json(model):
    config = json.loads(model.config.to_json_string(use_diff=False))
    wanted = {
        "architectures", "model_type", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
        "num_key_value_heads", "head_dim", "vocab_size", "max_position_embeddings", "rms_norm_eps", "layer_norm_eps",
        "rope_parameters", "tie_word_embeddings", "hidden_act", "attention_bias", "mlp_bias", "sliding_window",
        "use_sliding_window", "max_window_layers", "layer_types",
    }  # fmt: skip
    config["architectures"] = [type(model).__name__]
    return {key: value for key, value in config.items() if key in wanted and value is not None}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path(__file__).parent.parent / "golden/families")
    out = parser.parse_args().out
    ids = [int(id) for id in (families.uniform("prompt", PROMPT) + 1) / 2 * families.VOCABULARY]
    for family in families.CONFIGS:
        model = families.build(family, torch.float64)
        row = torch.tensor([ids])
        margin = float("inf")
        with torch.no_grad():
            logits = model(row).logits[0]
            for _ in range(NEW):
                top = model(row).logits[0, -1].topk(2)
                margin = min(margin, (top.values[0] - top.values[1]).item())
                row = torch.cat((row, top.indices[:1][None]), dim=1)
        golden = {
            "config": config_json(model),
            "ids": ids,
            "norms": [round(x, 6) for x in logits.norm(dim=1).tolist()],
            "last_logits": [round(x, 6) for x in logits[-1, :SHOWN].tolist()],
            "greedy": row[0, PROMPT:].tolist(),
        }
        print(f"{family:16} |logits| {logits.abs().max():8.3f}  least greedy margin {margin:.2e}")
        assert margin > 1e-3, "choose other shapes: greedy continuations must not hang on rounding"
        lines = ",\n".join(f" {json.dumps(key)}: {json.dumps(value)}" for key, value in golden.items())
        (out / f"{family}.json").write_text("{\n" + lines + "\n}\n")
    print(f"torch {torch.__version__}, transformers {transformers.__version__}")


if __name__ == "__main__":
    main()
